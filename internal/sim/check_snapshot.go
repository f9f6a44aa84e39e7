package sim

import (
	"path"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// This file holds what must be true of snapshots. What a snapshot includes is committed, so the checker goes on to take
// a log that begins behind one for the whole: what is missing in it is what was committed.

// snapshotDir is where a machine's snapshots are.
const snapshotDir = "/data/snapshots/" + groupName

// rebased checks where a log begins, and takes over what a snapshot has put in the place of a machine's entries.
func (k *checker) rebased(m *machine, old graft.SimState) {
	base := m.st.First - 1
	if base == 0 {
		return
	}
	if base > int64(len(k.committed)) {
		k.c.fail("I16 snapshot fidelity: machine %d: the log begins at %d, committed are %d entries", m.index, m.st.First, len(k.committed))
		return
	}
	if m.st.Snapshot < base && m.st.Installing < base && m.kept.index < base {
		k.c.fail("I16 snapshot fidelity: machine %d: the log begins at %d, its newest snapshot is of %d", m.index, m.st.First, m.st.Snapshot)
	}
	info := k.committed[base-1]
	if got := graft.SimTerm(m.node, base); got != info.term {
		k.c.fail("I3 log matching: machine %d takes the entry before its first, %d, for one of term %d; it is of term %d", m.index, base, got, info.term)
	}
	if int64(len(m.log)) >= base && m.log[base-1] == info {
		if m.st.First > old.First && old.First > 0 {
			k.c.Count.LogsCut++
			if m.st.Snapshot < base {
				k.c.Count.CutAtMark++
			}
		}
		return
	}
	common := min(int64(len(m.log)), base)
	for common > 0 && m.log[common-1] != k.committed[common-1] {
		common--
	}
	if common < old.Commit {
		k.c.fail("I9 ordering: machine %d: a snapshot of %d replaced entries from %d on, had committed %d", m.index, base, common+1, old.Commit)
	}
	if int64(len(m.log)) > common {
		k.c.Count.TailsReplaced++
		if old.Durable < old.Submitted {
			m.unsure = true
		}
		m.cutAt = k.c.sim.Now()
	}
	for _, e := range m.log[common:] {
		e.on &^= setOf(m)
	}
	k.confsCut(m, common)
	m.log = append(m.log[:common:common], k.committed[common:base]...)
	m.marked = min(m.marked, common)
	k.confNews = true
}

// heldBack demands that a durable state machine is given nothing that the own disk does not hold: its index would be ahead of the log
// after a power cut.
func (k *checker) heldBack(m *machine, old graft.SimState) {
	st := m.st
	if !k.c.o.Snap.Durable {
		return
	}
	if st.Role != graft.RoleShutdown {
		m.loads = st.Installing
	}
	if st.Applied > old.Applied && st.Applied > max(st.Durable, m.loads, old.Durable) {
		k.c.fail("I17 disk honesty: machine %d: a durable state machine was given %d, durable is %d", m.index, st.Applied, st.Durable)
	}
	if st.Commit > st.Durable && old.Commit <= old.Durable {
		k.c.Count.HeldBack++
	}
}

// replaced reports whether a snapshot has taken the place of an entry that a process had called durable, one that was committed or
// one behind another than was. was is its log at its end.
func (k *checker) replaced(m *machine, was []*entryInfo, claim *entryInfo) bool {
	base := m.st.First - 1
	return base > 0 && (claim.index <= base || was[base-1] != k.committed[base-1])
}

// installed checks what a machine answers to install_snapshot: it must survive a power cut.
func (k *checker) installed(m *machine, req *rpc.Request, message []byte) {
	asked, resp := new(raftpb.InstallSnapshotRequest), new(raftpb.InstallSnapshotResponse)
	if proto.Unmarshal(req.Message, asked) != nil || proto.Unmarshal(message, resp) != nil {
		k.c.fail("messages: machine %d gives a malformed answer to install_snapshot", m.index)
		return
	}
	k.says(m, resp.GetTerm())
	if !resp.GetSuccess() {
		return
	}
	k.c.Count.InstallsAnswered++
	if graft.SimResumed(m.node) > 0 {
		k.c.Count.CopiesResumed++
	}
	index := asked.GetMeta().GetLastIncludedIndex()
	if st := graft.SimStateOf(m.node); max(st.Durable, st.Snapshot) < index || st.Commit < index && graft.SimTerm(m.node, index) != asked.GetMeta().GetLastIncludedTerm() {
		k.c.fail("I17 disk honesty: machine %d says that it has all up to %d, durable is %d, committed %d", m.index, index, st.Durable, st.Commit)
	}
	k.audit(m)
}

// newest is the newest snapshot on a disk that is whole, 0 if there is none.
func newest(disk *vfs.Mem) (index int64) {
	infos, err := snapdir.Inspect(disk, snapshotDir)
	if err != nil {
		return 0 // there is no directory
	}
	for _, info := range infos {
		if info.Damage == nil {
			_, err := snapdir.VerifyDir(disk, path.Join(snapshotDir, path.Base(info.Path)), snapdir.Watch{})
			if err == nil {
				return info.Index
			}
		}
	}
	return 0
}
