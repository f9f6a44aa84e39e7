package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
	"github.com/graft-raft/graft/raftpb"
)

// exportResult is the outcome of export.
type exportResult struct {
	From   string `json:"from"`
	Backup stored `json:"backup"`
}

func (r exportResult) print(w io.Writer) {
	fmt.Fprintf(w, "exported snapshot %d of group %s, %s, to %s, and verified it\n", r.Backup.Index, r.Backup.owner(), bytesText(r.Backup.Bytes), r.Backup.Path)
}

func (a *app) exportCommand() *cobra.Command {
	var index int64
	var replica int
	cmd := &cobra.Command{
		Use: "export DIR BACKUP", Short: "Copy a snapshot out of the data directory of a stopped server, as a backup", Args: cobra.ExactArgs(2),
		Long: "Copies the newest snapshot of a data directory that is not damaged, or the one of --index, to the directory BACKUP, which must\n" +
			"not exist: its files, and a table of contents with their hashes. It is verified, and appears whole or not at all. If the directory\n" +
			"has several groups, --group says which one is meant. A backup has what was applied when the snapshot was saved: see save.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.offline(cmd, func(ctx context.Context) (result, error) { return a.export(ctx, args[0], args[1], index, replica) })
		},
	}
	cmd.Flags().Int64Var(&index, "index", 0, "which snapshot (default the newest that is whole)")
	cmd.Flags().IntVar(&replica, "replica", 0, "index of the replica, where the directory has several of the group")
	return cmd
}

func (a *app) export(ctx context.Context, from, to string, index int64, replica int) (result, error) {
	d, err := openDataDir(from)
	if err != nil {
		return nil, err
	}
	defer d.close()
	dir, err := a.one(d, replica)
	if err != nil {
		return nil, err
	}
	r, err := openSnapshot(d, dir, index)
	if err != nil {
		return nil, err
	}
	err = snapdir.Export(r, d.fs, to, watching(ctx))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, backupFailure(err, to)
	}
	info, err := snapdir.VerifyDir(d.fs, to, watching(ctx))
	if err != nil {
		return nil, err
	}
	return exportResult{From: from, Backup: newStored(dir, info)}, nil
}

// one is the replica that is meant.
func (a *app) one(d *dataDir, replica int) (replicaDir, error) {
	all, err := d.replicas(a.group)
	if err != nil {
		return replicaDir{}, err
	}
	var found []replicaDir
	var names []string
	for _, r := range all {
		names = append(names, r.name())
		if r.index == replica {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return replicaDir{}, &failure{Message: fmt.Sprintf("%s holds no snapshots of replica %d", d.path, replica), Hint: "There are: " + strings.Join(names, "; ")}
	case 1:
		return found[0], nil
	}
	return replicaDir{}, &failure{Message: d.path + " holds snapshots of several groups", Hint: "Say which one with --group. There are: " + strings.Join(names, "; ")}
}

// openSnapshot opens the snapshot of an index, 0 for the newest that is whole by its table of contents.
func openSnapshot(d *dataDir, dir replicaDir, index int64) (*snapdir.Reader, error) {
	store, err := snapdir.Open(d.fs, dir.path, snapdir.Options{})
	if err != nil {
		return nil, err
	}
	var r *snapdir.Reader
	if index == 0 {
		r, err = store.Latest()
	} else {
		r, err = store.Reader(index)
	}
	if errors.Is(err, snapdir.ErrNone) {
		return nil, &failure{Message: fmt.Sprintf("there is no such snapshot of %s in %s", dir.name(), d.path), Hint: "See which there are: graftctl snapshot list " + d.path}
	}
	return r, err
}

// inTheWay says that the name under which something is made until it is whole is taken. Whose that is cannot be told.
func inTheWay(temp string) error {
	return &failure{
		Message: temp + " exists",
		Hint: "What is made has that name until it is whole. Delete it if it is what an interrupted command has left; if it is anything else,\n" +
			"give another name.",
	}
}

// backupFailure says what stands in the way of writing to a directory.
func backupFailure(err error, to string) error {
	var damage *snapdir.DamageError
	var at *os.PathError
	switch {
	case errors.As(err, &at) && at.Path == filepath.Clean(to)+snapdir.ExportSuffix && errors.Is(err, os.ErrExist):
		return inTheWay(at.Path)
	case errors.Is(err, os.ErrExist):
		return &failure{Message: to + " exists", Hint: "A backup is made in a directory that does not exist. Give another name."}
	case errors.As(err, &damage):
		return &failure{Message: damage.Error(), Hint: "Nothing was written. Try another snapshot, --index, or another member's."}
	}
	return err
}

// importResult is the outcome of import.
type importResult struct {
	Group   string   `json:"group"`
	GroupID uint64   `json:"group_id"`
	Dir     string   `json:"dir"`
	Member  string   `json:"member"`
	Peers   []string `json:"peers"`
	Index   int64    `json:"index"`
	Term    int64    `json:"term"`
	Bytes   int64    `json:"bytes"`
}

func (r importResult) print(w io.Writer) {
	fmt.Fprintf(w, "%s is the data directory of %s, a member of a new group %s with the backup's snapshot %d, %s\n",
		r.Dir, r.Member, r.Group, r.Index, bytesText(r.Bytes))
	if len(r.Peers) > 1 {
		fmt.Fprintln(w, "import the same backup with the same --members for the other voters, each --as itself, before they are started")
	}
}

func (a *app) importCommand() *cobra.Command {
	var as, members string
	cmd := &cobra.Command{
		Use: "import BACKUP DIR", Short: "Make of a backup the data directory of a member of a new group", Args: cobra.ExactArgs(2),
		Long: "Makes DIR, which must not exist or be empty, the data directory of a member of a new group that begins with what the backup\n" +
			"holds. --members is the new group's configuration; the one of the backup counts no more. Its servers are started as ever, under\n" +
			"--group and the address in --as; an InitialConf does not count.\n\n" +
			"Import the same backup with the same --members for each voter, or with one member only, and add the others to the running group.\n" +
			"The group is another one than the backup's: what is left of that one is refused. Do not import for a group that has begun: that\n" +
			"would be a voter that has forgotten.",
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := a.parseImport(cmd, as, members)
			if err != nil {
				return err
			}
			m.backup, m.dir = args[0], filepath.Clean(args[1])
			return a.offline(cmd, func(ctx context.Context) (result, error) { return m.run(ctx) })
		},
	}
	cmd.Flags().StringVar(&as, "as", "", "the member whose directory it is, as in --members")
	cmd.Flags().StringVar(&members, "members", "", "the new group's members, host:port,…")
	return cmd
}

// importing is an import as it was asked for.
type importing struct {
	group, backup, dir string
	self               graft.PeerID
	conf               graft.Configuration
}

func (a *app) parseImport(cmd *cobra.Command, as, members string) (m importing, err error) {
	path := cmd.CommandPath()
	switch {
	case a.group == "":
		return m, usage(path, "--group is missing: the name under which the servers will start the new group")
	case as == "":
		return m, usage(path, "--as is missing: the member whose directory it will be")
	case members == "":
		return m, usage(path, "--members is missing: the configuration of the new group")
	}
	m.group = a.group
	if m.self, err = parsePeer(cmd, as); err != nil {
		return m, err
	}
	if m.conf, err = parsePeers(cmd, []string{members}); err != nil {
		return m, err
	}
	self, ok := m.conf.Find(m.self)
	if !ok {
		return m, usage(path, "%v is not among --members, %v", m.self, m.conf)
	}
	m.self = self
	return m, nil
}

// run makes the directory under another name first, so that it appears whole or not at all.
func (m importing) run(ctx context.Context) (_ result, err error) {
	if !isBackup(m.backup) {
		return nil, &failure{Message: m.backup + " is no backup: it has no table of contents", Hint: "A backup is what graftctl snapshot export has made."}
	}
	if err := emptyDir(m.dir); err != nil {
		return nil, err
	}
	temp := m.dir + ".importing"
	if err := makeNew(temp); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	info, err := m.load(ctx, temp)
	if err != nil {
		return nil, m.explain(err)
	}
	if err := m.beginLog(filepath.Join(temp, logDir), info); err != nil {
		return nil, err
	}
	if err := m.publish(temp); err != nil {
		return nil, err
	}
	return importResult{
		Group: m.group, GroupID: info.GroupID, Dir: m.dir, Member: m.self.String(), Peers: names(m.conf),
		Index: info.Index, Term: info.Term, Bytes: info.Bytes,
	}, nil
}

// makeNew makes a directory that must not exist. Its parents are made durably.
func makeNew(dir string) error {
	if err := vfs.MakeDir(vfs.OS{}, filepath.Dir(dir)); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, os.ErrExist) {
		return inTheWay(dir)
	}
	return err
}

// load makes the snapshot that the member begins with.
func (m importing) load(ctx context.Context, data string) (info snapdir.Info, err error) {
	fs := vfs.OS{}
	if info, err = snapdir.VerifyDir(fs, m.backup, watching(ctx)); err != nil {
		return info, err
	}
	dir := filepath.Join(data, snapshotsDir)
	if err := vfs.MakeDir(fs, dir); err != nil {
		return info, err
	}
	store, err := snapdir.Open(fs, filepath.Join(dir, snapdir.DirName(m.group, m.self.Index)), snapdir.Options{})
	if err != nil {
		return info, err
	}
	id, err := m.groupID()
	if err != nil {
		return info, err
	}
	meta := &raftpb.SnapshotMeta{LastIncludedIndex: proto.Int64(info.Index), LastIncludedTerm: proto.Int64(max(info.Term, 1)), Peers: names(m.conf)}
	r, err := store.Import(fs, m.backup, meta, id, watching(ctx))
	if err != nil {
		return info, err
	}
	err = r.Verify(watching(ctx))
	info = r.Info()
	return info, errors.Join(err, r.Close())
}

// groupID is the new group's identity. It is the same for all members that begin with the same backup and configuration, and
// another one than that of any other group.
func (m importing) groupID() (uint64, error) {
	manifest, err := os.ReadFile(filepath.Join(m.backup, snapdir.ManifestName))
	if err != nil {
		return 0, err
	}
	h := fnv.New128a()
	for _, part := range []string{"import", m.group, m.conf.String(), string(manifest)} {
		_ = binary.Write(h, binary.BigEndian, uint64(len(part))) // a hash takes everything
		_, _ = io.WriteString(h, part)
	}
	sum := h.Sum(nil)
	return max(binary.BigEndian.Uint64(sum)^binary.BigEndian.Uint64(sum[8:]), 1), nil
}

// beginLog makes the log that goes on behind the snapshot. It says that the member is not one that has lost its disk.
func (m importing) beginLog(dir string, info snapdir.Info) (err error) {
	exec := actor.NewGoroutines()
	defer exec.Close()
	store, err := wal.Open(wal.Options{Dir: dir, Exec: exec, Identity: m.self.Address})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	g, err := store.Group(wal.ReplicaName(m.group, m.self.Index))
	if err != nil {
		return err
	}
	done := make(chan error, 2)
	g.SaveHardState(wal.HardState{Term: info.Term, GroupID: info.GroupID}, 0, func(err error) { done <- err })
	g.TruncatePrefix(info.Index+1, info.Term, func(err error) { done <- err })
	return errors.Join(<-done, <-done)
}

// publish gives the directory its name.
func (m importing) publish(temp string) error {
	fs := vfs.OS{}
	if err := fs.SyncDir(temp); err != nil {
		return err
	}
	if err := os.Remove(m.dir); err != nil && !errors.Is(err, os.ErrNotExist) { // an empty one
		return err
	}
	if err := fs.Rename(temp, m.dir); err != nil {
		return err
	}
	return fs.SyncDir(filepath.Dir(m.dir))
}

// explain says that nothing has become of an import.
func (m importing) explain(err error) error {
	var damage *snapdir.DamageError
	if errors.As(err, &damage) {
		return &failure{Message: damage.Error(), Hint: "Nothing was written. Take another backup."}
	}
	return err
}
