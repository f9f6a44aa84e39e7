package snapdir

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"
)

const (
	maxNameLen    = 1024
	maxElementLen = 255
	maxDirs       = 1 << 20 // of a snapshot: each takes memory, and a short name may have hundreds
)

// checkName accepts names of files that stay inside a snapshot's directory on any
// system, and that are not the manifest's.
func checkName(name string) error {
	reason := ""
	switch {
	case name == "":
		reason = "empty"
	case len(name) > maxNameLen:
		return fmt.Errorf("%w: %q... has %d bytes, at most %d are", ErrName, name[:32], len(name), maxNameLen)
	case strings.ContainsAny(name, "\x00\\:"):
		reason = "holds a NUL, backslash or colon"
	case path.IsAbs(name):
		reason = "absolute"
	case path.Clean(name) != name:
		reason = "not in its shortest form"
	case !filepath.IsLocal(name) || name == ".":
		reason = "leads out of the directory"
	}
	if first, _, _ := strings.Cut(name, "/"); first == manifestName || first == manifestTemp {
		reason = "the manifest's"
	}
	for element := range strings.SplitSeq(name, "/") {
		if len(element) > maxElementLen {
			reason = fmt.Sprintf("an element has more than %d bytes", maxElementLen)
		}
	}
	if reason != "" {
		return fmt.Errorf("%w: %q: %s", ErrName, name, reason)
	}
	return nil
}

// nameSet holds the names of a snapshot's files, and of their directories with how much is
// directly in each. So whoever goes up from a file can stop at the first directory that is there.
//
// Invariants: no name is both a file and a directory; the directory above one that is in dirs is so too.
//
// Ownership: its holder's.
type nameSet struct {
	files map[string]struct{}
	dirs  map[string]int
}

func newNameSet() *nameSet {
	return &nameSet{files: map[string]struct{}{}, dirs: map[string]int{}}
}

// parents calls f with each directory above name inside the snapshot, the nearest first, as long as it returns true. name is in
// its shortest form.
func parents(name string, f func(dir string) bool) {
	for i := strings.LastIndexByte(name, '/'); i >= 0 && f(name[:i]); {
		i = strings.LastIndexByte(name[:i], '/')
	}
}

// add takes a name in, or says why it is not allowed.
func (s *nameSet) add(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if _, twice := s.files[name]; twice {
		return fmt.Errorf("%w: %q: there is one already", ErrName, name)
	}
	if s.dirs[name] > 0 {
		return fmt.Errorf("%w: %q: is a directory of others", ErrName, name)
	}
	clash, fresh := "", 0
	parents(name, func(dir string) bool {
		if _, ok := s.files[dir]; ok {
			clash = dir
		}
		if clash != "" || s.dirs[dir] > 0 {
			return false
		}
		fresh++
		return true
	})
	switch {
	case clash != "":
		return fmt.Errorf("%w: %q: %q is a file", ErrName, name, clash)
	case len(s.dirs)+fresh > maxDirs:
		return fmt.Errorf("%w: %q: a snapshot has at most %d directories", ErrName, name, maxDirs)
	}
	s.files[name] = struct{}{}
	parents(name, func(dir string) bool {
		s.dirs[dir]++
		return s.dirs[dir] == 1
	})
	return nil
}

// remove takes a name out that is in.
func (s *nameSet) remove(name string) {
	delete(s.files, name)
	parents(name, func(dir string) bool {
		if s.dirs[dir]--; s.dirs[dir] > 0 {
			return false
		}
		delete(s.dirs, dir)
		return true
	})
}
