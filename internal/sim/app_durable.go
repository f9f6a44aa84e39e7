package sim

import "github.com/graft-raft/graft"

// kept is what a durable state machine has on its disk, which keeps what it was told to keep.
type kept struct {
	index   int64 // up to here all is in it
	applied int64 // the last of the users' entries that is
	confAt  int64 // index of the last configuration reported
	digest  uint64
}

// durableApp is an app that outlives its process, as far as it was kept.
type durableApp struct{ *app }

// DurableIndex is what would survive.
func (a durableApp) DurableIndex() (int64, error) {
	if a.call("DurableIndex") && a.m.opening {
		if a.m.kept.index > 0 {
			a.m.c.Count.Resumed++
		}
	}
	return a.m.kept.index, nil
}

// resume takes up what was kept. Of the entries in it nothing is applied again, and of those behind it nothing is left
// out: the checks of app see to that.
func (a *app) resume() {
	k := a.m.kept
	a.applied, a.digest, a.confAt, a.position = k.applied, k.digest, k.confAt, k.index
	if k.index == 0 {
		return
	}
	if is := a.m.c.check.committed[k.index-1].conf; !is.joint() && is.index() > 0 {
		a.loaded = k.index
	}
}

// keep has the state survive, at times.
func (a *app) keep() {
	o := a.m.c.o.Snap
	if o.Durable && !a.m.proc.Dead() && a.m.rng.Float64() < o.Keeps {
		a.m.kept = kept{index: a.position, applied: a.applied, confAt: a.confAt, digest: a.digest}
	}
}

// stateMachine is what the replica is started with.
func (m *machine) stateMachine() graft.StateMachine {
	if !m.c.o.Snap.Durable {
		return m.app
	}
	m.app.resume()
	return durableApp{m.app}
}
