package entry_test

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/raftpb"
)

// oracle parses records with generated code and returns false where a log must not
// hold them.
func oracle(b entry.Batch) (metas []*raftpb.EntryMeta, ok bool) {
	rest, left, last := b.Metas, int64(len(b.Data)), int64(1)
	for len(rest) > 0 {
		msg, n := protowire.ConsumeBytes(rest[1:])
		if rest[0] != 0x3a || n < 0 {
			return nil, false
		}
		rest = rest[1+n:]
		var m raftpb.EntryMeta
		if proto.Unmarshal(msg, &m) != nil || wrongType(&m) {
			return nil, false
		}
		isConf := m.GetType() == raftpb.EntryType_CONFIGURATION
		if m.GetType() < 1 || m.GetType() > 3 || isConf != (len(m.Peers) > 0) || !isConf && len(m.OldPeers) > 0 ||
			m.GetTerm() < last || m.GetDataLen() < 0 || m.GetDataLen() > left || isConf && m.GetDataLen() > 0 {
			return nil, false
		}
		last, left = m.GetTerm(), left-m.GetDataLen()
		metas = append(metas, &m)
	}
	return metas, left == 0 && len(metas) == b.Count
}

// wrongType reports whether m kept one of its own fields as an unknown one, because
// its wire type, or the enum's value, is not the declared one.
func wrongType(m *raftpb.EntryMeta) bool {
	for rest := []byte(m.ProtoReflect().GetUnknown()); len(rest) > 0; {
		num, _, n := protowire.ConsumeField(rest)
		if num <= 5 {
			return true
		}
		rest = rest[n:]
	}
	return false
}

func FuzzCheck(f *testing.F) {
	add := func(b entry.Batch) { f.Add(b.Metas, b.Data, b.Count) }
	add(uniform(3, 1, 5))
	add(uniform(2, 300, 200))
	var b entry.Builder
	b.Reset(1)
	b.AppendConf(2, peerNames, peerNames[:1])
	b.AppendData(3, []byte("x"))
	b.AppendConf(200, peerNames[:2], nil)
	add(b.Build())
	f.Add(raw(0x08, 1, 0x30, 9, 0x10, 2, 0x20, 1, 0x43, 0x08, 1, 0x44), []byte("x"), 1)
	f.Add(raw(0x20, 0x80, 0x00, 0x10, 1, 0x08, 1), []byte(nil), 1)
	f.Fuzz(func(t *testing.T, metas, data []byte, count int) {
		batch := entry.Batch{First: 1, Count: count, Metas: metas, Data: data}
		got, err := entry.Check(batch)
		if n := count; n >= 0 && n < 1<<20 { // cutting must be safe on any bytes
			_ = batch.From(2).From(int64(n)).Upto(3)
		}
		if n, cerr := entry.CountMetas(metas); err == nil && (cerr != nil || n != count) {
			t.Fatalf("CountMetas = %d, %v for %d checked entries", n, cerr, count)
		}
		want, ok := oracle(batch)
		if err != nil {
			if !errors.Is(err, entry.ErrMalformed) {
				t.Fatalf("error %v", err)
			}
			// Generated code cuts an enum's value to 32 bits; Check does not.
			if ok && !hasLongType(metas) && count <= math.MaxInt32 {
				t.Fatalf("Check refused %x: %v", metas, err)
			}
		} else if !ok {
			t.Fatalf("Check accepted %x with %d bytes", metas, len(data))
		}
		walk(t, batch, want, err == nil, got)
	})
}

// hasLongType reports whether some record gives a type of more than 32 bits.
func hasLongType(metas []byte) bool {
	for rest := metas; len(rest) > 0; {
		msg, n := protowire.ConsumeBytes(rest[1:])
		rest = rest[1+n:]
		for len(msg) > 0 {
			num, typ, n := protowire.ConsumeTag(msg)
			msg = msg[n:]
			if v, _ := protowire.ConsumeVarint(msg); num == 2 && v > math.MaxInt32 {
				return true
			}
			msg = msg[protowire.ConsumeFieldValue(num, typ, msg):]
		}
	}
	return false
}

// walk iterates over the batch and compares it with the oracle's if it is valid.
func walk(t *testing.T, batch entry.Batch, want []*raftpb.EntryMeta, valid bool, s entry.Summary) {
	it, data := batch.Iter(), batch.Data
	confs := s.Confs
	for i := 0; ; i++ {
		e, more := it.Next()
		if !more {
			if valid && i != len(want) {
				t.Fatalf("Iter stopped after %d of %d", i, len(want))
			}
			return
		}
		_, peers, old, err := entry.ConfPeers(e.Meta)
		if !valid {
			continue
		}
		m := want[i]
		n := m.GetDataLen()
		if e.Index != int64(i)+1 || e.Term != m.GetTerm() || int32(e.Type) != int32(m.GetType()) || !bytes.Equal(e.Data, data[:n]) {
			t.Fatalf("entry %d: got %+v, want %v", i, e, m)
		}
		data = data[n:]
		if e.Type != entry.Configuration {
			continue
		}
		if err != nil || len(peers) != len(m.Peers) || len(old) != len(m.OldPeers) || confs[0].Index != e.Index || !bytes.Equal(confs[0].Meta, e.Meta) {
			t.Fatalf("configuration %d: %v %v %v, want %v", i, peers, old, err, m)
		}
		confs = confs[1:]
	}
}
