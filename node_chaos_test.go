package graft

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// chaos is a cluster whose configuration changes at random while clients write.
type chaos struct {
	*cluster
	rng   *rand.Rand
	until time.Time

	mu    sync.RWMutex // guards hosts and nodes of the cluster
	ledMu sync.Mutex
	acked []string
	made  int // changes that have succeeded
	maybe map[string]bool
}

// over reports whether it has gone on for long enough, which takes longer where nothing has come about yet.
func (x *chaos) over() bool {
	x.ledMu.Lock()
	defer x.ledMu.Unlock()
	late := time.Since(x.until)
	return late >= 0 && x.made > 0 && len(x.acked) > 0 || late > time.Minute
}

// leading returns a node that believes to lead, or any other that runs.
func (x *chaos) leading() *Node {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var some *Node
	for i, n := range x.nodes {
		if x.hosts[i] == nil {
			continue
		}
		if n.IsLeader() {
			return n
		}
		some = n
	}
	return some
}

// write proposes distinct entries, each again while it is certain that it was not proposed.
func (x *chaos) write(client int) {
	for i := 0; !x.over(); i++ {
		data := fmt.Sprintf("%d-%d", client, i)
		for !x.over() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			_, err := x.leading().Propose(ctx, []byte(data))
			cancel()
			code := ErrorCode(err)
			x.ledMu.Lock()
			switch code {
			case 0:
				x.acked = append(x.acked, data)
			case ErrUnknownOutcome:
				x.maybe[data] = true
			}
			x.ledMu.Unlock()
			if code == 0 || code == ErrUnknownOutcome {
				break
			}
		}
	}
}

// anyConf draws a configuration with at least one voter.
func (x *chaos) anyConf() Configuration {
	for {
		var peers []PeerID
		for i := range x.addrs {
			switch x.rng.IntN(4) {
			case 0, 1:
				peers = append(peers, x.peer(i))
			case 2:
				peers = append(peers, x.learner(i))
			}
		}
		if conf := x.confOf(peers...); len(conf.Voters()) > 0 {
			return conf
		}
	}
}

// disturb changes the configuration, hands leadership over, cuts hosts off and restarts them.
func (x *chaos) disturb() {
	for round := 0; !x.over(); round++ {
		switch i := x.rng.IntN(len(x.addrs)); x.rng.IntN(6) {
		case 0:
			_ = x.leading().TransferLeadership(PeerID{})
		case 1:
			x.net.set(isolate(i))
		case 2:
			x.mu.Lock()
			x.stop(i)
			x.start(i)
			x.mu.Unlock()
		}
		n, conf := x.leading(), x.anyConf()
		p := x.begin(slices.Index(x.nodes, n), fmt.Sprint("round ", round), func(n *Node, done Closure) {
			n.Change(conf, ChangeOptions{Deadline: 300 * ms}, done)
		})
		if p.wait() == nil {
			x.ledMu.Lock()
			x.made++
			x.ledMu.Unlock()
		}
		x.net.set()
	}
}

// braft: change_peers_chaos. Whatever the configuration goes through, all members end with the same data, and with all that was
// acknowledged, once.
func TestRandomChangesUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	x := &chaos{
		cluster: newGroup(t, 3, 6, NodeOptions{ElectionTimeout: 150 * ms, CatchupMargin: 10}),
		rng:     rand.New(rand.NewPCG(seed, 0)), maybe: make(map[string]bool),
	}
	x.startGroup()
	x.until = time.Now().Add(4 * time.Second)
	var writers sync.WaitGroup
	for client := range 3 {
		writers.Go(func() { x.write(client) })
	}
	x.disturb()
	writers.Wait()

	all := x.voters(0, 1, 2, 3, 4, 5)
	x.eventually(func() bool { return x.change(x.leader(), all).wait() == nil }, "no change to all of them")
	x.settled(all, 0, 1, 2, 3, 4, 5)
	x.eventually(func() bool {
		_, err := x.nodes[x.leader()].Propose(t.Context(), []byte("end"))
		return err == nil
	}, "it takes no proposals")
	count := make(map[string]int)
	for _, data := range x.sameData(0, 1, 2, 3, 4, 5) {
		count[data]++
	}
	t.Logf("%d changes, %d writes, %d of unknown outcome", x.made, len(x.acked), len(x.maybe))
	for _, data := range x.acked {
		require.Equal(t, 1, count[data], "acknowledged: %s", data)
		delete(count, data)
	}
	delete(count, "end")
	for data, n := range count {
		require.Equal(t, 1, n, "%s", data)
		require.True(t, x.maybe[data], "%s was said not to be proposed", data)
	}
	assert.Positive(t, x.made)
	assert.NotEmpty(t, x.acked)
	for i := range 6 {
		for _, conf := range x.fsms[i].committedConfs() {
			assert.NotEmpty(t, conf.Voters())
		}
	}
}
