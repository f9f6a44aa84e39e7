package graft

import (
	"sort"

	"github.com/graft-raft/graft/internal/entry"
)

// confEntry is a configuration as the log holds it; old is empty unless it is joint.
type confEntry struct {
	index     int64 // 0: not from the log (the initial configuration)
	conf, old Configuration
}

// joint reports whether both halves count.
func (e confEntry) joint() bool { return !e.old.Empty() }

// hasVoter reports whether the peer counts in one of the quorums.
func (e confEntry) hasVoter(p PeerID) bool {
	return e.conf.ContainsVoter(p) || e.old.ContainsVoter(p)
}

// peers returns everybody who gets the log: both halves, each peer once.
func (e confEntry) peers() []PeerID {
	all := e.conf.Peers()
	for _, p := range e.old.peers {
		if !e.conf.Contains(p) {
			all = append(all, p)
		}
	}
	return all
}

// parseConfEntry reads a configuration entry's raw EntryMeta.
func parseConfEntry(m entry.ConfMark) (confEntry, error) {
	peers, old, err := entry.ConfPeers(m.Meta)
	if err != nil {
		return confEntry{}, err
	}
	e := confEntry{index: m.Index}
	if e.conf, err = configurationOf(peers); err != nil {
		return confEntry{}, err
	}
	e.old, err = configurationOf(old)
	return e, err
}

// confHistory says which configuration governs which index. A configuration is in
// force from the moment its entry is appended, and no longer once it is truncated
// (Raft thesis §4.1; braft: ConfigurationManager).
//
// Invariants: entries ascend by index; base lies before all of them.
//
// Ownership: its log manager's.
type confHistory struct {
	base    confEntry // in force before the first entry: the initial configuration, or a snapshot's
	entries []confEntry
}

// last returns the configuration in force at the end of the log.
func (h *confHistory) last() confEntry {
	if n := len(h.entries); n > 0 {
		return h.entries[n-1]
	}
	return h.base
}

// at returns the configuration that was in force at index.
func (h *confHistory) at(index int64) confEntry {
	n := sort.Search(len(h.entries), func(i int) bool { return h.entries[i].index > index })
	if n == 0 {
		return h.base
	}
	return h.entries[n-1]
}

// previous returns the configuration before the latest, and false if there is none.
func (h *confHistory) previous() (confEntry, bool) {
	switch n := len(h.entries); n {
	case 0:
		return confEntry{}, false
	case 1:
		return h.base, true
	default:
		return h.entries[n-2], true
	}
}

func (h *confHistory) append(e confEntry) { h.entries = append(h.entries, e) }

// truncateSuffix forgets what is behind last.
func (h *confHistory) truncateSuffix(last int64) {
	n := sort.Search(len(h.entries), func(i int) bool { return h.entries[i].index > last })
	clear(h.entries[n:])
	h.entries = h.entries[:n]
}
