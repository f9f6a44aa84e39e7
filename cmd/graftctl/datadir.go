package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/vfs"
)

// The directories in a host's, and the lock of its log.
const (
	logDir       = "log"
	snapshotsDir = "snapshots"
	lockFile     = "lock"
)

// dataDir is a host's directory that no process has in use while it is open.
type dataDir struct {
	path string
	fs   vfs.OS
	lock io.Closer // nil if there is no log
}

// openDataDir locks a host's directory, HostOptions.Dir. It changes nothing in it.
func openDataDir(path string) (*dataDir, error) {
	d := &dataDir{path: path}
	if _, err := d.fs.Stat(path); err != nil {
		return nil, plain(err)
	}
	if _, err := d.fs.Stat(filepath.Join(path, logDir, lockFile)); err == nil {
		lock, err := d.fs.Lock(filepath.Join(path, logDir, lockFile))
		if errors.Is(err, vfs.ErrLocked) {
			return nil, &failure{Message: path + " is in use by a running process", Hint: "Stop that process first. Of one that runs, graftctl status tells of the snapshots."}
		}
		if err != nil {
			return nil, plain(err)
		}
		d.lock = lock
	}
	return d, nil
}

func (d *dataDir) close() {
	if d.lock != nil {
		_ = d.lock.Close() // the end of the process gives it up too
	}
}

// replicaDir is the directory of a replica's snapshots.
type replicaDir struct {
	group string
	index int
	path  string
}

// name tells the replica from others in the directory.
func (r replicaDir) name() string {
	if r.index == 0 {
		return "group " + r.group
	}
	return fmt.Sprintf("group %s, replica %d", r.group, r.index)
}

// replicas lists whose snapshots are there, of one group only if it is named.
func (d *dataDir) replicas(group string) (found []replicaDir, err error) {
	dir := filepath.Join(d.path, snapshotsDir)
	names, err := d.fs.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &failure{Message: d.path + " holds no snapshots", Hint: "Give the directory that the server was started with, HostOptions.Dir, in which there are log and snapshots."}
	}
	if err != nil {
		return nil, plain(err)
	}
	for _, name := range names {
		g, index, whole, ok := snapdir.ParseDirName(name)
		switch {
		case !ok:
			continue
		case group != "" && name != snapdir.DirName(group, index):
			continue
		case group != "":
			g = group
		case !whole:
			g += "…"
		}
		found = append(found, replicaDir{group: g, index: index, path: filepath.Join(dir, name)})
	}
	if group != "" && len(found) == 0 {
		return nil, &failure{Message: fmt.Sprintf("%s holds no snapshots of group %s", d.path, group), Hint: "See which there are: graftctl snapshot list " + d.path}
	}
	return found, nil
}

// emptyDir demands that there is nothing at path, or an empty directory.
func emptyDir(path string) error {
	names, err := vfs.OS{}.ReadDir(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return plain(err)
	case slices.Contains(names, logDir):
		return &failure{Message: path + " is not empty: a server has its data there", Hint: "A new group begins in an empty directory. Give another one."}
	case len(names) > 0:
		return &failure{Message: fmt.Sprintf("%s is not empty: there is %s", path, clip(strings.Join(names, ", "), 60)), Hint: "Give a directory that does not exist, or an empty one."}
	}
	return nil
}

// plain is an error of the file system for the operator.
func plain(err error) error {
	var at *os.PathError
	if errors.As(err, &at) {
		return &failure{Message: at.Path + ": " + at.Err.Error()}
	}
	return err
}
