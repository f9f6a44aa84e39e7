package sim

import (
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/graft-raft/graft/internal/actor"
)

// history is what happened lately, for whoever reads a failure, and the hash of all
// that ever happened.
//
// Ownership: the simulation's goroutine.
type history struct {
	sim   *actor.Sim
	start time.Time
	ring  []event
	next  int
	sum   uint64
	cuts  *int64 // counts torn tails
	sink  func(string)
}

// event is formatted only if somebody wants to read it.
type event struct {
	at      time.Duration
	machine int // -1: none
	text    string
	args    []any
	fields  []zapcore.Field
}

const ringSize = 80

func newHistory(s *actor.Sim, cuts *int64) *history {
	return &history{sim: s, start: s.Now(), ring: make([]event, 0, ringSize), cuts: cuts}
}

// note records an event. args are formatted later, so they must not change.
func (h *history) note(machine int, text string, args ...any) {
	h.add(event{machine: machine, text: text, args: args})
}

func (h *history) add(e event) {
	e.at = h.sim.Now().Sub(h.start)
	h.sum = mix(mix(h.sum, uint64(e.at)), uint64(e.machine))
	for i := range len(e.text) {
		h.sum = mix(h.sum, uint64(e.text[i]))
	}
	if h.sink != nil {
		h.sink(e.String())
	}
	if len(h.ring) < ringSize {
		h.ring = append(h.ring, e)
		return
	}
	h.ring[h.next] = e
	h.next = (h.next + 1) % ringSize
}

// String lists the latest events, oldest first.
func (h *history) String() string {
	var b strings.Builder
	for i := range h.ring {
		b.WriteString(h.ring[(h.next+i)%len(h.ring)].String() + "\n")
	}
	return b.String()
}

// String is one line.
func (e event) String() string {
	who := "      "
	if e.machine >= 0 {
		who = fmt.Sprintf("  m%-3d", e.machine)
	}
	text := e.text
	if len(e.args) > 0 {
		text = fmt.Sprintf(text, e.args...)
	}
	if len(e.fields) > 0 {
		enc := zapcore.NewMapObjectEncoder()
		for _, f := range e.fields {
			f.AddTo(enc)
		}
		text += fmt.Sprintf(" %v", enc.Fields)
	}
	return fmt.Sprintf("%16.9fs%s%s", e.at.Seconds(), who, text)
}

// logCore puts what a process logs into the history.
type logCore struct {
	h       *history
	machine int
}

func (c logCore) Enabled(l zapcore.Level) bool { return l >= zapcore.InfoLevel }

// With drops what is the same in every line of a machine.
func (c logCore) With([]zapcore.Field) zapcore.Core { return c }

func (c logCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c logCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if strings.HasPrefix(e.Message, "wal: ") && strings.Contains(e.Message, ": cut at offset") {
		*c.h.cuts++
	}
	c.h.add(event{machine: c.machine, text: e.Message, fields: append([]zapcore.Field(nil), fields...)})
	return nil
}

func (c logCore) Sync() error { return nil }
