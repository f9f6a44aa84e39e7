package snapdir

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// The names in a store's directory; FORMAT.md says what each is for.
const (
	snapshotPrefix = "snapshot_"
	trashPrefix    = "trash_"
	tempPrefix     = "temp_"
	braftTemp      = "temp" // also of older versions of this package
	copyDir        = "copy"
	installDir     = "install"
)

// Options configures a Store.
type Options struct {
	// Keep is how many snapshots Prune leaves; 0 means 1.
	Keep int
	// Rand draws the names of what is being saved. nil: any random numbers.
	Rand func() uint64

	layout layout // of tests; the zero value is standard
}

// Store is the directory of one group's snapshots.
//
// Invariants: snaps holds what is on disk under a snapshot's name, and nothing that
// may vanish in a power cut. A condemned snapshot is listed no more and is deleted
// when its last Reader has closed.
//
// Ownership: safe for concurrent use. mu is a leaf lock, never held during I/O.
// changes is held while snapshots appear or go, so that these wait for each other.
type Store struct {
	fs     vfs.FS
	dir    string
	keep   int
	rand   func() uint64
	layout layout

	changes sync.Mutex
	trash   int  // the number of the next name for trash; guarded by changes
	closed  bool // nothing is deleted any more; guarded by changes
	renamed bool // a copy was published and renamed back, and that may not be durable; guarded by changes

	mu      sync.Mutex
	snaps   map[int64]*snapshot
	writing bool // there is a Writer
	copying bool // there is a Copy
}

// snapshot is one that is on disk.
//
// Invariants: manifest is nil only if damage says why.
//
// Ownership: its store's; what is below damage is guarded by the store's mu.
type snapshot struct {
	store    *Store
	index    int64
	path     string
	manifest *manifest

	damage    error // what the manifest or Verify told; nil: nothing bad is known
	refs      int
	condemned bool
	verified  bool
	matched   bool // each block was read back and matched when it was copied here
}

// Info describes a snapshot.
type Info struct {
	Index   int64
	Term    int64                // 0 if the manifest is damaged
	Meta    *raftpb.SnapshotMeta // nil if the manifest is damaged
	GroupID uint64               // 0 also if the manifest names none
	// Checked says that the manifest carries a CRC, which one of braft's does not.
	Checked  bool
	Files    int
	Bytes    int64 // of all files; -1: not known
	Path     string
	Verified bool // since the start of the process
	Readers  int
	Damage   error // what is wrong with it: a *DamageError, or why the manifest cannot be read
}

// Open opens the snapshots in dir, which it makes if it lacks. It undoes what an
// interrupted save or install left half done, ends interrupted deletions, and reads
// the manifests, not the files. What an interrupted copy left is kept for OpenCopy.
// Without a descriptor for a manifest it fails, and may be called again.
func Open(fs vfs.FS, dir string, o Options) (*Store, error) {
	if o.layout.leaf == 0 {
		o.layout = standard()
	}
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
	s := &Store{fs: fs, dir: dir, keep: max(o.Keep, 1), rand: o.Rand, layout: o.layout, snaps: map[int64]*snapshot{}}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open snapshots in %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open() error {
	if err := vfs.MakeDir(s.fs, s.dir); err != nil {
		return err
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	// A process that was killed between rename and sync leaves names that are not
	// durable; nobody may rely on a snapshot with such a name.
	if err := s.fs.SyncDir(s.dir); err != nil {
		return err
	}
	if err := s.sweep(func(name string) bool { return name == installDir || isTemp(name) }); err != nil {
		return err
	}
	found, err := scan(s.fs, s.dir, s.layout)
	if err != nil {
		return err
	}
	for _, sn := range found {
		sn.store = s
		s.snaps[sn.index] = sn
	}
	return nil
}

// scan lists the snapshots of a directory by index, the newest first. One whose manifest the disk cannot read is damaged.
func scan(fs vfs.FS, dir string, l layout) ([]*snapshot, error) {
	names, err := fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []*snapshot
	for _, name := range names {
		index, ok := parseName(name)
		if !ok {
			continue
		}
		sn := &snapshot{index: index, path: filepath.Join(dir, name)}
		m, err := readManifest(fs, sn.path, l)
		switch {
		case vfs.NotOpened(err): // nothing is known of it, and what passes for damaged is deleted once there is another one
			return nil, err
		case err != nil:
			sn.damage = err
		case m.index() != index:
			sn.damage = &DamageError{Path: filepath.Join(sn.path, manifestName), Name: manifestName, Offset: 4,
				Reason: fmt.Sprintf("it is of index %d", m.index())}
		default:
			sn.manifest = m
		}
		found = append(found, sn)
	}
	slices.SortFunc(found, func(a, b *snapshot) int { return int(min(max(b.index-a.index, -1), 1)) })
	return found, nil
}

// parseName reads the index in a snapshot's name.
func parseName(name string) (int64, bool) {
	digits, ok := strings.CutPrefix(name, snapshotPrefix)
	if !ok || len(digits) != 20 {
		return 0, false
	}
	index, err := strconv.ParseInt(digits, 10, 64)
	return index, err == nil && index > 0 && name == snapshotName(index)
}

func snapshotName(index int64) string { return fmt.Sprintf("%s%020d", snapshotPrefix, index) }

// tempName is a name for what is being saved.
func tempName(n uint64) string { return fmt.Sprintf("%s%016x", tempPrefix, n) }

// isTemp reports whether that is such a name.
func isTemp(name string) bool {
	n, err := strconv.ParseUint(strings.TrimPrefix(name, tempPrefix), 16, 64)
	return name == braftTemp || err == nil && name == tempName(n)
}

// sweep deletes trash and leftovers. The caller holds changes.
func (s *Store) sweep(leftover func(name string) bool) error {
	names, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var old []string
	for _, name := range names {
		if number, ok := strings.CutPrefix(name, trashPrefix); ok {
			n, _ := strconv.Atoi(number) // one that is no number cannot be in the way
			s.trash = max(s.trash, n+1)
			old = append(old, name)
		} else if leftover(name) {
			old = append(old, name)
		}
	}
	for _, name := range old {
		if err := s.discard(filepath.Join(s.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// discard deletes one of the directories in the store's. It gives it another name
// first and makes that durable: a snapshot with files missing must not be found
// under its own name after a crash. Trash is renamed too, since the sync of its
// first renaming may be what failed. The caller holds changes.
func (s *Store) discard(dir string) error {
	trash, err := s.toTrash(dir)
	if err != nil || trash == "" {
		return err
	}
	return removeAll(s.fs, trash)
}

// toTrash is the first half of discard, which takes no time; the next Prune or Open does the other. The name is
// empty if there is no such directory. The caller holds changes.
func (s *Store) toTrash(dir string) (trash string, err error) {
	trash = filepath.Join(s.dir, trashPrefix+strconv.Itoa(s.trash))
	s.trash++
	if err := s.fs.Rename(dir, trash); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
		return "", err
	}
	return trash, s.fs.SyncDir(s.dir)
}

// Close ends the store's right to delete: the directory may be another Store's now, for which a snapshot of ours that is
// still read is as good as any. What was condemned by then stays for that one. A Reader or a SnapshotFile that is open stays
// usable until that deletes it.
func (s *Store) Close() {
	s.changes.Lock()
	defer s.changes.Unlock()
	s.closed = true
}

// List describes the snapshots, the newest first, damaged ones too.
func (s *Store) List() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	var infos []Info
	for _, sn := range s.snaps {
		if !sn.condemned {
			infos = append(infos, sn.info())
		}
	}
	slices.SortFunc(infos, func(a, b Info) int { return int(min(max(b.Index-a.Index, -1), 1)) })
	return infos
}

func (sn *snapshot) info() Info {
	i := Info{Index: sn.index, Path: sn.path, Verified: sn.verified, Readers: sn.refs, Damage: sn.damage, Bytes: -1}
	if m := sn.manifest; m != nil {
		i.Term, i.Meta, i.GroupID, i.Checked = m.meta.GetLastIncludedTerm(), proto.CloneOf(m.meta), m.group, m.ours
		i.Files, i.Bytes = len(m.files), m.bytes()
	}
	return i
}

// Latest opens the newest snapshot that is not known to be damaged; without one it
// fails with ErrNone.
func (s *Store) Latest() (*Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var latest *snapshot
	for _, sn := range s.snaps {
		if !sn.condemned && sn.damage == nil && (latest == nil || sn.index > latest.index) {
			latest = sn
		}
	}
	if latest == nil {
		return nil, ErrNone
	}
	return latest.reader(), nil
}

// Reader opens the snapshot of that index. One with a damaged manifest fails with
// what List says of it, one that is not there with ErrNone.
func (s *Store) Reader(index int64) (*Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sn := s.snaps[index]
	switch {
	case sn == nil || sn.condemned:
		return nil, fmt.Errorf("snapshot %d: %w", index, ErrNone)
	case sn.manifest == nil:
		return nil, sn.damage
	}
	return sn.reader(), nil
}

// Prune condemns all snapshots but the newest of those that Options.Keep counts. It
// is for after a new snapshot was verified: a damaged one counts for nothing, and
// goes once a good newer one is there. A condemned snapshot is deleted at once, or
// when its last Reader closes. An error means that some still take space; the next
// Prune tries again.
func (s *Store) Prune() error {
	s.mu.Lock()
	good := 0
	var newest []*snapshot
	for _, sn := range s.snaps {
		newest = append(newest, sn)
	}
	slices.SortFunc(newest, func(a, b *snapshot) int { return int(min(max(b.index-a.index, -1), 1)) })
	for _, sn := range newest {
		switch {
		case sn.condemned:
		case good >= s.keep, good > 0 && sn.damage != nil:
			sn.condemned = true
		case sn.damage == nil:
			good++
		}
	}
	s.mu.Unlock()
	s.changes.Lock()
	defer s.changes.Unlock()
	return errors.Join(s.bury(), s.sweep(func(string) bool { return false }))
}

// Remove condemns the snapshot of that index, such as a damaged one that another of
// the same index shall replace. See Prune for when it is deleted.
func (s *Store) Remove(index int64) error {
	s.mu.Lock()
	sn := s.snaps[index]
	if sn == nil || sn.condemned {
		s.mu.Unlock()
		return fmt.Errorf("snapshot %d: %w", index, ErrNone)
	}
	sn.condemned = true
	s.mu.Unlock()
	s.changes.Lock()
	defer s.changes.Unlock()
	return s.bury()
}

// RemoveCopy deletes what an interrupted copy left for resuming.
func (s *Store) RemoveCopy() error {
	s.mu.Lock()
	busy := s.copying
	s.copying = true
	s.mu.Unlock()
	if busy {
		return ErrBusy
	}
	defer s.release(&s.copying)
	s.changes.Lock()
	defer s.changes.Unlock()
	return errors.Join(s.discard(filepath.Join(s.dir, copyDir)), s.discard(filepath.Join(s.dir, installDir)))
}

// bury deletes the condemned snapshots that nobody reads. The caller holds changes.
func (s *Store) bury() error {
	if s.closed {
		return nil
	}
	s.mu.Lock()
	var dead []*snapshot
	for _, sn := range s.snaps {
		if sn.condemned && sn.refs == 0 {
			dead = append(dead, sn)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(dead, func(a, b *snapshot) int { return int(min(max(a.index-b.index, -1), 1)) })
	var errs []error
	for _, sn := range dead {
		err := s.discard(sn.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("delete snapshot %d: %w", sn.index, err))
		}
		if _, statErr := s.fs.Stat(sn.path); errors.Is(statErr, os.ErrNotExist) { // what is left is trash
			s.mu.Lock()
			delete(s.snaps, sn.index)
			s.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

// newer fails with ErrStale or ErrBusy if a snapshot of that index cannot be published.
// Damaged and condemned ones are not in its way, but for one of that index that somebody reads.
func (s *Store) newer(index int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sn := range s.snaps {
		switch {
		case sn.index == index && sn.refs > 0 && (sn.condemned || sn.damage != nil):
			return fmt.Errorf("snapshot %d: an earlier one is not deleted yet: %w", index, ErrBusy)
		case !sn.condemned && sn.damage == nil && sn.index >= index:
			return fmt.Errorf("snapshot %d: %w, %d", index, ErrStale, sn.index)
		}
	}
	return nil
}

// putAside condemns the damaged snapshots of that index and of later ones. It deletes
// nothing, which may take long: the directory of one that nobody reads gets another name,
// also of one that was condemned before and could not be deleted. The caller holds changes.
func (s *Store) putAside(index int64) error {
	if s.closed {
		return nil
	}
	s.mu.Lock()
	var dead []*snapshot
	for _, sn := range s.snaps {
		if sn.index >= index && (sn.condemned || sn.damage != nil) {
			dead = append(dead, sn)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(dead, func(a, b *snapshot) int { return int(min(max(a.index-b.index, -1), 1)) })
	for _, sn := range dead {
		if err := s.setAside(sn); err != nil {
			return err
		}
	}
	return nil
}

// setAside is putAside for one. If it fails the snapshot is what it was: there is nothing in its place yet, so that no
// Prune may delete it for that. The caller holds changes.
func (s *Store) setAside(sn *snapshot) error {
	s.mu.Lock()
	was, read := sn.condemned, sn.refs > 0
	sn.condemned = true // nobody opens it while it gets another name
	s.mu.Unlock()
	if read {
		return nil
	}
	trash, err := s.toTrash(sn.path)
	switch {
	case err == nil && trash == "": // it had got one before, and the sync is what failed
		err = s.fs.SyncDir(s.dir)
	case err != nil && trash != "":
		if back := s.fs.Rename(trash, sn.path); back != nil {
			was, err = true, errors.Join(err, back)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		sn.condemned = was
		return err
	}
	delete(s.snaps, sn.index)
	return nil
}

// publish makes a snapshot of a directory that is complete and durable but for its
// name. It takes the place of damaged ones, which stay until now: what is left of them
// may be all there is. If the name cannot be made durable, the snapshot is taken back: with
// keep the directory gets its old name again where nothing was lost, else it is deleted.
func (s *Store) publish(dir string, m *manifest, keep bool) (*Reader, error) {
	s.changes.Lock()
	defer s.changes.Unlock()
	if err := s.newer(m.index()); err != nil {
		return nil, err
	}
	if err := s.putAside(m.index()); err != nil {
		return nil, err
	}
	sn := &snapshot{store: s, index: m.index(), path: filepath.Join(s.dir, snapshotName(m.index())), manifest: m}
	if err := s.fs.Rename(dir, sn.path); err != nil {
		return nil, err
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		if keep && vfs.NotOpened(err) && s.fs.Rename(sn.path, dir) == nil {
			s.renamed = true
			return nil, err
		}
		return nil, errors.Join(err, s.discard(sn.path))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snaps[sn.index] = sn
	return sn.reader(), nil
}

// settle is for before anything changes in the directory of a copy: after a power cut it must not be found under a
// snapshot's name with that. The caller holds changes.
func (s *Store) settle(dir string) error {
	if !s.renamed {
		return nil
	}
	err := s.fs.SyncDir(s.dir)
	if err != nil && !vfs.NotOpened(err) { // no later sync would vouch for the name that it has
		err = errors.Join(err, s.discard(dir))
	}
	s.renamed = err != nil
	return err
}

// release ends a Writer's or Copy's sole right.
func (s *Store) release(held *bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*held = false
}

// Inspect lists the snapshots of a directory that may not be changed, the newest
// first.
func Inspect(fs vfs.FS, dir string) ([]Info, error) {
	found, err := scan(fs, dir, standard())
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var infos []Info
	for _, sn := range found {
		infos = append(infos, sn.info())
	}
	return infos, nil
}
