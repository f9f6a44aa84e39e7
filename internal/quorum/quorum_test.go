package quorum

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/quick"
)

func TestMajority(t *testing.T) {
	for n, want := range []int{1, 1, 2, 2, 3, 3, 4, 4, 5} {
		if got := Majority(n); got != want {
			t.Errorf("Majority(%d) is %d, want %d", n, got, want)
		}
	}
}

func TestCommittedIndex(t *testing.T) {
	for _, test := range []struct {
		acked []int64
		want  int64
	}{
		{nil, 0},
		{[]int64{}, 0},
		{[]int64{7}, 7},
		{[]int64{7, 9}, 7}, // both must have it
		{[]int64{9, 7}, 7},
		{[]int64{0, 0, 9}, 0}, // one disk is no majority of three
		{[]int64{5, 9, 0}, 5},
		{[]int64{9, 9, 9}, 9},
		{[]int64{1, 2, 3, 4}, 2},
		{[]int64{4, 3, 2, 1, 5}, 3},
		{[]int64{0, 0, 8, 8, 8}, 8},
	} {
		if got := CommittedIndex(slices.Clone(test.acked)); got != test.want {
			t.Errorf("CommittedIndex(%v) is %d, want %d", test.acked, got, test.want)
		}
	}
}

func TestJointCommitted(t *testing.T) {
	for _, test := range []struct {
		a, b []int64
		want int64
	}{
		{nil, nil, 0},
		{[]int64{5, 6, 7}, nil, 6},
		{[]int64{5, 6, 7}, []int64{}, 6},
		{nil, []int64{5}, 0}, // the first half is never left out
		{[]int64{5, 6, 7}, []int64{9}, 6},
		{[]int64{5, 6, 7}, []int64{1, 2, 3}, 2},
		{[]int64{9, 9, 9}, []int64{9, 0}, 0}, // one full half is not enough
	} {
		if got := JointCommitted(slices.Clone(test.a), slices.Clone(test.b)); got != test.want {
			t.Errorf("JointCommitted(%v, %v) is %d, want %d", test.a, test.b, got, test.want)
		}
	}
}

// naive counts, for each index that anybody acknowledged, who has at least that.
func naive(acked []int64) int64 {
	best := int64(0)
	for _, index := range acked {
		count := 0
		for _, other := range acked {
			if other >= index {
				count++
			}
		}
		if 2*count > len(acked) {
			best = max(best, index)
		}
	}
	return best
}

// voters is up to MaxVoters acknowledgements, few of them different.
func voters(seed uint64, n uint8) []int64 {
	rng := rand.New(rand.NewPCG(seed, 1))
	acked := make([]int64, int(n)%(MaxVoters+1))
	spread := 1 + rng.Int64N(64)
	for i := range acked {
		acked[i] = rng.Int64N(spread)
	}
	return acked
}

func TestAgainstNaiveCount(t *testing.T) {
	one := func(seed uint64, n uint8) bool {
		acked := voters(seed, n)
		return CommittedIndex(slices.Clone(acked)) == naive(acked)
	}
	if err := quick.Check(one, &quick.Config{MaxCount: 5_000}); err != nil {
		t.Errorf("CommittedIndex differs from the naive count: %v", err)
	}
	both := func(seed uint64, n, m uint8) bool {
		a, b := voters(seed, n), voters(seed+1, m)
		want := naive(a)
		if len(b) > 0 {
			want = min(want, naive(b))
		}
		return JointCommitted(slices.Clone(a), slices.Clone(b)) == want
	}
	if err := quick.Check(both, &quick.Config{MaxCount: 5_000}); err != nil {
		t.Errorf("JointCommitted differs from the naive count: %v", err)
	}
}

func TestAllocatesNothing(t *testing.T) {
	for _, n := range []int{3, 16, MaxVoters} {
		a, b := make([]int64, n), make([]int64, n)
		allocs := testing.AllocsPerRun(100, func() {
			for i := range a {
				a[i], b[i] = int64(n-i), int64(i)
			}
			JointCommitted(a, b)
		})
		if allocs != 0 {
			t.Errorf("%d voters: %v allocations, want 0", n, allocs)
		}
	}
}

func BenchmarkCommittedIndex(b *testing.B) {
	from := []int64{5, 3, 4, 1, 2}
	acked := make([]int64, len(from))
	for b.Loop() {
		copy(acked, from)
		CommittedIndex(acked)
	}
}
