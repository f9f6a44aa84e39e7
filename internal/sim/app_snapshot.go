package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/graft-raft/graft"
)

// compare checks the state against that of all others that have come as far.
func (a *app) compare(c *Cluster) {
	if have, ok := c.check.digests[a.applied]; ok && have != a.digest {
		c.fail("I6 state machine safety: machine %d has another state at %d than others", a.m.index, a.applied)
	}
	c.check.digests[a.applied] = a.digest
}

// stateSize is what a snapshot has at least.
const stateSize = 24

// OnSnapshotSave saves the state as it is now, some time later.
func (a *app) OnSnapshotSave(w *graft.SnapshotWriter, done graft.Closure) {
	c := a.m.c
	if !a.call("OnSnapshotSave") {
		return
	}
	if c.o.Snap.Entries == 0 {
		a.BaseStateMachine.OnSnapshotSave(w, done)
		return
	}
	c.Count.SavesBegun++
	committed := c.check.committed
	if w.Index() < a.applied || w.Index() > int64(len(committed)) || committed[w.Index()-1].term != w.Term() {
		c.fail("I16 snapshot fidelity: machine %d: snapshot of %d, term %d, has applied %d", a.m.index, w.Index(), w.Term(), a.applied)
		return
	}
	a.skipTo(w.Index() + 1)
	state := binary.BigEndian.AppendUint64(nil, uint64(a.applied))
	state = binary.BigEndian.AppendUint64(state, uint64(a.confAt))
	state = binary.BigEndian.AppendUint64(state, a.digest)
	pad := a.m.rng.IntN(c.o.Snap.Size + 1)
	breaks := !c.healed && c.o.Faults.App > 0 && a.m.rng.IntN(20) == 0
	c.later(1+time.Duration(a.m.rng.Int64N(int64(c.o.Snap.Delay)+1)), a.m, func() {
		err := writeState(w, state, pad)
		if breaks {
			err = errors.Join(err, errors.New("simulated failure to save"))
		}
		if err != nil {
			c.Count.SavesFailed++
		}
		done(err)
		done(err) // who calls twice is heard once
	})
}

// bulkPart is how much of the bulk is in one file: what was copied of a snapshot is kept by whole files, if they are small.
const bulkPart = 48 << 10

// writeState writes the state, and files of what stands for the bulk of it, which is the same for the same state.
func writeState(w *graft.SnapshotWriter, state []byte, pad int) error {
	f, err := w.Create("state")
	if err != nil {
		return err
	}
	_, err = f.Write(state)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	i := 0
	for part := range slices.Chunk(padding(state, pad), bulkPart) {
		if f, err = w.Create(fmt.Sprintf("bulk/%03d", i)); err != nil {
			return err
		}
		_, err = f.Write(part)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		i++
	}
	return nil
}

func padding(state []byte, n int) []byte {
	b := make([]byte, n)
	h := sumOf(state)
	for i := range b {
		if i%64 == 0 {
			h = mix(h, uint64(i))
		}
		b[i] = byte(h >> (i % 57))
	}
	return b
}

// OnSnapshotLoad replaces the state, and checks that it is one that others had.
func (a *app) OnSnapshotLoad(r *graft.SnapshotReader) error {
	c := a.m.c
	if !a.call("OnSnapshotLoad") {
		return errors.New("killed")
	}
	c.Count.Loaded++
	if a.m.opening {
		c.Count.LoadedAtStart++
	}
	state, err := readState(r)
	if err != nil {
		if !a.m.injected && !a.m.proc.Dead() {
			c.fail("I16 snapshot fidelity: machine %d: snapshot %d cannot be read: %v", a.m.index, r.Index(), err)
		}
		return err
	}
	applied, confAt, digest := int64(binary.BigEndian.Uint64(state)), int64(binary.BigEndian.Uint64(state[8:])), binary.BigEndian.Uint64(state[16:])
	committed := c.check.committed
	if index := r.Index(); index > int64(len(committed)) || committed[index-1].term != r.Term() || applied > index || applied < a.applied {
		c.fail("I16 snapshot fidelity: machine %d loads snapshot %d of term %d, with %d applied; it has %d, committed are %d",
			a.m.index, index, r.Term(), applied, a.applied, len(committed))
		return nil
	}
	is := committed[r.Index()-1].conf
	if conf, old := r.Conf(); !conf.Equal(is.conf) || !old.Equal(is.old) {
		c.fail("I16 snapshot fidelity: machine %d loads snapshot %d with configuration %v from %v; committed is %v", a.m.index, r.Index(), conf, old, is)
	}
	a.applied, a.confAt, a.digest, a.position, a.loaded = applied, confAt, digest, r.Index(), 0
	a.compare(c)
	a.skipTo(r.Index() + 1)
	if !is.joint() {
		a.loaded = r.Index()
	}
	a.keep()
	return nil
}

func readState(r *graft.SnapshotReader) ([]byte, error) {
	f, err := r.Open("state")
	if err != nil {
		return nil, err
	}
	state, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(state) != stateSize {
		return nil, fmt.Errorf("the state has %d bytes", len(state))
	}
	var bulk []byte
	names := r.Files()
	slices.Sort(names)
	for _, name := range names {
		if !strings.HasPrefix(name, "bulk/") {
			continue
		}
		if f, err = r.Open(name); err != nil {
			return nil, err
		}
		part, err := io.ReadAll(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		bulk = append(bulk, part...)
	}
	if string(bulk) != string(padding(state, len(bulk))) {
		return nil, errors.New("the bulk belongs to another state")
	}
	return state, nil
}

// reported checks the configuration that is reported when a snapshot was loaded.
func (a *app) reported(conf graft.Configuration, index int64) {
	is := a.m.c.check.committed[a.loaded-1].conf
	if index != is.index() || !conf.Equal(is.conf) {
		a.m.c.fail("I16 snapshot fidelity: machine %d: with snapshot %d configuration %d is reported: %v; committed is %v", a.m.index, a.loaded, index, conf, is)
	}
	a.loaded = 0
}

// saveOn asks a machine for a snapshot, as an operator does.
func (c *Cluster) saveOn(m *machine) {
	if !m.ready() {
		return
	}
	c.Count.SavesAsked++
	boot, over := m.boot, false
	m.calls++
	m.node.Snapshot(func(err error) {
		switch {
		case m.boot != boot || over:
			c.fail("I13 exactly one answer: machine %d: a snapshot is answered twice, or by a dead process, with %v", m.index, err)
			return
		case m.proc.Dead():
			return
		}
		over = true
		m.calls--
	})
}
