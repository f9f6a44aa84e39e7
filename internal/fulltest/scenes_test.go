package fulltest

import (
	"testing/synctest"
	"time"

	"github.com/graft-raft/graft"
)

// step is how closely the scenes look: less than a message or a sync takes.
const step = 20 * time.Microsecond

var electionScenes = []scene{
	{name: "first election", seeds: 8, members: 3, window: 150 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Leader.IsZero() },
		enter: func(w *world) int {
			w.start(w.first()...)
			return w.rng.IntN(w.members)
		}},
	{name: "alone in the first election", seeds: 3, members: 1, window: time.Millisecond,
		is: func(s graft.Status) bool { return s.AppliedIndex < 2 },
		enter: func(w *world) int {
			w.start(0)
			w.propose(0)
			w.read(0)
			return 0
		}},
	{name: "pre-vote", seeds: 5, members: 3, window: 300 * time.Microsecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleFollower && s.Leader.IsZero() },
		enter: func(w *world) int {
			lead := w.settle()
			w.isolate(lead)
			w.hear("pre_vote")
			return w.others(lead)[0]
		}},
	{name: "candidate", seeds: 5, members: 3, window: 300 * time.Microsecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleCandidate },
		enter: func(w *world) int {
			lead := w.settle()
			w.isolate(lead)
			w.propose(lead)
			return w.find("a candidate", func(s graft.Status) bool { return s.Role == graft.RoleCandidate })
		}},
	{name: "first entry of a leader", seeds: 4, members: 3, window: 300 * time.Microsecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleLeader && s.Stage != graft.StageNone },
		enter: func(w *world) int {
			w.isolate(w.settle())
			subject := w.find("a new leader", func(s graft.Status) bool { return s.Role == graft.RoleLeader && s.Term > 1 })
			w.read(subject) // waits for that entry
			w.propose(subject)
			w.change(subject, 0)
			return subject
		}},
	{name: "following", seeds: 3, members: 3, window: 300 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleFollower && !s.Leader.IsZero() },
		enter: func(w *world) int {
			return w.others(w.settle())[0]
		}},
}

// find returns the first host of which the condition holds in an election to come.
func (w *world) find(what string, cond func(s graft.Status) bool) (found int) {
	w.t.Helper()
	for began := time.Now(); time.Since(began) < 20*electionTimeout; {
		w.hear("pre_vote") // up to here nothing happens
		for range 200 {
			found = w.who(func(_ *graft.Node, s graft.Status) bool { return cond(s) })
			if found >= 0 {
				return found
			}
			time.Sleep(step)
			synctest.Wait()
		}
	}
	w.t.Fatal("not seen: " + what)
	return -1
}

var leaderScenes = []scene{
	{name: "proposals in flight", seeds: 6, members: 3, window: 2 * time.Millisecond,
		is: func(s graft.Status) bool { return s.PendingEntries > 0 },
		enter: func(w *world) int {
			lead := w.settle()
			for range 40 {
				w.proposeBytes(lead, w.rng.IntN(2000))
			}
			w.read(lead)
			return lead
		}},
	{name: "under load", seeds: 6, members: 3, window: 20 * time.Millisecond,
		is: func(s graft.Status) bool { return s.PendingEntries > 0 && s.PendingReads > 0 },
		enter: func(w *world) int {
			lead := w.settle()
			w.load(3, 2*time.Millisecond)
			return lead
		}},
	{name: "proposals that cannot be committed", seeds: 4, members: 3, window: 1500 * time.Millisecond,
		is: func(s graft.Status) bool { return s.PendingEntries > 0 && s.Role == graft.RoleLeader },
		enter: func(w *world) int {
			lead := w.settle()
			w.isolate(lead)
			for range 20 {
				w.propose(lead)
			}
			return lead
		}},
	{name: "reads", seeds: 4, members: 3, window: 400 * time.Microsecond,
		is: func(s graft.Status) bool { return s.PendingReads > 0 },
		enter: func(w *world) int {
			lead := w.settle()
			w.propose(lead)
			for range 10 {
				w.read(lead)
				w.read(w.others(lead)[0])
			}
			return w.rng.IntN(w.members)
		}},
	{name: "reads that cannot be confirmed", seeds: 4, members: 3, window: 1500 * time.Millisecond,
		is: func(s graft.Status) bool { return s.PendingReads > 0 && s.Role == graft.RoleLeader },
		enter: func(w *world) int {
			lead := w.settle()
			w.isolate(lead)
			for range 10 {
				w.read(lead)
			}
			return lead
		}},
	{name: "reads whose leader does not answer", seeds: 4, members: 3, window: 1500 * time.Millisecond,
		is: func(s graft.Status) bool { return s.PendingReads > 0 && s.Role == graft.RoleFollower },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.others(lead)[0]
			w.net.cutOneWay(w.hosts[lead].addr, w.hosts[subject].addr)
			for range 10 {
				w.read(subject)
			}
			return []int{lead, subject}[w.rng.IntN(2)]
		}},
	{name: "transfer", seeds: 4, members: 3, window: 600 * time.Microsecond,
		is: func(s graft.Status) bool { return !s.Transferring.IsZero() },
		enter: func(w *world) int {
			lead := w.settle()
			to := w.others(lead)[0]
			w.propose(lead)
			w.transfer(lead, to)
			return []int{lead, to}[w.rng.IntN(2)]
		}},
	{name: "transfer to a peer that has fallen silent", seeds: 4, members: 3, window: 1200 * time.Millisecond,
		is: func(s graft.Status) bool { return !s.Transferring.IsZero() },
		enter: func(w *world) int {
			lead := w.settle()
			to := w.others(lead)[0]
			w.net.cut(w.hosts[lead].addr, w.hosts[to].addr)
			w.propose(lead)
			w.transfer(lead, to)
			time.Sleep(time.Millisecond)
			w.propose(lead) // refused meanwhile
			return lead
		}},
}

var changeScenes = []scene{
	{name: "catching up", seeds: 5, members: 3, spares: 1, window: 3 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Stage == graft.StageCatchingUp },
		enter: func(w *world) int {
			lead := w.settle()
			w.start(3)
			for range 100 {
				w.proposeBytes(lead, 500)
			}
			w.change(lead, 0, 1, 2, 3)
			return lead
		}},
	{name: "catching up a peer that does not answer", seeds: 5, members: 3, spares: 1, window: 1200 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Stage == graft.StageCatchingUp },
		enter: func(w *world) int {
			lead := w.settle()
			w.net.dialing(w.hosts[lead].addr, w.hosts[3].addr, dialMode(w.rng.IntN(3)))
			w.change(lead, 0, 1, 2, 3)
			if w.rng.IntN(3) == 0 {
				w.pass(electionTimeout)
				w.cancel(lead)
			}
			return lead
		}},
	{name: "joint", seeds: 6, members: 3, spares: 2, window: 500 * time.Microsecond,
		is: func(s graft.Status) bool { return s.Stage == graft.StageJoint },
		enter: func(w *world) int {
			return w.changing(graft.StageJoint, 0, 3, 4)
		}},
	{name: "stable", seeds: 4, members: 3, spares: 1, window: 500 * time.Microsecond,
		is: func(s graft.Status) bool { return s.Stage == graft.StageStable && s.Change != nil },
		enter: func(w *world) int {
			return w.changing(graft.StageStable, 0, 1, 2, 3)
		}},
	{name: "joint, and nobody answers", seeds: 4, members: 3, spares: 2, window: 1500 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Stage == graft.StageJoint },
		enter: func(w *world) int {
			lead := w.changing(graft.StageJoint, 0, 3, 4)
			w.isolate(lead)
			w.propose(lead)
			return lead
		}},
	{name: "leader that is removed", seeds: 4, members: 3, window: time.Millisecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleLeader && !s.Conf.Contains(s.Peer) },
		enter: func(w *world) int {
			lead := w.settle()
			w.change(lead, w.others(lead)...)
			until(w.t, step, electionTimeout, "the leader is no member", func() bool {
				return !w.node(lead).Status().Conf.Contains(w.peer(lead))
			})
			return lead
		}},
	{name: "under administration", seeds: 6, members: 3, spares: 2, window: 300 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleLeader },
		enter: func(w *world) int {
			lead := w.settle()
			w.start(3, 4)
			w.load(2, 5*time.Millisecond)
			w.administer(5 * time.Millisecond)
			return lead
		}},
	{name: "reset by hand", slow: time.Second, seeds: 5, members: 3, window: 30 * time.Millisecond,
		is: func(s graft.Status) bool { return !s.Overridden || s.Role != graft.RoleLeader },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.others(lead)[0]
			for i := range w.hosts { // for good
				if i != subject {
					w.await(time.Minute, w.close(i))
				}
			}
			w.forked = true
			w.hosts[subject].disk.slow(20 * time.Millisecond)
			w.reset(subject, subject)
			w.reset(subject, subject)
			w.propose(subject)
			return subject
		}},
}

// changing begins a change under load and returns the leader as soon as it has come to a stage.
func (w *world) changing(stage graft.Stage, to ...int) (lead int) {
	lead = w.settle()
	for i := w.members; i < len(w.hosts); i++ {
		w.start(i)
	}
	for range 20 {
		w.propose(lead)
	}
	c := w.change(lead, to...)
	until(w.t, step, 10*electionTimeout, "stage "+stage.String(), func() bool {
		return c.over() || w.node(lead).Status().Stage == stage
	})
	return lead
}

var troubleScenes = []scene{
	{name: "unreachable peer", seeds: 6, members: 3, window: 3 * time.Second,
		is: func(s graft.Status) bool { return len(s.Followers) == 2 && s.Followers[0].Err != s.Followers[1].Err },
		enter: func(w *world) int {
			lead := w.settle()
			a, b := w.hosts[lead].addr, w.hosts[w.others(lead)[0]].addr
			switch w.rng.IntN(4) {
			case 0:
				w.net.dialing(a, b, dialHangs)
				w.net.reset(a, b)
			case 1:
				w.net.dialing(a, b, dialRefused)
				w.net.reset(a, b)
			case 2:
				w.net.stallAfter(a, b, w.rng.IntN(3000))
			case 3:
				w.net.stallAfter(b, a, w.rng.IntN(3000))
			}
			for range 50 {
				w.proposeBytes(lead, 100)
				w.pass(time.Millisecond)
			}
			return lead
		}},
	{name: "slow disk", slow: 10 * time.Second, seeds: 5, members: 3, window: 500 * time.Millisecond,
		is: func(s graft.Status) bool { return s.DurableIndex < s.LastIndex },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.rng.IntN(w.members)
			w.hosts[subject].disk.slow(w.upTo(time.Second))
			for range 20 {
				w.propose(lead)
				time.Sleep(time.Millisecond)
			}
			return subject
		}},
	{name: "all disks slow, in an election", slow: 10 * time.Second, seeds: 4, members: 3, window: 200 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleCandidate },
		enter: func(w *world) int {
			lead := w.settle()
			for _, h := range w.hosts {
				h.disk.slow(100*time.Millisecond + w.upTo(300*time.Millisecond))
			}
			w.propose(lead)
			w.isolate(lead)
			return w.find("a candidate", func(s graft.Status) bool { return s.Role == graft.RoleCandidate })
		}},
	{name: "stuck disk", seeds: 4, members: 3, window: 1500 * time.Millisecond, held: true,
		is: func(s graft.Status) bool { return s.DurableIndex < s.LastIndex },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.rng.IntN(w.members)
			w.hosts[subject].disk.hang()
			for range 20 {
				w.propose(lead)
			}
			return subject
		}},
	{name: "full disk", seeds: 5, members: 3, window: 300 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Err != nil },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.rng.IntN(w.members)
			disk := w.hosts[subject].disk.fs
			disk.SetCapacity(disk.Used())
			for range 60 {
				w.proposeBytes(lead, 4000)
				w.pass(2 * time.Millisecond)
			}
			return subject
		}},
	{name: "failing disks", seeds: 4, members: 3, window: 500 * time.Microsecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleFailed },
		enter: func(w *world) int {
			lead := w.settle()
			w.load(2, time.Millisecond)
			w.pass(5 * time.Millisecond)
			w.badDisk = true
			for _, h := range w.hosts {
				h.disk.breakDown()
			}
			return lead
		}},
	{name: "failing disk", seeds: 5, members: 3, window: 3 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleFailed },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.rng.IntN(w.members)
			w.badDisk = true
			w.hosts[subject].disk.breakDown()
			for range 10 {
				w.propose(lead)
			}
			w.read(subject)
			return subject
		}},
	{name: "blocked state machine", seeds: 4, members: 3, window: 1500 * time.Millisecond, held: true,
		is: func(s graft.Status) bool { return s.AppliedIndex < s.CommitIndex },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.rng.IntN(w.members)
			w.hosts[subject].fsm.hold()
			for range 10 {
				w.propose(lead)
			}
			time.Sleep(time.Millisecond)
			w.read(subject)
			return subject
		}},
	{name: "slow state machine", slow: time.Second, seeds: 4, members: 3, window: 500 * time.Millisecond,
		is: func(s graft.Status) bool { return s.AppliedIndex < s.CommitIndex },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.rng.IntN(w.members)
			w.hosts[subject].fsm.slow(20 * time.Millisecond)
			for range 20 {
				w.propose(lead)
			}
			time.Sleep(time.Millisecond)
			w.read(subject)
			return subject
		}},
	{name: "state machine that panics", seeds: 6, members: 3, window: time.Millisecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleFailed },
		enter: func(w *world) int {
			lead := w.settle()
			callbacks := []string{"an entry", "OnApply", "OnLeaderStop", "OnStopFollowing", "OnShutdown", "OnError"}
			subject := w.rng.IntN(w.members)
			w.hosts[subject].fsm.sabotage(callbacks[w.rng.IntN(len(callbacks))])
			for range 10 {
				w.propose(lead)
			}
			w.read(subject)
			return subject
		}},
	{name: "failed, with reads that wait for entries", seeds: 4, members: 3, window: 200 * time.Microsecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleFailed },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.rng.IntN(w.members)
			m := w.hosts[subject].fsm
			m.hold()
			m.sabotage("an entry")
			w.propose(lead)
			w.propose(lead)
			time.Sleep(10 * time.Millisecond)
			for range 5 {
				w.read(subject)
			}
			time.Sleep(time.Millisecond)
			m.open()
			return subject
		}},
	{name: "failed", seeds: 3, members: 3, window: 2 * time.Second,
		is: func(s graft.Status) bool { return s.Role == graft.RoleFailed },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.rng.IntN(w.members)
			w.hosts[subject].fsm.sabotage("an entry")
			w.propose(lead)
			until(w.t, step, electionTimeout, "the error state", func() bool { return w.node(subject).Status().Role == graft.RoleFailed })
			w.propose(subject)
			w.read(subject)
			return subject
		}},
}
