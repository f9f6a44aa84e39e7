package graft

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// addresses are such as are hard to tell apart, or to put in order.
var addresses = []string{
	"9.0.0.1:1", "10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:10", "100.0.0.1:1", "[::1]:1", "[::2]:1", "[::10]:1", "[fe80::1]:7",
	"[::ffff:10.0.0.1]:1", "5host:1", "5host:10", "10host:1", "9a.0.0.1:1", "a:1", "a:9", "a:10", "b:1", "B:1", "-:1", "_:1", "10.0.0.1a:1", "host-1:1", "host-10:1", "host-2:1",
}

// E7: peers have one order, whatever they are called and in whatever order they come: else a group has several identities.
func TestPeersHaveOneOrder(t *testing.T) {
	var peers []PeerID
	for _, address := range addresses {
		p := MustParsePeerID(address)
		require.Equal(t, address, p.Address)
		peers = append(peers, p, PeerID{Address: address, Index: 1}, PeerID{Address: address, Index: 2, Role: Learner})
	}
	sign := func(n int) int { return min(max(n, -1), 1) }
	for _, a := range peers {
		for _, b := range peers {
			ab := comparePeers(a, b)
			require.Equal(t, -sign(ab), sign(comparePeers(b, a)), "%v and %v", a, b)
			require.Equal(t, a.Same(b), ab == 0, "%v and %v", a, b)
			for _, c := range peers {
				if ab <= 0 && comparePeers(b, c) <= 0 {
					require.LessOrEqual(t, comparePeers(a, c), 0, "%v, %v, %v", a, b, c)
				}
			}
		}
	}
}

// E7: a configuration is the same in whatever order its peers are written, and so is the identity of the group that it founds.
func TestAConfigurationIsTheSameInAnyOrder(t *testing.T) {
	for _, some := range [][]string{
		{"9.0.0.1:1", "10.0.0.1:1", "5host:1"},
		{"9.0.0.1:1", "10.0.0.1:1", "a:1", "5host:1"},
		{"[::1]:1", "B:1", "a:1", "9a.0.0.1:1"},
	} {
		want := MustParseConfiguration(fmt.Sprint(some[0], ",", some[1], ",", some[2]))
		permute(some[:3], func(order []string) {
			got := MustParseConfiguration(fmt.Sprint(order[0], ",", order[1], ",", order[2]))
			assert.True(t, want.Equal(got), "%v", order)
			assert.Equal(t, want.String(), got.String(), "%v", order)
			assert.Equal(t, groupIDOf("g", want), groupIDOf("g", got), "%v", order)
			for _, address := range order {
				assert.True(t, got.Contains(MustParsePeerID(address)), "%v in %v", address, order)
			}
		})
	}
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var peers []PeerID
		for _, i := range rng.Perm(len(addresses))[:2+rng.IntN(8)] {
			peers = append(peers, PeerID{Address: addresses[i]})
		}
		want, err := NewConfiguration(peers...)
		require.NoError(t, err)
		for range 20 {
			rng.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
			got, err := NewConfiguration(peers...)
			require.NoError(t, err)
			require.Equal(t, want, got, "seed %d: %v", seed, peers)
		}
	}
}

// permute calls f with all orders of s.
func permute(s []string, f func(order []string)) {
	var rest func(k int)
	rest = func(k int) {
		if k == len(s) {
			f(s)
			return
		}
		for i := k; i < len(s); i++ {
			s[k], s[i] = s[i], s[k]
			rest(k + 1)
			s[k], s[i] = s[i], s[k]
		}
	}
	rest(0)
}

// Among themselves addresses keep the order that they have had in all groups so far, which is part of those groups' identity: those
// by numbers that of the numbers, IPv4 before IPv6, and names that of their letters.
func TestTheOrderOfNumbersAndOfNames(t *testing.T) {
	for _, want := range [][]string{
		{"9.0.0.1:1", "10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:10", "100.0.0.1:1", "[::1]:1", "[::2]:1", "[::10]:1", "[fe80::1]:7"},
		{"-:1", "10host:1", "5host:1", "5host:10", "9a.0.0.1:1", "B:1", "_:1", "a:1", "a:9", "a:10", "b:1", "host-1:1", "host-10:1", "host-2:1"},
		{"9.0.0.1:1", "10.0.0.1:1", "[::1]:1", "5host:1", "a:1"}, // numbers before names
	} {
		got := slices.Clone(want)
		rand.New(rand.NewPCG(1, 1)).Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		slices.SortFunc(got, func(a, b string) int { return comparePeers(PeerID{Address: a}, PeerID{Address: b}) })
		assert.Equal(t, want, got)
	}
}
