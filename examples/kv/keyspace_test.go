package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// naiveDigest is what keyspace.digest must be, computed from what is stored.
func naiveDigest(model map[string]string) (sum uint64) {
	for k, v := range model {
		sum += hash64([]byte(k), []byte(v))
	}
	return sum
}

func TestKeyspaceAgainstAMap(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	var k keyspace
	model := make(map[string]string)
	for i := range 20_000 {
		key := "k" + strconv.Itoa(rng.IntN(300))
		value := strconv.Itoa(rng.IntN(1000))
		old, exists := model[key]
		switch rng.IntN(6) {
		case 0, 1:
			k.set([]byte(key), []byte(value))
			model[key] = value
		case 2:
			require.Equal(t, exists, k.del([]byte(key)))
			delete(model, key)
		case 3:
			if len(old) > 100 {
				continue
			}
			require.Equal(t, int64(len(old)+len(value)), k.append([]byte(key), []byte(value)).n)
			model[key] = old + value
		case 4:
			guess := strconv.Itoa(rng.IntN(1000))
			if rng.IntN(2) == 0 {
				guess = old
			}
			swapped := k.cas([]byte(key), []byte(guess), []byte(value))
			require.Equal(t, exists && guess == old, swapped)
			if swapped {
				model[key] = value
			}
		case 5:
			n, err := strconv.ParseInt(old, 10, 64)
			if exists && (err != nil || strconv.FormatInt(n, 10) != old) {
				require.Equal(t, replyNotInt, k.incr([]byte(key), 7))
				continue
			}
			require.Equal(t, n+7, k.incr([]byte(key), 7).n)
			model[key] = strconv.FormatInt(n+7, 10)
		}
		if i%500 == 0 {
			require.Equal(t, naiveDigest(model), k.digest, "seed %d, step %d", seed, i)
		}
	}
	require.Equal(t, len(model), k.size)
	require.Equal(t, naiveDigest(model), k.digest)
	for key, value := range model {
		got, ok := k.get([]byte(key))
		require.True(t, ok)
		require.Equal(t, value, string(got))
	}
	k.clear()
	assert.Zero(t, k.digest)
	assert.Zero(t, k.size)
}

func TestDigestTellsKeysAndValuesApart(t *testing.T) {
	pairs := [][2]string{
		{"", ""}, {"a", ""}, {"", "a"}, {"a", "b"}, {"ab", ""}, {"", "ab"}, {"b", "a"}, {"a\x00", ""}, {"a", "\x00"},
		{"0123456789abcdef", "x"}, {"0123456789abcde", "fx"}, {"0123456789abcdef0123456789abcdef", ""},
	}
	seen := make(map[uint64][2]string)
	for _, p := range pairs {
		h := hash64([]byte(p[0]), []byte(p[1]))
		if other, ok := seen[h]; ok {
			t.Errorf("%q and %q have one hash", p, other)
		}
		seen[h] = p
	}
}

func TestIntegersAsRedisReadsThem(t *testing.T) {
	for _, test := range []struct {
		text string
		want int64
		ok   bool
	}{
		{"0", 0, true}, {"-1", -1, true}, {"9223372036854775807", math.MaxInt64, true}, {"-9223372036854775808", math.MinInt64, true},
		{"9223372036854775808", 0, false}, {"", 0, false}, {"+1", 0, false}, {"01", 0, false}, {"-0", 0, false}, {" 1", 0, false},
		{"1 ", 0, false}, {"1.0", 0, false}, {"0x1", 0, false}, {"1_0", 0, false},
	} {
		n, ok := parseInt([]byte(test.text))
		if ok != test.ok || ok && n != test.want {
			t.Errorf("%q: %d, %v, want %d, %v", test.text, n, ok, test.want, test.ok)
		}
	}
}

func TestIncrDoesNotOverflow(t *testing.T) {
	for _, test := range []struct {
		start string
		delta int64
		want  *reply
	}{
		{"9223372036854775806", 1, intReply(math.MaxInt64)},
		{"9223372036854775807", 1, replyOverflow},
		{"-9223372036854775808", -1, replyOverflow},
		{"-1", math.MinInt64, replyOverflow},
		{"0", math.MinInt64, intReply(math.MinInt64)},
		{"abc", 1, replyNotInt},
	} {
		var k keyspace
		k.set([]byte("n"), []byte(test.start))
		assert.Equal(t, test.want, k.incr([]byte("n"), test.delta), "%s + %d", test.start, test.delta)
	}
}

func TestValuesThatWereReadDoNotChange(t *testing.T) {
	var k keyspace
	k.append([]byte("k"), []byte("one"))
	first, _ := k.get([]byte("k"))
	k.append([]byte("k"), []byte("two"))
	second, _ := k.get([]byte("k"))
	k.append([]byte("k"), []byte("three"))
	k.set([]byte("k"), []byte("new"))
	k.append([]byte("k"), []byte("est"))
	assert.Equal(t, "one", string(first))
	assert.Equal(t, "onetwo", string(second))
}

func TestAppendStopsAtTheLargestValue(t *testing.T) {
	var k keyspace
	k.set([]byte("k"), make([]byte, maxValue-1))
	assert.Equal(t, int64(maxValue), k.append([]byte("k"), []byte("x")).n)
	assert.Equal(t, replyTooLong, k.append([]byte("k"), []byte("x")))
}

// A key that is there all the time is returned by a full iteration, whatever is added and removed meanwhile.
func TestScanReturnsWhatStays(t *testing.T) {
	var k keyspace
	for i := range 5000 {
		k.set([]byte(fmt.Sprintf("stays-%d", i)), nil)
	}
	seen := make(map[string]int)
	churn := 0
	for cursor, first := uint64(0), true; first || cursor != 0; first = false {
		cursor = k.scan(cursor, 10, func(key string) { seen[key]++ })
		for range 20 {
			k.set([]byte(fmt.Sprintf("comes-%d", churn)), nil)
			k.del([]byte(fmt.Sprintf("comes-%d", churn-100)))
			churn++
		}
	}
	for i := range 5000 {
		require.Equal(t, 1, seen[fmt.Sprintf("stays-%d", i)])
	}
}

func TestGlob(t *testing.T) {
	for _, test := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "abc", true}, {"", "", true}, {"", "a", false}, {"a*c", "abbc", true}, {"a*c", "abcd", false},
		{"a?c", "abc", true}, {"a?c", "ac", false}, {"[ab]c", "bc", true}, {"[ab]c", "cc", false}, {"[^ab]c", "cc", true},
		{"[a-c]x", "bx", true}, {"[c-a]x", "bx", true}, {"[a-c]x", "dx", false}, {`\*`, "*", true}, {`\*`, "a", false},
		{"*a*b*", "xxaxxbxx", true}, {"*a*b*", "xxbxxaxx", false}, {"h[^e]llo", "hello", false}, {"**", "x", true},
		{"a*b*c", "abxbc", true}, {"[", "a", false}, {"[a", "a", true}, {`a\`, `a\`, true},
	} {
		if got := glob(test.pattern, test.s); got != test.want {
			t.Errorf("glob(%q, %q) is %v, want %v", test.pattern, test.s, got, test.want)
		}
	}
}

func TestSlots(t *testing.T) {
	for _, test := range []struct {
		key  string
		want int
	}{
		{"123456789", 0x31c3}, {"", 0}, {"foo", 12182}, {"bar", 5061}, {"a", 15495},
		{"{foo}.x", 12182}, {"x{foo}{bar}", 12182},
	} {
		if got := slotOf([]byte(test.key)); got != test.want {
			t.Errorf("slot of %q is %d, want %d", test.key, got, test.want)
		}
	}
	assert.NotEqual(t, slotOf([]byte("{}foo")), slotOf([]byte("{}bar")), "an empty tag does not count")
	assert.NotEqual(t, slotOf([]byte("{foo")), slotOf([]byte("{bar")), "an open tag does not count")
}
