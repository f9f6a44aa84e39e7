package vfs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
)

// MakeDir makes a directory whose name is durable, and so are those of its new parents.
//
// They are made and synced one after the other, so that of all that is found existing only
// the last one's name may not be durable: a process was killed before it synced that.
func MakeDir(fs FS, dir string) error {
	var missing []string
	d := filepath.Clean(dir)
	for ; d != filepath.Dir(d); d = filepath.Dir(d) {
		_, err := fs.Stat(d)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		missing = append(missing, d)
	}
	// Where this process may not even look it has not made anything.
	if err := fs.SyncDir(filepath.Dir(d)); err != nil && !errors.Is(err, os.ErrPermission) {
		return err
	}
	for _, m := range slices.Backward(missing) {
		if err := fs.MkdirAll(m, 0o755); err != nil {
			return err
		}
		if err := fs.SyncDir(filepath.Dir(m)); err != nil {
			// Whether the name is durable is not known, and a later sync would not tell. It must not be found there.
			return errors.Join(err, fs.Remove(m))
		}
	}
	return nil
}
