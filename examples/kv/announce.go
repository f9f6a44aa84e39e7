package main

import (
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft"
)

// How often an address that the table lacks is announced again, how long an attempt may take, and how many redirections it
// follows.
const (
	announceMin     = 20 * time.Millisecond
	announceMax     = time.Second
	announceTimeout = 2 * time.Second
	announceHops    = 3
)

// announcer brings this replica's redis address into the replicated table: the leader proposes its own, another
// replica sends its own to the leader's redis port, again and again until the table has it. While the table has it
// the announcer sleeps. A replica that is being added does so while it still catches up, so that clients find it as
// soon as it counts, even if it leads then.
//
// Ownership: one goroutine, from start to close. wake may be called from anywhere.
type announcer struct {
	r       *replica
	changed chan struct{} // leader or table may have changed; capacity 1, never blocks
	done    chan struct{} // closed by close
	once    sync.Once
	wg      sync.WaitGroup
}

func newAnnouncer(r *replica) *announcer {
	return &announcer{r: r, changed: make(chan struct{}, 1), done: make(chan struct{})}
}

// wake has the table looked at. It never blocks.
func (a *announcer) wake() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

func (a *announcer) start() {
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		a.run()
	}()
}

// close ends the goroutine and waits for it.
func (a *announcer) close() {
	a.once.Do(func() { close(a.done) })
	a.wg.Wait()
}

func (a *announcer) run() {
	retry := time.NewTimer(announceMin)
	defer retry.Stop()
	pause := announceMin
	for {
		select {
		case <-a.done:
			return
		case <-a.changed:
			pause = announceMin
		case <-retry.C:
		}
		if a.r.machine.redisAddr(raftKey(a.r.self)) == a.r.cfg.redis || a.r.node.Status().Removed {
			retry.Stop()
			continue
		}
		a.attempt()
		retry.Reset(pause)
		pause = min(2*pause, announceMax)
	}
}

// attempt announces the address once, if there is a leader to announce it to. Whether it worked is seen in the table.
func (a *announcer) attempt() {
	if a.r.node.IsLeader() {
		a.r.node.Apply(graft.Task{Data: announceOp(raftKey(a.r.self), a.r.cfg.redis)})
		return
	}
	leader := a.r.node.LeaderID()
	if leader.IsZero() {
		return
	}
	to := a.r.machine.redisAddr(raftKey(leader))
	if to == "" { // this replica has yet to apply where the leader is; somebody else will know
		to = a.r.machine.anyMember(raftKey(a.r.self))
	}
	for hops := 0; to != "" && hops < announceHops; hops++ {
		err := sendAnnouncement(to, raftKey(a.r.self), a.r.cfg.redis)
		if err == nil {
			return
		}
		a.r.cfg.log.Debug("announcing the redis address", zap.String("to", to), zap.Error(err))
		to = movedTo(err)
	}
}

func announceOp(raft, redis string) []byte {
	o := op{code: opAnnounce, args: [][]byte{[]byte(raft), []byte(redis)}}
	return o.append(nil)
}

// sendAnnouncement says GRAFT ANNOUNCE to a leader's redis port.
func sendAnnouncement(to, raft, redis string) error {
	c, err := dialClient(to, announceTimeout)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.do(announceTimeout, "GRAFT", "ANNOUNCE", raft, redis)
	return err
}

// writeAnnounce is GRAFT ANNOUNCE <raft address> <redis address>. Only members of the group and those that are being
// added have a place in the table, so it cannot grow without bound.
func writeAnnounce(s *session, o *op, args [][]byte) *reply {
	if !strings.EqualFold(string(args[1]), "announce") {
		return errorReply("ERR unknown subcommand '" + string(args[1]) + "'. Try GRAFT ANNOUNCE.")
	}
	peer, err := graft.ParsePeerID(string(args[2]))
	if err != nil {
		return errorReply("ERR " + err.Error())
	}
	if _, _, err := net.SplitHostPort(string(args[3])); err != nil || len(args[3]) > maxAddress {
		return errorReply("ERR the redis address must be host:port")
	}
	if !mayAnnounce(s.r.node.Status(), peer) {
		return errorReply("ERR " + peer.String() + " is not a member of the group")
	}
	o.code = opAnnounce
	o.args = append(o.args, []byte(raftKey(peer)), args[3])
	return nil
}

// mayAnnounce reports whether a peer is a member, or is being added.
func mayAnnounce(st graft.Status, peer graft.PeerID) bool {
	return st.Conf.Contains(peer) || st.OldConf.Contains(peer) ||
		slices.ContainsFunc(st.Followers, func(f graft.FollowerStatus) bool { return f.CatchingUp && f.Peer.Same(peer) })
}

// maxAddress bounds an announced address: a host name's 255 bytes and a port.
const maxAddress = 262
