package entry

import (
	"fmt"
	"math"
)

// TermRun says that entries from First on have Term, until the next run.
type TermRun struct{ First, Term int64 }

// ConfMark is a configuration entry: where it is and its raw EntryMeta, a view
// into the batch.
type ConfMark struct {
	Index int64
	Meta  []byte
}

// Summary is what Check learns about a batch on the way. It is zero for an empty
// batch.
type Summary struct {
	FirstTerm, LastTerm int64
	Runs                []TermRun  // nil if all entries have one term
	Confs               []ConfMark // nil if there is none
}

// Check validates a batch that came from a disk or from a peer: every record
// parses, types are known, terms are positive and never decrease, configurations
// have peers and no payload, other entries have no peers, and Count and the
// length of Data are what the records say. Unknown fields are allowed, and an
// absent data_len means no payload, as braft reads it. Check does not allocate for
// a batch of one term without configurations.
func Check(b Batch) (Summary, error) {
	var s Summary
	if b.Count < 0 || b.Count > 0 && (b.First < 1 || b.First > math.MaxInt64-int64(b.Count)) {
		return s, fmt.Errorf("%w: %d entries from index %d", ErrMalformed, b.Count, b.First)
	}
	at, left := 0, uint64(len(b.Data))
	for i := range b.Count {
		m, end, ok := scan(b.Metas, at)
		if !ok {
			return Summary{}, b.explain(i, at)
		}
		if m.typ != Data || m.peers || m.oldPeers || m.term < 1 || m.term != s.LastTerm || m.dataLen > left {
			if err := s.note(b, i, m, end, left); err != nil {
				return Summary{}, err
			}
		}
		at, left = end, left-m.dataLen
	}
	if at != len(b.Metas) {
		return Summary{}, fmt.Errorf("%w: %d bytes of records behind entry %d", ErrMalformed, len(b.Metas)-at, b.Last())
	}
	if left != 0 {
		return Summary{}, fmt.Errorf("%w: %d bytes of payload behind entry %d", ErrMalformed, left, b.Last())
	}
	return s, nil
}

// note checks an entry that is not simply one more DATA entry of the same term,
// and records what is new about it.
func (s *Summary) note(b Batch, i int, m meta, end int, left uint64) error {
	index := b.First + int64(i)
	hasPeers := m.peers || m.oldPeers
	switch {
	case m.typ == Unknown:
		return fmt.Errorf("%w: entry %d: type UNKNOWN", ErrMalformed, index)
	case m.term < 1 || m.term < s.LastTerm:
		return fmt.Errorf("%w: entry %d: term %d after term %d", ErrMalformed, index, m.term, s.LastTerm)
	case m.dataLen > left:
		return fmt.Errorf("%w: entry %d: payload of %d bytes, %d are left", ErrMalformed, index, m.dataLen, left)
	case m.typ != Configuration && hasPeers:
		return fmt.Errorf("%w: entry %d: %v entry with peers", ErrMalformed, index, m.typ)
	case m.typ == Configuration && !m.peers:
		return fmt.Errorf("%w: entry %d: configuration without peers", ErrMalformed, index)
	case m.typ == Configuration && m.dataLen > 0:
		return fmt.Errorf("%w: entry %d: configuration with a payload", ErrMalformed, index)
	}
	if m.typ == Configuration {
		s.Confs = append(s.Confs, ConfMark{Index: index, Meta: b.Metas[end-m.size : end : end]})
	}
	if i == 0 {
		s.FirstTerm = m.term
	} else if m.term != s.LastTerm {
		if s.Runs == nil { // the run before, which was not worth an allocation so far
			s.Runs = append(s.Runs, TermRun{First: b.First, Term: s.FirstTerm})
		}
		s.Runs = append(s.Runs, TermRun{First: index, Term: m.term})
	}
	s.LastTerm = m.term
	return nil
}

// explain says why the record at offset at, of the i-th entry, could not be read.
func (b Batch) explain(i, at int) error {
	msg, n := cutRecord(b.Metas[at:])
	if n == 0 {
		return fmt.Errorf("%w: entry %d: no whole record at offset %d of %d", ErrMalformed, b.First+int64(i), at, len(b.Metas))
	}
	_, err := parse(msg)
	return fmt.Errorf("entry %d: %w", b.First+int64(i), err)
}
