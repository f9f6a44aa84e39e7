package graft

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// early is a state machine that may fail before it asks for an entry.
type early struct {
	*recorder
	fail func(it *Iterator) // nil: it does not
}

func (e *early) OnApply(it *Iterator) {
	if e.fail != nil {
		e.fail(it)
		return
	}
	e.recorder.OnApply(it)
}

// C14: a state machine that fails before it has asked for an entry takes none back, whatever it was given earlier. What it had asked to
// take back is taken back also if it panics then.
func TestRollbackConcernsWhatWasHandedOut(t *testing.T) {
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		fail    func(it *Iterator)
		applied int64 // of the two entries that are to be applied then, or of those before
		at      int64 // the first that is not
	}{
		"nothing":                          {func(it *Iterator) { it.Rollback(1, broken) }, 0, 1},
		"nothing, though it asks for much": {func(it *Iterator) { it.Rollback(1000, broken) }, 0, 1},
		"one of one":                       {func(it *Iterator) { it.Next(); it.Rollback(1, broken) }, 0, 1},
		"one of two":                       {func(it *Iterator) { it.Next(); it.Next(); it.Rollback(1, broken) }, 1, 2},
		"both":                             {func(it *Iterator) { it.Next(); it.Next(); it.Rollback(2, broken) }, 0, 2},
		"one, at the end":                  {func(it *Iterator) { it.Next(); it.Next(); it.Next(); it.Rollback(1, broken) }, 1, 2},
		"both, and panics":                 {func(it *Iterator) { it.Next(); it.Next(); it.Rollback(2, broken); panic(broken) }, 0, 2},
		"nothing, and panics":              {func(it *Iterator) { it.Rollback(1, broken); panic(broken) }, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := &early{recorder: &recorder{}}
			s := newStage(t, 1, NodeOptions{StateMachine: f})
			s.fsm = f.recorder
			s.until(s.node.IsLeader, "it does not lead")
			for i := range 10 {
				s.apply(fmt.Sprint("entry ", i))
			}
			s.until(func() bool { return s.node.Status().AppliedIndex == s.last() }, "they are not applied")
			before := s.last()
			f.fail = test.fail
			s.apply("a")
			s.apply("b")
			s.until(func() bool { return len(s.fsm.errors()) > 0 }, "OnError was not called")
			require.Equal(t, before+2, s.last())
			assert.Equal(t, before+test.applied, s.node.Status().AppliedIndex)
			e := new(Error)
			require.ErrorAs(t, s.node.Status().Err, &e)
			assert.Equal(t, ErrStateMachine, e.Code)
			if e.Op == "apply" { // it did not panic
				assert.Equal(t, before+test.at, e.Index)
			}
			s.end()
		})
	}
}
