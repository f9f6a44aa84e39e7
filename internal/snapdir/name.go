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
	maxDepth      = 32 // elements: each directory takes memory
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
	if strings.Count(name, "/") >= maxDepth {
		reason = fmt.Sprintf("it has more than %d elements", maxDepth)
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

// nameSet holds the names of a snapshot's files and counts the files below each
// directory.
//
// Invariants: no name is both a file and a directory.
//
// Ownership: its holder's.
type nameSet struct {
	files map[string]struct{}
	dirs  map[string]int
}

func newNameSet() *nameSet {
	return &nameSet{files: map[string]struct{}{}, dirs: map[string]int{}}
}

// parents calls f with each directory above name inside the snapshot, the nearest first. name is in its shortest form.
func parents(name string, f func(dir string)) {
	for i := strings.LastIndexByte(name, '/'); i >= 0; i = strings.LastIndexByte(name[:i], '/') {
		f(name[:i])
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
	clash := ""
	parents(name, func(dir string) {
		if _, ok := s.files[dir]; ok {
			clash = dir
		}
	})
	if clash != "" {
		return fmt.Errorf("%w: %q: %q is a file", ErrName, name, clash)
	}
	s.files[name] = struct{}{}
	parents(name, func(dir string) { s.dirs[dir]++ })
	return nil
}

// remove takes a name out that is in.
func (s *nameSet) remove(name string) {
	delete(s.files, name)
	parents(name, func(dir string) {
		if s.dirs[dir]--; s.dirs[dir] == 0 {
			delete(s.dirs, dir)
		}
	})
}
