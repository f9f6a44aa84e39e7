package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

func catching(stage string, followers ...*raftpb.Follower) *raftpb.GroupStatusResponse {
	return &raftpb.GroupStatusResponse{
		PeerId: proto.String("a:1:0:0"), Role: proto.String("leader"), Stage: &stage, Followers: followers,
		Change: &raftpb.ChangeStatus{ElapsedMs: proto.Int64(1250)},
	}
}

func follower(peer string, match, lag int64, rate float64) *raftpb.Follower {
	return &raftpb.Follower{PeerId: &peer, CatchingUp: proto.Bool(true), Match: &match, Lag: &lag, Rate: &rate}
}

// screen is what a terminal shows of what was written to it.
func screen(t *testing.T, written string) []string {
	lines, at := []string{""}, 0
	for written != "" {
		var up int
		switch {
		case strings.HasPrefix(written, "\x1b[J"):
			lines, written = append(lines[:at], ""), written[3:]
		case strings.HasPrefix(written, "\x1b[K"):
			lines[at], written = "", written[3:]
		case strings.HasPrefix(written, "\x1b["):
			_, err := fmt.Sscanf(written, "\x1b[%dA", &up)
			require.NoError(t, err)
			at -= up
			require.GreaterOrEqual(t, at, 0, "above the screen")
			_, written, _ = strings.Cut(written, "A")
		case written[0] == '\n':
			at, written = at+1, written[1:]
			if at == len(lines) {
				lines = append(lines, "")
			}
		case written[0] == '\r':
			written = written[1:]
		default:
			end := strings.IndexAny(written, "\x1b\n\r")
			require.Positive(t, end)
			lines[at], written = lines[at]+written[:end], written[end:]
		}
	}
	return lines
}

func TestProgressIsRedrawnOnATerminal(t *testing.T) {
	var out output
	p := (&app{console: console{err: &out, canRedraw: true}}).newProgress("add b:2:0:0")
	p.show(&raftpb.GroupStatusResponse{Stage: proto.String("stable")})
	assert.Empty(t, out.String(), "the change is not under way")
	f, g := follower("b:2:0:0", 25, 75, 0), follower("long.example:12345:0:0", 900, 100, 50)
	g.RemainingMs = proto.Int64(2000)
	p.show(catching("catching-up", f, g))
	assert.Equal(t, []string{
		"add b:2:0:0",
		"  catching-up  1.2s",
		"  b:2:0:0                 [#####...............]  25% 75 behind",
		"  long.example:12345:0:0  [################..]  90% 100 behind, 50/s, 2.0s left",
		"",
	}, screen(t, out.String()))

	f.Failures, f.Error = proto.Int64(3), proto.String("connection refused by a host with a very long explanation")
	p.show(catching("catching-up", f))
	lines := screen(t, out.String())
	require.Len(t, lines, 4)
	assert.Equal(t, "  b:2:0:0  [#...]  25% 75 behind, connection refused by a host with a very lon…", lines[2])
	assert.Len(t, []rune(lines[2]), columns)

	joint := catching("joint")
	joint.Awaited = []string{"b:2:0:0", "c:3:0:0"}
	p.show(joint)
	assert.Equal(t, []string{"add b:2:0:0", "  joint  1.2s", "  waiting for b:2:0:0, c:3:0:0", ""}, screen(t, out.String()))
	p.clear()
	p.clear()
	assert.Equal(t, []string{""}, screen(t, out.String()), "the result follows on a clean screen")
}

func TestProgressIsALineForEachStageElsewhere(t *testing.T) {
	var out output
	p := (&app{console: console{err: &out}}).newProgress("add b:2:0:0")
	p.show(catching("catching-up", follower("b:2:0:0", 25, 75, 10), follower("c:3:0:0", 0, 100, 0)))
	p.show(catching("catching-up", follower("b:2:0:0", 50, 50, 10)))
	joint := catching("joint")
	joint.Awaited = []string{"b:2:0:0"}
	p.show(joint)
	p.show(catching("stable"))
	p.clear()
	assert.Equal(t, "catching-up: b:2:0:0 is 75 entries behind, c:3:0:0 is 100 entries behind\njoint: waiting for b:2:0:0\nstable\n", out.String())
}

func TestNoProgressAmongJSON(t *testing.T) {
	var out output
	p := (&app{console: console{err: &out, canRedraw: true}, json: true}).newProgress("add b:2:0:0")
	p.show(catching("catching-up"))
	p.silent(graft.MustParsePeerID("a:1"))
	p.clear()
	assert.Empty(t, out.String())
}

func TestBar(t *testing.T) {
	for _, test := range []struct {
		done, all int64
		want      string
	}{
		{0, 0, "[####################] 100%"},
		{0, 10, "[....................]   0%"},
		{999, 1000, "[###################.]  99%"},
		{10, 10, "[####################] 100%"},
		{20, 10, "[####################] 100%"},
		{-5, 10, "[....................]   0%"},
	} {
		assert.Equal(t, test.want, bar(test.done, test.all, 100))
	}
}

// TestProgressOfAChange follows a change through its stages, as a server shows them.
func TestProgressOfAChange(t *testing.T) {
	for _, redraw := range []bool{true, false} {
		f, other := braft(t)
		var asked *rpc.Request // answered once all stages were shown
		stages := []*raftpb.GroupStatusResponse{catching("catching-up", follower("127.0.0.1:8:0:0", 1, 1, 1)), catching("joint"), catching("stable")}
		f.set("braft.CliService/add_peer", func(r *rpc.Request) { asked = r })
		f.set("graft.AdminService/Status", func(r *rpc.Request) { // on the goroutine that served add_peer
			if len(stages) == 0 {
				says(&raftpb.AddPeerResponse{OldPeers: []string{other}, NewPeers: []string{other, "127.0.0.1:8:0:0"}})(asked)
				r.Fail(16, "too late")
				return
			}
			says(stages[0])(r)
			stages = stages[1:]
		})
		e := begin(t, console{canRedraw: redraw}, "--peers", f.address, "--group", "g", "add", "127.0.0.1:8")
		assert.Contains(t, e.ok(), "now:    "+other+",127.0.0.1:8:0:0\n")
		if redraw {
			assert.Contains(t, e.err.String(), "  joint  1.2s\n")
			assert.Equal(t, []string{""}, screen(t, e.err.String()))
		} else {
			assert.Equal(t, "catching-up: 127.0.0.1:8:0:0 is 1 entries behind\njoint\nstable\n", e.err.String())
		}
	}
}

func TestReasons(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, test := range []struct {
		err    error
		want   string
		unsent bool
	}{
		{fmt.Errorf("%w: %w", rpc.ErrUnreachable, refused), "connection refused", true},
		{fmt.Errorf("%w: connection to x: %w", rpc.ErrUnreachable, &net.OpError{Op: "read", Err: errors.New("EOF")}), "connection to x: read: EOF", false},
		{fmt.Errorf("%w from x", rpc.ErrTimeout), "no answer in time", false},
		{fmt.Errorf("%w: x: rubbish", rpc.ErrBadReply), "x: rubbish", false},
	} {
		e := &lostError{from: "x", err: test.err}
		assert.Equal(t, "x: "+test.want, e.Error())
		assert.Equal(t, test.unsent, e.unsent())
	}
	r := decodeText(t, "[127.0.0.1:1][E16][[::1]:2][E-1]Doing [another] thing")
	assert.Equal(t, "x: Doing [another] thing", r)
}

func decodeText(t *testing.T, text string) string {
	err := decode("x", rpc.Reply{Code: 16, Text: text}, new(raftpb.AddPeerResponse))
	require.Error(t, err)
	return err.Error()
}
