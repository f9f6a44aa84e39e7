package graft

import (
	"errors"
	"fmt"
	"sort"
	"sync"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wal"
)

// LogStorage is where a group keeps its entries, term and vote. What is submitted
// takes effect for Read at once; done functions run once each, in the order of
// submission, must not block, and get nil when the record is durable. The store
// that all groups of a Host share is the implementation (braft: LogStorage and
// RaftMetaStorage in one, so that they share their syncs).
type LogStorage interface {
	Recovered() wal.Recovered
	Append(b entry.Batch, commit int64, done func(error))
	TruncateSuffix(last int64, done func(error))
	TruncatePrefix(first, prevTerm int64, done func(error))
	SaveHardState(h wal.HardState, commit int64, done func(error))
	Read(first int64, maxBytes int) (entry.Batch, error)
}

// logManager is a node's log: where each entry is, what term it has, which
// configuration governs it. The newest entries are in memory, all are in storage.
//
// Invariants: first-1 <= last; cache, when not empty, is contiguous, ends at last and
// holds everything above durable; epoch changes at truncation only, so that a
// completion of a truncated write never counts; the indexes of acks grow.
//
// Ownership: the node's actor alone changes the log. Replicators and the FSM caller read it,
// storage completes into it. mu is a leaf lock: storage is called without it.
type logManager struct {
	store    LogStorage
	maxCache int
	// onDurable is told how far the log is durable, on a storage goroutine. lead is
	// the term that the node led when that was established, 0 if none; acks are the answers that waited for it.
	onDurable func(index, lead int64, acks []pendingAck)
	// onError is told of a failed write, on a storage goroutine.
	onError func(err error)
	// onCut is told, on a storage goroutine, that what waited for a truncation can be submitted, by retry.
	onCut func()
	// pending counts what is submitted, the node's hard state included.
	pending pendingWrites
	behind  logTail // what is not durable

	mu         sync.Mutex
	first      int64
	last       int64
	prevTerm   int64 // of entry first-1
	runs       []entry.TermRun
	confs      confHistory
	cache      []entry.Batch
	cacheBytes int
	durable    int64
	epoch      uint64
	acks       []pendingAck
	lead       int64 // the term in which the node leads; set under mu, see written

	// What storage refused for want of space is submitted again later; until then
	// it lives in the cache. So does what follows a truncation that storage has not answered: it may refuse that, and
	// then take what follows for the continuation of what was to be cut off.
	submitted int64
	cutting   bool // the latest truncation is not answered
	attempt   uint64
	refused   bool
	cutTo     int64     // a truncation behind this was refused; -1: none
	begin     *logStart // a new start of the log was refused; nil: none
	starting  *logStart // the latest one, until storage has it; nil: it has
}

// pendingAck is a follower's answer that waits until its entries are durable.
type pendingAck struct {
	index int64
	term  int64
	req   *rpc.Request
}

// newLogManager takes up what storage holds. base is the snapshot that was loaded; if the log does not hold its last
// entry, the caller follows with startAfter. initial counts if there is neither.
func newLogManager(store LogStorage, initial Configuration, base logBase, maxCache int) (*logManager, error) {
	r := store.Recovered()
	l := &logManager{
		store: store, maxCache: maxCache,
		first: r.First, last: r.Last, prevTerm: r.PrevTerm, runs: r.Runs,
		durable: r.Last, submitted: r.Last, cutTo: -1,
	}
	l.pending.open()
	switch {
	case base.index > 0:
		l.confs.base = base.conf
	case r.Last == 0:
		l.confs.base = confEntry{conf: initial}
	}
	for _, m := range r.Confs {
		if m.Index <= base.index {
			continue
		}
		e, err := parseConfEntry(m)
		if err != nil {
			return nil, fmt.Errorf("configuration entry %d: %w", m.Index, err)
		}
		l.confs.append(e)
	}
	return l, nil
}

// bounds returns the first and last index; the log is empty when last is first-1.
func (l *logManager) bounds() (first, last int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first, l.last
}

func (l *logManager) lastIndex() int64 { _, last := l.bounds(); return last }

// durableIndex returns how far the log is durable on this node.
func (l *logManager) durableIndex() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

// stored returns how much of a commit index may go to storage: what storage is known to hold of the log as it is.
func (l *logManager) stored(commit int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.storedLocked(commit)
}

func (l *logManager) storedLocked(commit int64) int64 {
	if l.starting != nil { // it may hold another log yet, of which that is not true
		return 0
	}
	return min(commit, l.durable)
}

// tail returns the end of the log as accepted, durable or not: whoever compares it with a
// candidate's counts what this node may yet acknowledge.
func (l *logManager) tail() (term, index int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.termLocked(l.last), l.last
}

// term returns the term of an entry, 0 if the log does not hold it (nor knows it
// as the one before its first).
func (l *logManager) term(index int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.termLocked(index)
}

func (l *logManager) termLocked(index int64) int64 {
	if index == l.first-1 {
		return l.prevTerm
	}
	if index < l.first || index > l.last {
		return 0
	}
	i := sort.Search(len(l.runs), func(i int) bool { return l.runs[i].First > index }) - 1
	if i < 0 {
		return 0
	}
	return l.runs[i].Term
}

// firstOfTerm returns the first index from which on entries have the term that the entry at
// index has.
func (l *logManager) firstOfTerm(index int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := sort.Search(len(l.runs), func(i int) bool { return l.runs[i].First > index }) - 1
	if i < 0 {
		return l.first
	}
	return max(l.runs[i].First, l.first)
}

// lastUpToTerm returns the last index not behind limit whose entry has a term not above term, or the
// one before the log.
func (l *logManager) lastUpToTerm(limit, term int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	index := min(limit, l.last)
	for i := len(l.runs) - 1; i >= 0; i-- {
		run := l.runs[i]
		if run.First > index {
			continue
		}
		if run.Term <= term {
			return index
		}
		index = run.First - 1
	}
	return max(index, l.first-1)
}

// conf returns the configuration in force, which is the latest in the log.
func (l *logManager) conf() confEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confs.last()
}

// votes reports whether the peer has a vote in a configuration that is or may be in force.
func (l *logManager) votes(p PeerID, commit int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confs.votes(p, commit)
}

// confAt returns the configuration that governs the entry at index.
func (l *logManager) confAt(index int64) confEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confs.at(index)
}

// removed reports whether the peer was a member once and is none any more.
func (l *logManager) removed(p PeerID, commit int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confs.removed(p, commit)
}

// wasMember reports whether the peer was a member once, by what is committed.
func (l *logManager) wasMember(p PeerID, commit int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confs.wasMember(p, commit)
}

// setFormer says who was a member once, whatever the log that is left says.
func (l *logManager) setFormer(p PeerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.confs.former = p
}

// setOverride puts a configuration in force by hand, until an entry of its term or a later one is
// appended. The zero value is none.
func (l *logManager) setOverride(e confEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.confs.override = e
}

// overridden reports whether the configuration in force is the override.
func (l *logManager) overridden() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confs.overrides(l.confs.logged())
}

// append adds a checked batch at the end. Durability is reported through onDurable. commit goes with it to storage as
// far as storage is known to hold what is committed: it may yet refuse what was submitted before, a truncation
// too, and whoever read commit back would take other entries for committed.
func (l *logManager) append(b entry.Batch, sum entry.Summary, commit int64) error {
	confs := make([]confEntry, 0, len(sum.Confs))
	for _, m := range sum.Confs {
		e, err := parseConfEntry(m)
		if err != nil {
			return fmt.Errorf("configuration entry %d: %w", m.Index, err)
		}
		confs = append(confs, e)
	}
	l.mu.Lock()
	if b.First != l.last+1 {
		l.mu.Unlock()
		return fmt.Errorf("entries from %d after %d", b.First, l.last)
	}
	submit := !l.refused && !l.cutting && l.submitted == l.last // in order
	l.last = b.Last()
	if n := len(l.runs); n == 0 || l.runs[n-1].Term != sum.FirstTerm {
		l.runs = append(l.runs, entry.TermRun{First: b.First, Term: sum.FirstTerm})
	}
	if len(sum.Runs) > 1 {
		l.runs = append(l.runs, sum.Runs[1:]...)
	}
	for _, e := range confs {
		l.confs.append(e)
	}
	l.cache = append(l.cache, b)
	l.cacheBytes += b.Size()
	l.behind.grown(b)
	l.evict()
	commit = l.storedLocked(commit)
	if submit {
		l.submitted = b.Last()
	}
	epoch, attempt := l.epoch, l.attempt
	l.mu.Unlock()
	if submit {
		l.submit(b, commit, epoch, attempt)
	}
	return nil
}

func (l *logManager) submit(b entry.Batch, commit int64, epoch, attempt uint64) {
	first, last := b.First, b.Last()
	l.pending.add()
	l.store.Append(b, commit, func(err error) {
		l.written(epoch, attempt, first, last, err)
		l.pending.done()
	})
}

// written takes note that a write is durable, or is not.
func (l *logManager) written(epoch, attempt uint64, first, last int64, err error) {
	if err != nil {
		l.notWritten(attempt, first, err)
		return
	}
	l.mu.Lock()
	// Storage answers in order: if it has not begun anew by now, this went behind entries of the old log.
	if epoch != l.epoch || last <= l.durable || l.starting != nil {
		l.mu.Unlock()
		return
	}
	l.countDurable(last)
	l.evict()
	// Both belong to the log as it is now: a truncation after this moment must not
	// have its indexes taken for acknowledged.
	lead, acks := l.lead, l.takeAcks(last)
	l.mu.Unlock()
	l.onDurable(last, lead, acks)
}

// countDurable takes note that the log is durable up to last. The caller holds mu.
func (l *logManager) countDurable(last int64) {
	i := sort.Search(len(l.cache), func(i int) bool { return l.cache[i].Last() > l.durable })
	for ; i < len(l.cache) && l.cache[i].Last() <= last; i++ {
		l.behind.shrunk(l.cache[i])
	}
	l.durable = last
}

// setLead says in which term the node leads, 0 for none.
func (l *logManager) setLead(term int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lead = term
}

// notWritten takes note that storage refused the entries from first on, or has failed. What was
// refused before a truncation matters too: some of it may have been kept.
func (l *logManager) notWritten(attempt uint64, first int64, err error) {
	if errors.Is(err, wal.ErrNoSpace) || errors.Is(err, wal.ErrOrder) {
		l.mu.Lock()
		if attempt == l.attempt && first-1 < l.submitted {
			l.refused = true
			l.submitted = first - 1
		}
		l.mu.Unlock()
	}
	l.onError(err)
}

// retry submits again what storage refused, and what waited for that or for a truncation. It reports whether there was
// anything.
func (l *logManager) retry(commit int64) bool {
	l.mu.Lock()
	if l.cutting || !l.refused && l.submitted == l.last {
		l.mu.Unlock()
		return false
	}
	l.refused = false
	l.attempt++
	commit = l.storedLocked(commit)
	epoch, attempt, cut, begin := l.epoch, l.attempt, l.cutTo, l.begin
	l.cutTo, l.begin = -1, nil
	if cut >= 0 && begin == nil { // a new start cuts off more
		l.cutting = true
		l.mu.Unlock()
		l.cut(cut, epoch)
		return true
	}
	var again []entry.Batch
	for _, b := range l.cache {
		if b.Last() > l.submitted {
			again = append(again, b.From(l.submitted+1))
		}
	}
	l.submitted = l.last
	l.mu.Unlock()
	if begin != nil {
		l.restart(begin)
	}
	for _, b := range again {
		l.submit(b, commit, epoch, attempt)
	}
	return true
}

// truncateSuffix drops the entries behind keep. What waits for their durability is
// answered by the caller, who gets it back.
func (l *logManager) truncateSuffix(keep int64) (dropped []pendingAck) {
	l.mu.Lock()
	l.last = keep
	stored := keep < l.submitted
	if stored { // else nothing that storage works on is cut off
		l.epoch++
		l.cutting, l.cutTo = true, -1 // it does the work of one that was refused
	}
	l.submitted = min(l.submitted, keep)
	l.durable = min(l.durable, keep)
	for n := len(l.runs); n > 0 && l.runs[n-1].First > keep; n-- {
		l.runs = l.runs[:n-1]
	}
	l.confs.truncateSuffix(keep)
	for n := len(l.cache); n > 0 && l.cache[n-1].Last() > keep; n-- {
		b := l.cache[n-1]
		l.cacheBytes -= b.Size()
		l.cache[n-1] = entry.Batch{}
		l.cache = l.cache[:n-1]
		if b.First <= keep {
			b = b.Upto(keep)
			l.cache = append(l.cache, b)
			l.cacheBytes += b.Size()
		}
	}
	l.behind.recount(l.cache, l.durable)
	waiting := l.acks[:0:0]
	for _, a := range l.acks {
		if a.index <= keep {
			waiting = append(waiting, a)
		} else {
			dropped = append(dropped, a)
		}
	}
	l.acks = waiting
	epoch := l.epoch
	if l.cutTo > keep {
		l.cutTo = keep
	}
	l.mu.Unlock()
	if stored {
		l.cut(keep, epoch)
	}
	return dropped
}

// cut has storage drop the entries behind keep. What follows waits until it has.
func (l *logManager) cut(keep int64, epoch uint64) {
	l.pending.add()
	l.store.TruncateSuffix(keep, func(err error) {
		l.wasCut(keep, epoch, err)
		l.pending.done()
	})
}

// wasCut takes note that a truncation is durable, or is not. A later one, which cuts off more, or a new start of the log does
// the work of those before it.
func (l *logManager) wasCut(keep int64, epoch uint64, err error) {
	if err == nil { // the truncation being durable, so is everything before it
		l.written(epoch, 0, 0, keep, nil)
	}
	l.mu.Lock()
	latest := epoch == l.epoch
	if latest {
		l.cutting = false
	}
	if latest && errors.Is(err, wal.ErrNoSpace) { // not even the space kept for such records was left
		l.refused, l.cutTo, l.submitted = true, keep, min(l.submitted, keep)
	}
	ready := latest && err == nil && (l.refused || l.submitted < l.last)
	l.mu.Unlock()
	switch {
	case err != nil: // ErrOrder says that storage does not hold so much: then there is nothing to drop
		l.onError(err)
	case ready:
		l.onCut()
	}
}

// ack arranges for the request to be answered once the log is durable up to index,
// and reports whether it is already. Who sends the same again, and then what follows, has given up what he had sent: those
// requests do not wait any more, and are returned. So no more wait than one leader sends ahead, whatever time the disk takes.
func (l *logManager) ack(a pendingAck) (now bool, replaced []pendingAck) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.index <= l.durable {
		return true, nil
	}
	n := len(l.acks)
	for n > 0 && l.acks[n-1].index >= a.index {
		n--
	}
	replaced = append(replaced, l.acks[n:]...)
	clear(l.acks[n:])
	l.acks = append(l.acks[:n], a)
	return false, replaced
}

// takeAcks returns the answers that wait for no more than index. The caller holds mu.
func (l *logManager) takeAcks(index int64) []pendingAck {
	n := 0
	for n < len(l.acks) && l.acks[n].index <= index {
		n++
	}
	if n == 0 {
		return nil
	}
	ready := l.acks[:n:n]
	l.acks = l.acks[n:]
	return ready
}

// allAcks returns every answer that waits.
func (l *logManager) allAcks() []pendingAck {
	l.mu.Lock()
	defer l.mu.Unlock()
	acks := l.acks
	l.acks = nil
	return acks
}

// evict drops the oldest durable batches while the cache is too large. The caller holds mu.
func (l *logManager) evict() {
	n := 0
	for n < len(l.cache)-1 && l.cacheBytes > l.maxCache && l.cache[n].Last() <= l.durable {
		l.cacheBytes -= l.cache[n].Size()
		n++
	}
	if n == 0 {
		return
	}
	if 2*n < len(l.cache) && len(l.cache) < cap(l.cache) {
		clear(l.cache[:n])
		l.cache = l.cache[n:]
		return
	}
	rest := copy(l.cache, l.cache[n:]) // as rarely as the list grows by its length
	clear(l.cache[rest:])
	l.cache = l.cache[:rest]
}

// entries returns batches that begin at index first, of about maxBytes together and
// at least one entry, from memory or from storage. dst is reused.
func (l *logManager) entries(dst []entry.Batch, first int64, maxBytes int) ([]entry.Batch, error) {
	dst = dst[:0]
	l.mu.Lock()
	if first > l.last || first < l.first {
		low, high := l.first, l.last
		l.mu.Unlock()
		if first < low {
			return dst, wal.ErrCompacted
		}
		if first > high {
			return dst, nil
		}
	}
	if len(l.cache) > 0 && l.cache[0].First <= first {
		dst = l.fromCache(dst, first, maxBytes)
		l.mu.Unlock()
		return dst, nil
	}
	l.mu.Unlock()
	b, err := l.store.Read(first, maxBytes)
	if err != nil {
		return dst, err
	}
	return append(dst, b), nil
}

// cached reports whether the entry at index is in memory, or is still to be appended.
func (l *logManager) cached(index int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return index > l.last || len(l.cache) > 0 && l.cache[0].First <= index
}

func (l *logManager) fromCache(dst []entry.Batch, first int64, maxBytes int) []entry.Batch {
	i := sort.Search(len(l.cache), func(i int) bool { return l.cache[i].Last() >= first })
	size := 0
	for ; i < len(l.cache); i++ {
		b := l.cache[i].From(first)
		if size > 0 && size+b.Size() > maxBytes {
			break
		}
		if len(dst) == 0 && b.Size() > maxBytes && b.Count > 1 {
			b = cutTo(b, maxBytes)
		}
		dst = append(dst, b)
		size += b.Size()
		first = b.Last() + 1
		if b.Last() < l.cache[i].Last() {
			break
		}
	}
	return dst
}

// cutTo returns about maxBytes of a batch, at least one entry.
func cutTo(b entry.Batch, maxBytes int) entry.Batch {
	size, last := 0, b.First
	for it := b.Iter(); ; {
		e, ok := it.Next()
		if !ok {
			break
		}
		size += len(e.Data) + len(e.Meta)
		if size > maxBytes && e.Index > b.First {
			break
		}
		last = e.Index
	}
	return b.Upto(last)
}

// leads reports whether the node leads in term, so that what was read from the log before
// the call is that leader's.
func (l *logManager) leads(term int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lead == term
}
