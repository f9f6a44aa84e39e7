//go:build !linux

package vfs

// writeVAt writes the buffers one by one.
func (f *osFile) writeVAt(bufs [][]byte, off int64) (int, error) {
	total := 0
	for _, b := range bufs {
		n, err := f.f.WriteAt(b, off+int64(total))
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (f *osFile) sync() error { return f.f.Sync() }

func (f *osFile) preallocate(off, n int64) error { return f.zeroFill(off, n) }
