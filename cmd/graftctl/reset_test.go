package main

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/graft-raft/graft"
)

func TestAResetThatIsRefused(t *testing.T) {
	for _, test := range []struct {
		code    int32
		outcome string
	}{
		{int32(graft.ErrUnknownOutcome), outcomeUnknown},
		{int32(graft.ErrInvalid), outcomeNone},
		{codeAccess, outcomeNone},
	} {
		f, _ := braft(t)
		f.set("braft.CliService/reset_peer", refuses(test.code, "so it is"))
		f.set("braft.CliService/get_leader", refuses(codeAgain, "Unknown leader"))
		got := ctl(t, f.address, "reset", f.address, "--peer", f.address, "--"+assent, "--json").failsJSON()
		assert.Equal(t, test.code, got.Code)
		assert.Equal(t, test.outcome, got.Outcome)
		if test.outcome == outcomeUnknown {
			assert.Equal(t, "It may have been reset, or may yet be. See whether it was: graftctl --peers "+f.address+" --group g status", got.Hint)
		}
	}
}
