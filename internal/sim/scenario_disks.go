package sim

import "github.com/graft-raft/graft"

// This file is the part of a Scenario's language that is about disks, and snapshots.

// Fill leaves a machine's disk so many bytes of room.
func (s *Scenario) Fill(i int, room int64) {
	m := s.c.machines[i]
	m.full = true
	m.fs.SetCapacity(m.fs.Used() + room)
	s.c.hist.note(i, "disk has room for %d bytes", room)
}

// Empty gives a machine's disk all the room it wants.
func (s *Scenario) Empty(i int) { s.c.machines[i].empty() }

// Refusals is how often the log of a machine's process had no room for something.
func (s *Scenario) Refusals(i int) int64 {
	if m := s.c.machines[i]; m.up && m.host != nil {
		return m.host.StorageStats().Refusals
	}
	return 0
}

// Stop ends a machine's replica in good order, and then its process. It stays off until Restart.
func (s *Scenario) Stop(i int) {
	m := s.c.machines[i]
	m.parked = true
	s.c.guard(m.stop)
}

// Ops is how many operations of a machine's disk so far have changed what a power cut leaves.
func (s *Scenario) Ops(i int) int64 { return s.c.machines[i].ops }

// CutAtOp takes a machine's power right before so many more of these operations are through; it comes back by itself. 0: it does not.
func (s *Scenario) CutAtOp(i int, op int64) { s.c.machines[i].cutIn = op }

// Bulky proposes a large value at a machine.
func (s *Scenario) Bulky(i int) { s.c.clients.bulky(s.c.machines[i]) }

// State is what a machine was like when it was looked at last.
func (s *Scenario) State(i int) graft.SimState { return s.c.machines[i].st }

// Save asks a machine for a snapshot.
func (s *Scenario) Save(i int) { s.c.guard(func() { s.c.saveOn(s.c.machines[i]) }) }

// Copied is how much of the snapshot that a machine is being sent it has, of how much.
func (s *Scenario) Copied(i int) (done, total int64) {
	if m := s.c.machines[i]; m.up && m.node != nil {
		snap := m.node.Status().Snapshot
		return snap.Done, snap.Total
	}
	return 0, 0
}

// OnDisk is where the log begins and ends that a power cut at this moment would leave.
func (s *Scenario) OnDisk(i int) (first, last int64) {
	_, store, err := s.c.machines[i].afterCut()
	if err == nil {
		if g, err := store.Group(groupName); err == nil {
			r := g.Recovered()
			return r.First, r.Last
		}
	}
	return 0, 0
}
