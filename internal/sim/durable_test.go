package sim

import (
	"testing"
	"time"

	"github.com/graft-raft/graft"
)

// The others have committed a change that the leader's own disk has no room for, so that its durable state machine is not told of it. If there
// is room later the change is done; if the leader ends before, its outcome is not known.
func TestChangeThatAFullDiskNeverHeld(t *testing.T) {
	for seed := range upTo(8) {
		o := Quiet(seed, 3)
		o.Spares, o.SegmentSize = 1, 64<<10
		o.Snap = SnapOptions{Entries: 1000, Margin: -1, Keep: 1, Delay: time.Millisecond, Durable: true, Keeps: 0.5}
		s := Begin(o)
		s.Join(3)
		lead := s.Leader()
		s.Fill(lead, 0)
		result := func() error { return nil }
		for i := 0; i < 300 && result() == nil; i++ {
			if i%2 == 0 {
				result = s.AddLearner(lead, 3)
			} else {
				result = s.Remove(lead, 3)
			}
			s.Until(10*time.Second, func() bool {
				st := s.State(lead)
				return result() != errPending || st.Stage == graft.StageNone && st.ConfIndex > st.Durable
			})
		}
		s.Run(time.Second)
		if result() != errPending || s.Committed() != s.Conf(lead) || s.Stored(lead) == s.Conf(lead) {
			s.Fail("there is room: %v; committed %s, in force %s, stored %s", result(), s.Committed(), s.Conf(lead), s.Stored(lead))
		}
		if seed%2 == 0 {
			s.Empty(lead)
			s.Done(5*time.Second, "the change", result)
		} else {
			s.Stop(lead)
			s.Refused(5*time.Second, "the change", graft.ErrUnknownOutcome, result)
			if s.Count().Untold == 0 {
				s.Fail("it was not the state machine that could not be told")
			}
		}
		if err := s.End(); err != nil {
			t.Fatal(err)
		}
	}
}
