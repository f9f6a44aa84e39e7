package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapshot", Short: "Save, list, verify, export and import snapshots", Args: cobra.ArbitraryArgs,
		Long: "Snapshots take the place of the log that they include. save has running servers save one. The other commands work on the\n" +
			"data directory of a server that does not run. A backup that export has made is a directory; import makes of it the data\n" +
			"directory of a member of a new group.",
		Example: "  graftctl --peers 10.0.0.1:8001 --group kv snapshot save\n" +
			"  graftctl snapshot list /var/lib/kv\n" +
			"  graftctl snapshot export /var/lib/kv /backup/kv-monday\n" +
			"  graftctl --group kv snapshot import /backup/kv-monday /var/lib/kv --as 10.0.1.1:8001 --members 10.0.1.1:8001,10.0.1.2:8001",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(cmd.CommandPath(), "say what to do with snapshots: save, list, verify, export or import")
			}
			return usage(cmd.CommandPath(), "unknown command %q, want save, list, verify, export or import", args[0])
		},
	}
	cmd.AddCommand(a.saveCommand(), a.listCommand(), a.verifyCommand(), a.exportCommand(), a.importCommand())
	return cmd
}

// savedResult is the outcome of save: on each server.
type savedResult struct {
	Group string        `json:"group"`
	Saved []savedOnPeer `json:"saved"`
}

type savedOnPeer struct {
	Peer  string `json:"peer"`
	Index int64  `json:"index,omitempty"` // 0: a server of braft's does not tell
	Bytes int64  `json:"bytes,omitempty"`
}

func (r savedResult) print(w io.Writer) {
	for _, s := range r.Saved {
		if s.Index == 0 {
			fmt.Fprintf(w, "%s has saved a snapshot\n", s.Peer)
			continue
		}
		fmt.Fprintf(w, "%s has saved a snapshot of %d, %s\n", s.Peer, s.Index, bytesText(s.Bytes))
	}
}

func (a *app) saveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "save [PEER…]", Short: "Have members save a snapshot now: those named, or all",
		Long: "Has the members that are named, or all, save a snapshot, and waits until it is durable. Where nothing was applied since the\n" +
			"last one there is nothing to do. The log before it is cut, but for a margin. Ctrl-C ends the wait, not the saving.",
		RunE: func(cmd *cobra.Command, args []string) error {
			var peers []graft.PeerID
			for _, s := range args {
				p, err := parsePeer(cmd, s)
				if err != nil {
					return err
				}
				peers = append(peers, p.ID())
			}
			return a.perform(cmd, 0, func(ctx context.Context, c *client) (result, error) { return a.save(ctx, c, peers) })
		},
	}
}

func (a *app) save(ctx context.Context, c *client, peers []graft.PeerID) (result, error) {
	if len(peers) == 0 {
		members, err := a.list(ctx, c)
		if err != nil {
			return nil, err
		}
		conf, err := configuration(members.(peersResult).Peers)
		if err != nil {
			return nil, err
		}
		for _, p := range conf.Peers() {
			if p.Role != graft.Witness {
				peers = append(peers, p.ID())
			}
		}
	}
	replies := make([]<-chan rpc.Reply, len(peers))
	for i, p := range peers {
		replies[i] = c.send(p.Address, cliService, "snapshot", &raftpb.SnapshotRequest{GroupId: c.group, PeerId: text(p)}, 0)
	}
	r := savedResult{Group: a.group, Saved: []savedOnPeer{}}
	var failed []string
	var code int32
	for i, p := range peers {
		err := c.wait(ctx, p.Address, replies[i], new(raftpb.SnapshotResponse))
		if err != nil && ctx.Err() != nil {
			return nil, &failure{Message: "not waiting any longer; the servers go on saving", Outcome: outcomeRunning}
		}
		if err != nil {
			failed = append(failed, fmt.Sprintf("%v: %s", p, strings.TrimPrefix(complaint(serverOf(p), err), p.Address+": ")))
			code = remoteCode(err)
			continue
		}
		one := savedOnPeer{Peer: p.String()}
		if s, err := c.status(ctx, serverOf(p)); err == nil { // a server of braft's does not tell
			one.Index, one.Bytes = s.GetSnapshot().GetIndex(), s.GetSnapshot().GetBytes()
		}
		r.Saved = append(r.Saved, one)
	}
	if failed != nil {
		return nil, notSaved(r, failed, code)
	}
	return r, nil
}

// notSaved says where no snapshot was saved, and where one was all the same.
func notSaved(r savedResult, failed []string, code int32) error {
	f := &failure{Message: "no snapshot was saved on\n  " + strings.Join(failed, "\n  "), Code: code}
	if len(r.Saved) > 0 {
		var done []string
		for _, s := range r.Saved {
			done = append(done, s.Peer)
		}
		f.Hint = "One was saved on " + strings.Join(done, ", ") + "."
	}
	switch graft.Code(code) {
	case graft.ErrBusy:
		f.Hint = strings.TrimSpace(f.Hint + " A snapshot is being saved or installed there already. Try again.")
	case graft.ErrNotFound:
		f.Hint = strings.TrimSpace(f.Hint + " Check --group, and that the server still has a replica of it.")
	}
	return f
}

// stored is a snapshot in a data directory, or a backup.
type stored struct {
	Group    string    `json:"group,omitempty"` // a backup does not tell
	Replica  int       `json:"replica,omitempty"`
	Index    int64     `json:"index"`
	Term     int64     `json:"term"`
	Peers    []string  `json:"peers"`
	OldPeers []string  `json:"old_peers,omitempty"`
	GroupID  uint64    `json:"group_id,omitempty"`
	Files    int       `json:"files"`
	Bytes    int64     `json:"bytes"` // -1: not known, of one that braft has made
	Time     time.Time `json:"time,omitzero"`
	Verified bool      `json:"verified,omitempty"`
	Damage   string    `json:"damage,omitempty"`
	Path     string    `json:"path"`

	// damage is what Damage tells, for verify.
	damage error
}

func newStored(r replicaDir, info snapdir.Info) stored {
	s := stored{
		Group: r.group, Replica: r.index, Index: info.Index, Term: info.Term, GroupID: info.GroupID, Files: info.Files, Bytes: info.Bytes,
		Peers: info.Meta.GetPeers(), OldPeers: info.Meta.GetOldPeers(), Path: info.Path, Verified: info.Verified, damage: info.Damage,
	}
	if s.Peers == nil {
		s.Peers = []string{}
	}
	if s.damage != nil {
		s.Damage = s.damage.Error()
	}
	if stat, err := (vfs.OS{}).Stat(filepath.Join(info.Path, snapdir.ManifestName)); err == nil {
		s.Time = stat.ModTime().UTC().Truncate(time.Second)
	}
	return s
}

// storedResult is what list and verify have found.
type storedResult struct {
	Dir       string   `json:"dir"`
	Snapshots []stored `json:"snapshots"`
}

func (r storedResult) print(w io.Writer) {
	if len(r.Snapshots) == 0 {
		fmt.Fprintln(w, "there are no snapshots in "+r.Dir)
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "GROUP\tINDEX\tTERM\tSIZE\tTIME\tPEERS\tNOTES")
	for _, s := range r.Snapshots {
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\t%s\t%s\n", s.owner(), s.Index, s.Term, bytesText(s.Bytes), s.when(), s.members(), s.note())
	}
	t.Flush()
}

func (s stored) owner() string {
	switch {
	case s.Group == "":
		return "-"
	case s.Replica != 0:
		return fmt.Sprintf("%s (replica %d)", s.Group, s.Replica)
	}
	return s.Group
}

func (s stored) when() string {
	if s.Time.IsZero() {
		return "-"
	}
	return s.Time.Format(time.DateTime)
}

func (s stored) members() string {
	if len(s.Peers) == 0 {
		return "-"
	}
	text := strings.Join(s.Peers, ",")
	if len(s.OldPeers) > 0 {
		text += " from " + strings.Join(s.OldPeers, ",")
	}
	return text
}

func (s stored) note() string {
	switch {
	case s.Damage != "":
		return s.Damage
	case s.Verified:
		return "verified"
	}
	return "-"
}

// bytesText is a number of bytes as people say it.
func bytesText(n int64) string {
	if n < 0 {
		return "?"
	}
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/(1<<10), 0
	for v >= 1000 && i < len(units)-1 {
		v, i = v/(1<<10), i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// offline runs a command that needs no server, and prints what it found.
func (a *app) offline(cmd *cobra.Command, do func(ctx context.Context) (result, error)) error {
	if a.timeout < 0 {
		return usage(cmd.CommandPath(), "--timeout is %v, must not be negative", a.timeout)
	}
	ctx := cmd.Context()
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	r, err := do(ctx)
	if errors.Is(err, snapdir.ErrStopped) {
		err = ctx.Err()
	}
	if err != nil {
		return a.explain(plain(err))
	}
	if a.json {
		return json.NewEncoder(a.out).Encode(r)
	}
	r.print(a.out)
	return nil
}

// watching ends long reading with ctx.
func watching(ctx context.Context) snapdir.Watch {
	return snapdir.Watch{Stop: func() bool { return ctx.Err() != nil }}
}

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list DIR", Short: "List the snapshots in the data directory of a stopped server", Args: cobra.ExactArgs(1),
		Long: "Lists the snapshots in a data directory, of all its groups or of --group, the newest first. Damage is shown as far as the\n" +
			"tables of contents tell; verify reads everything. Times are UTC.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.offline(cmd, func(context.Context) (result, error) {
				d, err := openDataDir(args[0])
				if err != nil {
					return nil, err
				}
				defer d.close()
				return a.inspect(d)
			})
		},
	}
}

// inspect lists what is in a data directory.
func (a *app) inspect(d *dataDir) (storedResult, error) {
	r := storedResult{Dir: d.path, Snapshots: []stored{}}
	replicas, err := d.replicas(a.group)
	if err != nil {
		return r, err
	}
	for _, dir := range replicas {
		infos, err := snapdir.Inspect(d.fs, dir.path)
		if err != nil {
			return r, err
		}
		for _, info := range infos {
			r.Snapshots = append(r.Snapshots, newStored(dir, info))
		}
	}
	return r, nil
}

func (a *app) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify DIR", Short: "Read all snapshots in a data directory, or a backup, and compare them with their hashes", Args: cobra.ExactArgs(1),
		Long: "Reads every byte of the snapshots in the data directory of a stopped server, of all its groups or of --group, or of a backup\n" +
			"that export has made. The exit status is 1 if any is damaged; file and offset are named.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.offline(cmd, func(ctx context.Context) (result, error) { return a.verify(ctx, args[0]) })
		},
	}
}

func (a *app) verify(ctx context.Context, dir string) (result, error) {
	var r storedResult
	if isBackup(dir) {
		r = storedResult{Dir: dir, Snapshots: []stored{{Path: dir}}}
	} else {
		d, err := openDataDir(dir)
		if err != nil {
			return nil, err
		}
		defer d.close()
		if r, err = a.inspect(d); err != nil {
			return nil, err
		}
	}
	var bad []string
	for i := range r.Snapshots {
		s := &r.Snapshots[i]
		info, err := snapdir.VerifyDir(vfs.OS{}, s.Path, watching(ctx))
		if errors.Is(err, snapdir.ErrStopped) {
			return nil, err
		}
		if err = errors.Join(s.damage, err); err != nil { // the former if its name is not that of its index
			if s.damage != nil {
				err = s.damage
			}
			bad = append(bad, plain(err).Error())
			continue
		}
		info.Path = s.Path
		*s = newStored(replicaDir{group: s.Group, index: s.Replica}, info)
	}
	if bad != nil {
		return nil, &failure{
			Message: fmt.Sprintf("%d of %d are damaged:\n  %s", len(bad), len(r.Snapshots), strings.Join(bad, "\n  ")),
			Hint:    "A server does not load a damaged snapshot. Another member's, or a backup, is as good.",
		}
	}
	return r, nil
}

// isBackup reports whether a directory is one that export has made.
func isBackup(dir string) bool {
	_, err := vfs.OS{}.Stat(filepath.Join(dir, snapdir.ManifestName))
	return err == nil
}
