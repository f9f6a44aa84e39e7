package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/raftpb"
)

// progress shows how far a change is: on a terminal by lines that are drawn again and again, else by one line
// for each stage. nil shows nothing.
type progress struct {
	w      io.Writer
	title  string
	redraw bool
	drawn  int    // lines that stand on the terminal
	stage  string // shown last
	copies map[string]copyBegin
}

// copyBegin is where the copying of a snapshot to a peer was when it was seen first.
type copyBegin struct{ index, bytes, at int64 }

// copyRate is how many bytes per second a peer copies of its snapshot, 0 if that is not known yet.
func (p *progress) copyRate(f *raftpb.Follower, elapsed int64) float64 {
	began, ok := p.copies[f.GetPeerId()]
	if !ok || began.index != f.GetSnapshotIndex() || began.bytes > f.GetSnapshotDoneBytes() {
		if p.copies == nil {
			p.copies = make(map[string]copyBegin)
		}
		p.copies[f.GetPeerId()] = copyBegin{f.GetSnapshotIndex(), f.GetSnapshotDoneBytes(), elapsed}
		return 0
	}
	if elapsed <= began.at {
		return 0
	}
	return float64(f.GetSnapshotDoneBytes()-began.bytes) / float64(elapsed-began.at) * 1000
}

func (a *app) newProgress(title string) *progress {
	if a.json {
		return nil
	}
	return &progress{w: a.err, title: title, redraw: a.canRedraw}
}

// clear wipes what was drawn.
func (p *progress) clear() {
	if p != nil && p.drawn > 0 {
		fmt.Fprintf(p.w, "\x1b[%dA\x1b[J", p.drawn)
		p.drawn = 0
	}
}

// silent says that there is nothing to show.
func (p *progress) silent(leader graft.PeerID) {
	if p != nil {
		fmt.Fprintf(p.w, "waiting for the leader, %v, which speaks braft's protocol only and does not tell how far it is\n", leader)
	}
}

// show shows what the leader told.
func (p *progress) show(s *raftpb.GroupStatusResponse) {
	if p == nil || s.GetChange() == nil { // not begun, or over
		return
	}
	if p.redraw {
		p.draw(s)
		return
	}
	if s.GetStage() == p.stage {
		return
	}
	p.stage = s.GetStage()
	fmt.Fprintln(p.w, p.stage+stageDetail(s))
}

// stageDetail says in words what the stage waits for.
func stageDetail(s *raftpb.GroupStatusResponse) string {
	var parts []string
	for _, f := range catchingUp(s) {
		if f.GetSnapshotIndex() != 0 {
			parts = append(parts, f.GetPeerId()+" copies a snapshot")
			continue
		}
		parts = append(parts, fmt.Sprintf("%s is %d entries behind", f.GetPeerId(), f.GetLag()))
	}
	if len(parts) == 0 && len(s.GetAwaited()) > 0 {
		parts = append(parts, "waiting for "+strings.Join(s.GetAwaited(), ", "))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}

// catchingUp lists the peers that copy the log.
func catchingUp(s *raftpb.GroupStatusResponse) (peers []*raftpb.Follower) {
	for _, f := range s.GetFollowers() {
		if f.GetCatchingUp() {
			peers = append(peers, f)
		}
	}
	return peers
}

// columns is how wide a line may be without being broken by a common terminal.
const columns = 79

func (p *progress) draw(s *raftpb.GroupStatusResponse) {
	elapsed := time.Duration(s.GetChange().GetElapsedMs()) * time.Millisecond
	lines := []string{p.title, fmt.Sprintf("  %s  %.1fs", s.GetStage(), elapsed.Seconds())}
	peers := catchingUp(s)
	width := 0
	for _, f := range peers {
		width = max(width, len(f.GetPeerId()))
	}
	for _, f := range peers {
		name := fmt.Sprintf("  %-*s  ", width, f.GetPeerId())
		figures, done, all := figures(f), f.GetMatch(), f.GetMatch()+f.GetLag()
		if f.GetSnapshotIndex() != 0 {
			figures = installFigures(f, p.copyRate(f, elapsed.Milliseconds()))
			done, all = f.GetSnapshotDoneBytes(), max(f.GetSnapshotTotalBytes(), 1)
		}
		lines = append(lines, name+bar(done, all, columns-len(name)-len(figures))+figures)
	}
	if len(peers) == 0 && len(s.GetAwaited()) > 0 {
		lines = append(lines, "  waiting for "+strings.Join(s.GetAwaited(), ", "))
	}
	p.clear()
	for _, line := range lines {
		fmt.Fprintf(p.w, "\r\x1b[K%s\n", clip(line, columns))
	}
	p.drawn = len(lines)
}

// figures is how far a peer is.
func figures(f *raftpb.Follower) string {
	text := fmt.Sprintf(" %d behind", f.GetLag())
	switch {
	case f.GetFailures() > 0 && f.GetError() != "":
		return text + ", " + f.GetError()
	case f.GetRate() > 0:
		text += fmt.Sprintf(", %.0f/s", f.GetRate())
	}
	if f.RemainingMs != nil {
		text += fmt.Sprintf(", %.1fs left", float64(f.GetRemainingMs())/1000)
	}
	return text
}

// installFigures is how far a peer is that installs a snapshot.
func installFigures(f *raftpb.Follower, rate float64) string {
	done, total := f.GetSnapshotDoneBytes(), f.GetSnapshotTotalBytes()
	switch {
	case f.GetFailures() > 0 && f.GetError() != "":
		return " snapshot, " + f.GetError()
	case total <= 0:
		return " begins to copy a snapshot"
	case done >= total:
		return " loads the snapshot"
	}
	return " snapshot, " + copyText(done, total, rate)
}

// bar draws done of all, in as many columns as there are, within reason.
func bar(done, all int64, room int) string {
	width := min(max(room-len("[] 100%"), 4), 20)
	part := 1.0
	if all > 0 {
		part = min(max(float64(done)/float64(all), 0), 1)
	}
	full := int(part * float64(width))
	return fmt.Sprintf("[%s%s] %3d%%", strings.Repeat("#", full), strings.Repeat(".", width-full), int(part*100))
}

// clip cuts a line to a number of columns.
func clip(line string, width int) string {
	if r := []rune(line); len(r) > width {
		return string(r[:width-1]) + "…"
	}
	return line
}
