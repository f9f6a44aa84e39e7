package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
)

func FuzzParse(f *testing.F) {
	var r record
	bt := batchAt(1, 3, 1, 20)
	sum, _ := entry.Check(bt)
	encodeEntries(&r, 1, bt, sum, 0)
	f.Add(append(append(append([]byte{}, r.fixed[:r.nfixed]...), bt.Metas...), bt.Data...))
	encodeState(&r, 1, 2, 3, &extra{hard: HardState{Term: 1, Vote: "v", Override: Override{Term: 1, Conf: "a:1"}}, name: "g", bounds: true, first: 1})
	f.Add(append(append([]byte{}, r.fixed[:r.nfixed]...), r.tail...))
	f.Add(segmentHead{store: 1, seq: 2, inc: 3}.encode())
	f.Add(identity{store: 1, opening: 2, address: "a:1"}.encode())
	head := batchHead{length: batchHeadSize, kind: kindMark}
	b := make([]byte, block)
	head.encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, valid := range []bool{false, true} { // as it is, and with a right CRC
			if valid && len(data) >= recordHeadSize {
				data = bytes.Clone(data)
				binary.LittleEndian.PutUint32(data[4:], uint32(len(data)))
				binary.LittleEndian.PutUint32(data, crcOf(data[4:]))
			}
			var r record
			if _, err := parseRecord(data, &r); err == nil && r.size > len(data) {
				t.Fatal("record is larger than its bytes")
			}
		}
		if h, err := parseSegmentHead(data); err == nil {
			again, err := parseSegmentHead(h.encode())
			require.NoError(t, err)
			require.Equal(t, h, again)
		}
		if id, err := parseIdentity(data); err == nil {
			again, err := parseIdentity(id.encode())
			require.NoError(t, err)
			require.Equal(t, id, again)
		}
		if h, ok := parseBatchHead(data); ok {
			_ = checkBody(&h, data[batchHeadSize:])
		}
	})
}

// FuzzOpen puts rubbish into a file of a log. That is opened or refused, and what can be read is what
// was written.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("rubbish"), uint8(2), uint32(5000), true)
	f.Add(make([]byte, 100), uint8(3), uint32(4096), false)
	f.Add([]byte("GRAFTWAL"), uint8(0), uint32(0), true)
	const entries = 30
	beds := map[bool]*bed{}
	for _, closed := range []bool{false, true} {
		b := newBed(f)
		b.o.SegmentSize = 8 * block
		require.NoError(f, b.open())
		_, err := b.appendAll(b.group("g"), 1, entries, 3000)
		require.NoError(f, err)
		b.run(time.Second)
		if closed {
			b.close()
		}
		beds[closed] = b
	}
	f.Fuzz(func(t *testing.T, data []byte, file uint8, off uint32, closed bool) {
		b := *beds[closed]
		b.sim = actor.NewSim(1)
		fs := b.fs.CrashClone(nil)
		names, err := fs.ReadDir("/d")
		require.NoError(t, err)
		h, err := fs.OpenFile("/d/"+names[int(file)%len(names)], os.O_RDWR, 0)
		require.NoError(t, err)
		_, err = h.WriteAt(data, int64(off%(9*block)))
		require.NoError(t, err)
		s, _, err := b.openCopy(fs)
		if err != nil {
			var c *CorruptError
			require.True(t, errors.As(err, &c) || errors.Is(err, ErrIdentity) || errors.Is(err, ErrVersion), "%v", err)
			return
		}
		g := s.groups["g"]
		if g == nil {
			return // cut off before the first record
		}
		require.LessOrEqual(t, g.Recovered().Last, int64(entries))
		readAll(t, g, func(e entry.Entry) {
			want := fmt.Sprint(e.Index)
			require.Len(t, e.Data, 3000)
			require.Equal(t, want, string(e.Data[:len(want)]))
		})
	})
}

// readAll reads what a group is said to hold.
func readAll(t testing.TB, g *Group, visit func(e entry.Entry)) {
	r := g.Recovered()
	for at := r.First; at <= r.Last; {
		batch, err := g.Read(at, 1000)
		require.NoError(t, err)
		require.Equal(t, at, batch.First)
		for it := batch.Iter(); ; {
			e, ok := it.Next()
			if !ok {
				break
			}
			visit(e)
			at = e.Index + 1
		}
		require.Equal(t, batch.Last()+1, at)
	}
}

// FuzzValidRecords appends batches to a log that are whole and sit where the next ones belong, and whose
// records are anything. That is opened or refused, and if it is opened all of it can be read.
func FuzzValidRecords(f *testing.F) {
	f.Add([]byte{1, 1, 40, 0})
	f.Add([]byte{3, 1, 8, 1, 0, 0, 0, 0, 0, 0, 0, 5, 1, 0})
	f.Add([]byte{4, 1, 16, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0xff, 6, 0, 24})
	f.Add([]byte{2, 7, 56, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0xff, 6, 0, 24})
	base := newBed(f)
	require.NoError(f, base.open())
	_, err := base.appendAll(base.group("g"), 1, 3, 50)
	require.NoError(f, err)
	base.run(time.Second)
	off, crc := base.s.off, base.s.prevCRC
	f.Fuzz(func(t *testing.T, data []byte) {
		b := *base
		b.sim, b.s.off, b.s.prevCRC = actor.NewSim(1), off, crc
		fs := b.fs.CrashClone(nil)
		h, err := fs.OpenFile(b.s.cur.path, os.O_RDWR, 0)
		require.NoError(t, err)
		s := b.s
		for len(data) > 0 && s.off < s.cur.size-64*block {
			fl := &flight{kind: kindPlain}
			data = fuzzFlight(fl, data)
			s.head(fl)
			_, err := h.WriteAt(append(append([]byte{}, fl.head[:]...), fl.raw...), fl.off)
			require.NoError(t, err)
			s.prevCRC = fl.crc
			s.off += fl.size
		}
		again, _, err := b.openCopy(fs)
		if err != nil {
			var c *CorruptError
			require.ErrorAs(t, err, &c)
			return
		}
		for _, name := range again.Groups() {
			readAll(t, again.groups[name], func(entry.Entry) {})
		}
	})
}

// fuzzFlight takes records out of data: type, group, length of the body, body; type 0xff ends the flight. Type 9
// stands for sound entries of which only the first index is chosen.
func fuzzFlight(f *flight, data []byte) (rest []byte) {
	for len(data) >= 3 && data[0] != 0xff {
		typ, group, n := recordType(data[0]), uint64(data[1]), min(int(data[2]), len(data)-3)
		body := data[3 : 3+n]
		data = data[3+n:]
		r := record{typ: typ, nfixed: recordHeadSize, tail: body}
		flags := uint8(0)
		if n > 0 {
			flags = body[0]
		}
		if typ == 9 {
			bt := batchAt(int64(flags)+1, 1+n%5, 1000, n)
			sum, _ := entry.Check(bt)
			encodeEntries(&r, group, bt, sum, 0)
			r.tail = append(append([]byte{}, bt.Metas...), bt.Data...)
		} else {
			r.seal(group, flags)
		}
		f.addRaw(&r)
	}
	if len(data) > 0 && data[0] == 0xff {
		return data[1:]
	}
	return nil
}
