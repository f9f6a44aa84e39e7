package graft

import (
	"errors"
	"slices"

	"github.com/graft-raft/graft/internal/wal"
)

// logBase is a position behind which a log can go on without what comes before: that of a snapshot. The zero
// value is the very beginning.
type logBase struct {
	index, term int64
	conf        confEntry // in force there, joint or not
}

// logStart is a new start of the log: behind a snapshot, without any of the entries there were.
type logStart struct {
	base    logBase
	cut     bool   // storage may hold entries behind base
	durable func() // called when storage has it
}

// truncatePrefix drops the entries before first, as far as they are durable: a snapshot takes their place. Storage
// may keep them for longer.
func (l *logManager) truncatePrefix(first int64) {
	l.mu.Lock()
	first = min(first, l.durable+1)
	if first <= l.first {
		l.mu.Unlock()
		return
	}
	term := l.termLocked(first - 1)
	l.first, l.prevTerm = first, term
	n := 0
	for n+1 < len(l.runs) && l.runs[n+1].First <= first {
		n++
	}
	l.runs = slices.Delete(l.runs, 0, n)
	if first > l.last {
		l.runs = l.runs[:0]
	}
	l.confs.truncatePrefix(first)
	n = 0
	for n < len(l.cache) && l.cache[n].Last() < first {
		l.cacheBytes -= l.cache[n].Size()
		n++
	}
	l.cache = slices.Delete(l.cache, 0, n)
	l.mu.Unlock()
	l.pending.add()
	l.store.TruncatePrefix(first, term, func(err error) {
		if err != nil && !errors.Is(err, wal.ErrNoSpace) { // for want of space the next one does it
			l.onError(err)
		}
		l.pending.done()
	})
}

// holds reports whether the log has the last entry of a snapshot, or knows it as the one before its first, and what
// follows comes from there: where only a part of a new start is on disk it does not, which its terms show.
func (l *logManager) holds(base logBase) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if base.index > l.last || l.termLocked(base.index) != base.term {
		return false
	}
	return base.index == l.last || l.termLocked(base.index+1) >= base.term
}

// startAfter empties the log, which goes on behind a snapshot: it has not got its last entry, so what it has is
// too short, or not what the group has committed. durable is called, on a storage goroutine, when that is sure to
// survive; without it a restart comes to the same by the snapshot. What waits for entries to be durable is returned.
func (l *logManager) startAfter(base logBase, durable func()) (dropped []pendingAck) {
	s, dropped := l.forget(base, durable)
	l.restart(s)
	return dropped
}

// startAfterLater is startAfter for before the node runs: storage is told by retry.
func (l *logManager) startAfterLater(base logBase) {
	s, _ := l.forget(base, func() {})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused, l.begin = true, s
}

// forget is the part of startAfter that is not storage's.
func (l *logManager) forget(base logBase, durable func()) (s *logStart, dropped []pendingAck) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s = &logStart{base: base, cut: l.submitted > base.index || l.cutTo >= 0 || l.cutting, durable: durable}
	s.cut = s.cut || l.begin != nil && l.begin.cut
	l.epoch++
	l.attempt++
	l.starting = s
	l.first, l.last, l.prevTerm = base.index+1, base.index, base.term
	l.durable, l.submitted = base.index, base.index
	l.refused, l.cutting, l.cutTo, l.begin = false, false, -1, nil
	l.runs, l.cache, l.cacheBytes = nil, nil, 0
	l.behind.recount(nil, l.durable)
	l.confs.restart(base.conf)
	dropped, l.acks = l.acks, nil
	return s, dropped
}

// restart has storage drop everything and go on behind a snapshot.
func (l *logManager) restart(s *logStart) {
	cut := true // answered before the prefix is, as all is in order
	if s.cut {
		l.pending.add()
		l.store.TruncateSuffix(s.base.index, func(err error) {
			if cut = err == nil || errors.Is(err, wal.ErrOrder); !cut { // out of order: it has nothing to drop there
				l.notRestarted(s, err)
			}
			l.pending.done()
		})
	}
	l.pending.add()
	l.store.TruncatePrefix(s.base.index+1, s.base.term, func(err error) {
		switch {
		case err != nil:
			l.notRestarted(s, err)
		case cut:
			l.restarted(s)
		}
		l.pending.done()
	})
}

// restarted takes note that storage goes on behind a snapshot.
func (l *logManager) restarted(s *logStart) {
	l.mu.Lock()
	if s == l.starting {
		l.starting = nil
	}
	l.mu.Unlock()
	s.durable()
}

// notRestarted takes note that storage does not go on behind a snapshot yet, or has failed.
func (l *logManager) notRestarted(s *logStart, err error) {
	if errors.Is(err, wal.ErrNoSpace) {
		l.mu.Lock()
		if s == l.starting {
			s.cut = true // storage may take what was submitted since for what follows its old log
			l.refused, l.begin, l.submitted = true, s, s.base.index
		}
		l.mu.Unlock()
	}
	l.onError(err)
}
