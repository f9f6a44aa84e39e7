package fulltest

import (
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/graft-raft/graft/internal/vfs"
)

// disk is a host's disk, which takes its time and can be made to fail.
//
// Ownership: any goroutine may use it. mu is a leaf lock: whoever waits for the disk does not hold it.
type disk struct {
	fs *vfs.Mem

	mu    sync.Mutex
	usual time.Duration // of a sync
	pause time.Duration // at present
	fail  error         // what syncs end with
	stuck chan struct{} // syncs wait until it is closed; nil: they do not
	left  int           // operations until one fails; negative: none
	spent bool          // it has failed
}

func newDisk(usual time.Duration) *disk {
	d := &disk{usual: usual, pause: usual, left: -1}
	d.use(vfs.NewMem())
	return d
}

// use puts another file system on the disk.
func (d *disk) use(fs *vfs.Mem) {
	d.fs = fs
	fs.SetInjector(d.inject)
}

// inject is called before each operation.
func (d *disk) inject(op vfs.Op) error {
	d.mu.Lock()
	pause, fail, stuck := d.pause, d.fail, d.stuck
	if d.left >= 0 {
		if d.left--; d.left < 0 {
			d.spent = true
			d.mu.Unlock()
			return syscall.EIO
		}
	}
	d.mu.Unlock()
	if op.Kind != vfs.KindSync && op.Kind != vfs.KindSyncDir {
		return nil
	}
	if underLock(op) {
		return fail
	}
	if stuck != nil {
		<-stuck
	}
	if pause > 0 {
		<-time.After(pause)
	}
	return fail
}

// underLock reports whether it is an operation of snapshots for which others wait by a lock. No time passes in a bubble while somebody
// waits for one, so that such an operation must not wait for time to pass.
func underLock(op vfs.Op) bool {
	return strings.HasSuffix(op.Name, "/"+savedEntries) || op.Kind == vfs.KindSyncDir && strings.Contains(op.Name, "/snapshots/")
}

// slow sets how long a sync takes.
func (d *disk) slow(pause time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pause = pause
}

// breakDown has syncs fail.
func (d *disk) breakDown() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = syscall.EIO
}

// broken reports whether syncs fail.
func (d *disk) broken() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fail != nil
}

// hang has syncs wait.
func (d *disk) hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck == nil {
		d.stuck = make(chan struct{})
	}
}

// failAt has one operation fail, after so many others.
func (d *disk) failAt(operation int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left, d.spent = operation, false
}

// failed reports whether the operation that was to fail has.
func (d *disk) failed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.spent
}

// release has syncs that wait go on.
func (d *disk) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck != nil {
		close(d.stuck)
		d.stuck = nil
	}
}

// mend makes the disk sound again.
func (d *disk) mend() {
	d.release()
	d.mu.Lock()
	d.pause, d.fail, d.left = d.usual, nil, -1
	d.mu.Unlock()
	d.fs.SetCapacity(-1)
}
