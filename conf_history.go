package graft

import (
	"slices"
	"sort"

	"github.com/graft-raft/graft/internal/entry"
)

// confEntry is a configuration as the log holds it; old is empty unless it is joint.
type confEntry struct {
	index     int64 // 0: not from the log (the initial configuration, or an override)
	term      int64 // of the entry, or in which the override was made
	conf, old Configuration
}

// joint reports whether both halves count.
func (e confEntry) joint() bool { return !e.old.Empty() }

// hasVoter reports whether the peer counts in one of the quorums.
func (e confEntry) hasVoter(p PeerID) bool {
	return e.conf.ContainsVoter(p) || e.old.ContainsVoter(p)
}

// has reports whether the peer is in one of the halves, whatever it is there.
func (e confEntry) has(p PeerID) bool { return e.conf.Contains(p) || e.old.Contains(p) }

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
	term, peers, old, err := entry.ConfPeers(m.Meta)
	if err != nil {
		return confEntry{}, err
	}
	e := confEntry{index: m.Index, term: term}
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
// An override is a configuration that Node.ResetPeers has put in force. It lasts until an entry of
// its term or a later one is appended, and is back if that is truncated.
//
// Invariants: entries ascend by index and never descend by term; base lies before all of them.
//
// Ownership: its log manager's.
type confHistory struct {
	base     confEntry // in force before the first entry: the initial configuration, or a snapshot's
	entries  []confEntry
	override confEntry // term is 0 if there is none
	former   PeerID    // it was a member before base; the zero value: of nobody that is known
}

// overrides reports whether e gives way to the override.
func (h *confHistory) overrides(e confEntry) bool { return h.override.term > e.term }

// last returns the configuration in force.
func (h *confHistory) last() confEntry {
	if e := h.logged(); !h.overrides(e) {
		return e
	}
	return h.override
}

// logged returns the configuration in force at the end of the log.
func (h *confHistory) logged() confEntry {
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

// votes reports whether the peer has a vote in the configuration in force, or in one that still may be: any from
// the one that governs the commit index on. An override lets nothing count that is older than it.
func (h *confHistory) votes(p PeerID, commit int64) bool {
	if h.last().hasVoter(p) {
		return true
	}
	if h.overrides(h.logged()) {
		return false
	}
	e := h.at(commit)
	n := sort.Search(len(h.entries), func(i int) bool { return h.entries[i].index > e.index })
	for ; ; n++ {
		if h.overrides(e) {
			e = h.override
		}
		if e.hasVoter(p) {
			return true
		}
		if n == len(h.entries) {
			return false
		}
		e = h.entries[n]
	}
}

// removed reports whether the peer was a member once, and is none any more by what is committed and all that
// comes after it.
func (h *confHistory) removed(p PeerID, commit int64) bool {
	has := func(e confEntry) bool { return e.has(p) }
	e := h.at(commit)
	if e.conf.Empty() || has(e) || has(h.last()) {
		return false
	}
	return h.wasMember(p, commit) && !slices.ContainsFunc(h.entries[h.upTo(commit):], has)
}

// wasMember reports whether a configuration that is committed has the peer, or had it before the history begins.
func (h *confHistory) wasMember(p PeerID, commit int64) bool {
	has := func(e confEntry) bool { return e.has(p) }
	return h.former.Same(p) || has(h.base) || slices.ContainsFunc(h.entries[:h.upTo(commit)], has)
}

// upTo is how many entries there are up to an index.
func (h *confHistory) upTo(index int64) int {
	return sort.Search(len(h.entries), func(i int) bool { return h.entries[i].index > index })
}

func (h *confHistory) append(e confEntry) { h.entries = append(h.entries, e) }

// truncateSuffix forgets what is behind last.
func (h *confHistory) truncateSuffix(last int64) {
	n := sort.Search(len(h.entries), func(i int) bool { return h.entries[i].index > last })
	clear(h.entries[n:])
	h.entries = h.entries[:n]
}

// truncatePrefix forgets what is before first, but for the configuration that was in force there.
func (h *confHistory) truncatePrefix(first int64) {
	n := sort.Search(len(h.entries), func(i int) bool { return h.entries[i].index >= first })
	if n > 0 {
		h.base = h.entries[n-1]
		h.entries = slices.Delete(h.entries, 0, n)
	}
}

// restart forgets everything but an override: the log begins behind where e is in force.
func (h *confHistory) restart(e confEntry) { h.base, h.entries = e, nil }
