package election

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestUpToDateComparesTermsFirst(t *testing.T) {
	for _, test := range []struct {
		p, o Position
		want bool
	}{
		{Position{2, 1}, Position{1, 9}, true}, // a longer log of an older term loses
		{Position{1, 9}, Position{2, 1}, false},
		{Position{2, 5}, Position{2, 5}, true},
		{Position{2, 4}, Position{2, 5}, false},
		{Position{}, Position{}, true},
	} {
		assert.Equal(t, test.want, test.p.Covers(test.o), "%v covers %v", test.p, test.o)
	}
}

func TestVote(t *testing.T) {
	last := Position{3, 7}
	for name, test := range map[string]struct {
		v             Voter
		r             Request
		preVote, vote bool
	}{
		"fresh term":                        {Voter{Term: 4, Last: last}, Request{4, last}, true, true},
		"stale term":                        {Voter{Term: 5, Last: last}, Request{4, last}, false, false},
		"shorter log":                       {Voter{Term: 4, Last: last}, Request{4, Position{3, 6}}, false, false},
		"longer log, older term":            {Voter{Term: 4, Last: last}, Request{4, Position{2, 99}}, false, false},
		"voted for another":                 {Voter{Term: 4, Voted: true, Last: last}, Request{4, last}, true, false},
		"voted for the same, answer lost":   {Voter{Term: 4, Voted: true, For: true, Last: last}, Request{4, last}, true, true},
		"hears a leader":                    {Voter{Term: 4, Last: last, HearsLeader: true}, Request{4, last}, false, true},
		"higher term counts for pre-votes":  {Voter{Term: 4, Last: last}, Request{5, last}, true, false},
		"lost its disk, candidate has data": {Voter{Term: 4, Waiting: true}, Request{4, last}, true, true},
		"first start of a group":            {Voter{Waiting: true}, Request{}, true, true},
		"knows a past of the group only":    {Voter{Term: 4, Waiting: true, Mute: true, Last: Position{2, 3}}, Request{4, last}, false, false},
		"the same, asked again":             {Voter{Term: 4, Voted: true, For: true, Waiting: true, Mute: true}, Request{4, last}, false, false},
		"the same, and nobody has a log":    {Voter{Waiting: true, Mute: true}, Request{}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, test.preVote, test.v.PreVote(test.r), "pre-vote")
			assert.Equal(t, test.vote, test.v.Vote(test.r), "vote")
		})
	}
}

func TestTimeoutIsAtLeastTheBase(t *testing.T) {
	assert.Equal(t, time.Second, Timeout(time.Second, time.Second, 0))
	assert.Equal(t, 1500*time.Millisecond, Timeout(time.Second, time.Second, 0.5), "who starts at the same moment must not run out together")
	assert.Less(t, Timeout(time.Second, time.Second, 0.999), 2*time.Second)
	assert.Less(t, Timeout(10*time.Second, time.Second, 0.999), 11*time.Second)
}

func TestVotesOfThoseWhoMayHaveForgottenAreWeak(t *testing.T) {
	assert.True(t, Voter{Waiting: true}.Weak(Request{1, Position{1, 1}}))
	assert.False(t, Voter{Waiting: true}.Weak(Request{}), "an empty group has nothing to forget")
	assert.False(t, Voter{}.Weak(Request{1, Position{1, 1}}))
}
