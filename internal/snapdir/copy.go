package snapdir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// Range is a piece of a file that a Copy needs.
type Range struct {
	Name string
	Off  int64
	Len  int64 // -1: to the end of the file, wherever that is, one piece after the other
}

// Progress says how far a Copy is.
type Progress struct {
	Total     int64 // bytes of all files; -1: not known
	Done      int64 // bytes that are there and match their hashes, those below included
	Linked    int64 // of files that a local snapshot has too
	Resumed   int64 // that an interrupted copy had left
	Received  int64 // bytes written by this Copy, those that turned out bad included
	BadBlocks int   // that arrived and did not match
}

// Copy takes in a snapshot from another node. Only what matches the manifest's
// hashes counts as there, whoever wrote it and when. Files without hashes, of a
// braft leader, are written from their beginning to their end.
//
// Invariants: nothing in the directory copy/ is a link to a local snapshot's file,
// since what is there may be overwritten. A block that matched is not written again.
// Matched means: as it was read back from the file, so that nothing of a snapshot needs
// to be hashed once more when all of it is there.
// err, once set, is what every later call returns.
//
// Ownership: safe for concurrent use. mu is a leaf lock, not held during I/O; active
// counts the calls that do I/O, for which Commit and Abort wait.
type Copy struct {
	store    *Store
	manifest *manifest
	dir      string
	turns    *Turns
	watch    Watch
	files    []*incoming

	active sync.WaitGroup // Add under mu while not ended
	leaves sync.Pool      // of *[]byte with room for a leaf

	duplicated bool // Commit's: a file was copied from a local snapshot, and not looked at since

	mu       sync.Mutex
	progress Progress
	err      error
	ended    bool
}

// incoming is a file of a Copy.
//
// Invariants: claimed are the ranges that are there, or that some call is writing;
// written counts the bytes there of each block that is neither empty nor known to be
// good; left counts the blocks that are not good.
//
// Ownership: the Copy's mu guards it, but for opening, which opens f.
type incoming struct {
	File // what is known of it; of one without hashes it is filled in at its end

	sized   bool    // there are hashes to compare with
	source  *Reader // the local snapshot it is linked from, nil if it is not
	claimed spans
	written map[int64]int64
	left    int64
	end     int64 // of one without hashes: where the next piece begins
	done    bool  // all is there, and no call writes any more
	synced  bool  // and durable, but for its name

	opening  sync.Mutex // held while the file is opened
	f        vfs.File
	leaving  span // is being written out
	unsynced int64
}

// Meta is index, term and configuration of the snapshot that is copied. It is the
// caller's.
func (c *Copy) Meta() *raftpb.SnapshotMeta { return proto.CloneOf(c.manifest.meta) }

// Progress says how far the copy is.
func (c *Copy) Progress() Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.progress
}

// Needed lists what is to be fetched, in order, without what a call of WriteAt or
// Receive is writing right now. It is empty when Commit can be called, or will be
// once those calls have succeeded.
func (c *Copy) Needed() []Range {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ranges []Range
	for _, f := range c.files {
		switch {
		case f.done:
		case !f.sized:
			ranges = append(ranges, Range{f.Name, f.end, -1})
		default:
			for _, gap := range f.claimed.gaps(0, f.Size) {
				ranges = append(ranges, Range{f.Name, gap.lo, gap.hi - gap.lo})
			}
		}
	}
	return ranges
}

// begin is for a call that does I/O on a file; unless it fails, active.Done ends it.
func (c *Copy) begin(name string) (*incoming, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if c.ended {
		return nil, fmt.Errorf("copy snapshot: %w", ErrClosed)
	}
	i, ok := c.manifest.byName[name]
	if !ok {
		return nil, fmt.Errorf("copy snapshot: %w: %q", ErrNoFile, name)
	}
	c.active.Add(1)
	return c.files[i], nil
}

// lose makes the Copy useless: the disk has lost something, nobody knows what.
func (c *Copy) lose(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = fmt.Errorf("copy snapshot: %w", err)
	}
	return c.err
}

// WriteAt takes in bytes of a file. What was written already is skipped. A block that
// is complete is compared with its hash; a *BlockError says that one does not match
// and is needed again. Several calls may run at once.
//
// Of a file without hashes any piece is taken that does not leave a gap; its pieces
// come one after the other, not at once.
func (c *Copy) WriteAt(name string, p []byte, off int64) error {
	f, err := c.begin(name)
	if err != nil {
		return err
	}
	defer c.active.Done()
	if !f.sized {
		return c.append(f, p, off, int64(len(p)))
	}
	if off < 0 || off > f.Size || int64(len(p)) > f.Size-off {
		return fmt.Errorf("copy snapshot: %w: %d bytes at %d of %q, which has %d", ErrRange, len(p), off, name, f.Size)
	}
	c.mu.Lock()
	var pieces []span
	if !f.done {
		pieces = f.claimed.add(off, off+int64(len(p)))
	}
	c.mu.Unlock()
	var bad *BlockError
	for i, piece := range pieces {
		err := c.write(f, p[piece.lo-off:piece.hi-off], piece.lo)
		if err != nil {
			c.mu.Lock()
			for _, lost := range pieces[i:] {
				f.claimed.remove(lost.lo, lost.hi)
			}
			c.mu.Unlock()
			return err
		}
		if err = c.settle(f, piece); err != nil && !errors.As(err, &bad) {
			return err
		}
	}
	if bad != nil {
		return bad
	}
	return nil
}

// write opens the file if need be and writes one piece.
func (c *Copy) write(f *incoming, p []byte, off int64) error {
	h, err := c.open(f)
	if err != nil {
		return fmt.Errorf("copy snapshot: %w", err)
	}
	if err := take(c.turns.work, func() error { _, err := h.WriteAt(p, off); return err }); err != nil {
		return fmt.Errorf("copy snapshot: %w", err)
	}
	out := false
	err = take(c.turns.disk, func() (err error) {
		out, err = c.writeOut(f, h, span{off, off + int64(len(p))})
		return err
	})
	if err != nil {
		return c.lose(err)
	}
	c.mu.Lock()
	c.progress.Received += int64(len(p))
	f.unsynced += int64(len(p))
	due := syncDue(f.unsynced, out)
	if due {
		f.unsynced = 0
	}
	c.mu.Unlock()
	if due {
		if err := take(c.turns.disk, h.Sync); err != nil {
			return c.lose(err)
		}
	}
	return nil
}

// writeOut has a piece begin to leave for the disk, and waits for the one before, whoever wrote that. Its caller has the turn, so
// that there is none in between.
func (c *Copy) writeOut(f *incoming, h vfs.File, piece span) (begun bool, err error) {
	c.mu.Lock()
	leaving := f.leaving
	c.mu.Unlock()
	begun, err = writeOut(h, piece, leaving)
	if !begun {
		piece = span{}
	}
	c.mu.Lock()
	f.leaving = piece
	c.mu.Unlock()
	return begun, err
}

// open opens the file once, with the directories above it.
func (c *Copy) open(f *incoming) (vfs.File, error) {
	f.opening.Lock()
	defer f.opening.Unlock()
	if f.f != nil {
		return f.f, nil
	}
	full := filepath.Join(c.dir, f.Name)
	if dir := filepath.Dir(full); dir != c.dir {
		if err := c.store.fs.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	h, err := c.store.fs.OpenFile(full, os.O_RDWR|os.O_CREATE, 0o644)
	if err == nil {
		f.f = h
	}
	return h, err
}

// settle counts a piece that was written and verifies the blocks it completed.
func (c *Copy) settle(f *incoming, piece span) error {
	var whole []int64
	c.mu.Lock()
	for i := piece.lo / f.blockSize; i*f.blockSize < piece.hi; i++ {
		at, n, _ := f.block(i)
		f.written[i] += min(piece.hi, at+n) - max(piece.lo, at)
		if f.written[i] == n {
			whole = append(whole, i)
		}
	}
	c.mu.Unlock()
	var bad error
	for _, i := range whole {
		at, n, want := f.block(i)
		sum, err := c.readBack(f, at, n)
		if err != nil {
			return c.lose(err)
		}
		if c.judge(f, i, bytes.Equal(sum, want)) {
			if err := c.finish(f); err != nil {
				return err
			}
		} else if bad == nil && !bytes.Equal(sum, want) {
			bad = &BlockError{Name: f.Name, Off: at, Len: n}
		}
	}
	return bad
}

// readBack hashes a block as the file has it. It was written a moment ago, so that this costs
// little more than to hash what came, and finds also what went wrong behind that.
func (c *Copy) readBack(f *incoming, off, n int64) ([]byte, error) {
	buf, _ := c.leaves.Get().(*[]byte)
	if buf == nil {
		leaf := make([]byte, c.store.layout.leaf)
		buf = &leaf
	}
	defer c.leaves.Put(buf)
	var sum []byte
	err := take(c.turns.work, func() (err error) {
		sum, err = c.store.layout.sumAt(f.f, off, n, *buf, Watch{})
		return err
	})
	return sum, err
}

// judge notes whether a complete block is good and reports whether it was the last.
func (c *Copy) judge(f *incoming, i int64, good bool) (last bool) {
	at, n, _ := f.block(i)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(f.written, i)
	if !good {
		f.claimed.remove(at, at+n)
		c.progress.BadBlocks++
		return false
	}
	c.progress.Done += n
	f.left--
	return f.left == 0
}

// finish makes a complete file durable and closes it.
func (c *Copy) finish(f *incoming) error {
	err := take(c.turns.disk, f.f.Sync)
	if closeErr := f.f.Close(); err == nil {
		err = closeErr
	}
	c.mu.Lock()
	f.f, f.done, f.synced = nil, err == nil, err == nil
	c.mu.Unlock()
	if err != nil {
		return c.lose(err)
	}
	return nil
}

// append writes a piece, which covers n bytes, of a file without hashes.
func (c *Copy) append(f *incoming, p []byte, off, n int64) error {
	c.mu.Lock()
	end, done := f.end, f.done
	c.mu.Unlock()
	if done || off < 0 || off > end || off+n > maxFileSize {
		return fmt.Errorf("copy snapshot: %w: %d bytes at %d of %q, which has %d so far", ErrRange, n, off, f.Name, end)
	}
	if len(p) > 0 {
		if err := c.write(f, p, off); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if grown := off + n - f.end; grown > 0 {
		f.end += grown
		c.progress.Done += grown
	}
	return nil
}

// Finish says that a file without hashes ends where the last piece did. For a file
// with hashes it makes sure of that. It reads all of the file; ErrStopped says that it was
// stopped at that, by the Watch or by the Copy's end, and can be called again unless that
// has come.
func (c *Copy) Finish(name string) error {
	f, err := c.begin(name)
	if err != nil {
		return err
	}
	defer c.active.Done()
	c.mu.Lock()
	done, end := f.done, f.end
	c.mu.Unlock()
	switch {
	case done:
		return nil
	case f.sized:
		return fmt.Errorf("copy snapshot: %w: %q", ErrIncomplete, name)
	}
	h, err := c.open(f)
	if err == nil {
		err = h.Truncate(end) // it may end with a hole
	}
	if err != nil {
		return fmt.Errorf("copy snapshot: %w", err)
	}
	d, err := c.hash(h)
	switch {
	case errors.Is(err, ErrStopped): // nothing is lost, it is only not done
		return fmt.Errorf("copy snapshot: %w", err)
	case err != nil:
		return c.lose(err)
	}
	if !d.agrees(&f.File) {
		return c.restart(f)
	}
	c.mu.Lock()
	d.describe(&f.File)
	c.mu.Unlock()
	return c.finish(f)
}

// hash hashes a whole file, which may take minutes: it lets others have their turn, and ends when the Copy does.
func (c *Copy) hash(r io.ReaderAt) (*digest, error) {
	w := Watch{Stop: func() bool { return c.watch.stopped() != nil || c.over() }, Read: c.watch.Read}
	return c.store.layout.hashInTurn(r, w, func(f func() error) error { return take(c.turns.work, f) })
}

// over reports whether Commit or Abort waits for the calls that run.
func (c *Copy) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// restart forgets the content of a file that is not what its checksum says.
func (c *Copy) restart(f *incoming) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	bad := &BlockError{Name: f.Name, Len: f.end}
	c.progress.Done -= f.end
	c.progress.BadBlocks++
	f.end = 0
	return bad
}

// Receive takes in the answer to a read at off: readSize bytes are covered, of which
// the attachment has those that are not in holes; eof says that the file ends there.
// An answer of braft or of Reader.Serve framed with AppendSegment, it is taken the
// same way as by WriteAt and Finish.
func (c *Copy) Receive(name string, off, readSize int64, eof bool, attachment []byte) error {
	f, err := c.begin(name)
	if err != nil {
		return err
	}
	defer c.active.Done()
	if f.sized && eof && off+readSize < f.Size {
		return fmt.Errorf("copy snapshot: %w: the sender's %q ends at %d, not at %d", ErrIncomplete, name, off+readSize, f.Size)
	}
	if f.sized {
		err = c.receiveSized(name, off, readSize, attachment)
	} else if err = c.append(f, nil, off, 0); err == nil {
		err = Segments(attachment, off, readSize, func(at int64, p []byte) error { return c.write(f, p, at) })
		if err == nil {
			err = c.append(f, nil, off, readSize)
		}
	}
	if err == nil && eof && !f.sized {
		err = c.Finish(name)
	}
	return err
}

// receiveSized writes segments, and zeros for what lies between: there may be other
// bytes, which an interrupted copy left.
func (c *Copy) receiveSized(name string, off, readSize int64, attachment []byte) error {
	var bad *BlockError
	put := func(at int64, p []byte) error {
		err := c.WriteAt(name, p, at)
		if errors.As(err, &bad) {
			return nil // the rest may be good
		}
		return err
	}
	zeros := func(end int64) error {
		for off < end {
			n := min(end-off, writeBuffer)
			if err := put(off, make([]byte, n)); err != nil {
				return err
			}
			off += n
		}
		return nil
	}
	end := off + readSize
	err := Segments(attachment, off, readSize, func(at int64, p []byte) error {
		if err := zeros(at); err != nil {
			return err
		}
		off += int64(len(p))
		return put(at, p)
	})
	if err == nil {
		err = zeros(end)
	}
	if err == nil && bad != nil {
		err = bad
	}
	return err
}
