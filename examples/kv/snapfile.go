package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A snapshot's files begin with 8 bytes, fileMagic and fileVersion. Then follow blocks, and nothing else:
//
//	4 bytes  length of the data, little-endian, with lastBlock set in the file's last block
//	4 bytes  CRC-32C of the block's offset in the file (8 bytes), the 4 bytes above, and the data
//	data     up to fileBlock bytes
//
// The blocks' data, one after the other, is what a file says; what that is its writer decides.
const (
	fileMagic   = "graftkv"
	fileVersion = 1
	fileBlock   = 128 << 10
	blockHead   = 8
	lastBlock   = 1 << 31
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// blockSum is a block's checksum. The offset is part of it, so that blocks cannot change places.
func blockSum(offset int64, length, data []byte) uint32 {
	var at [8]byte
	binary.LittleEndian.PutUint64(at[:], uint64(offset))
	sum := crc32.Update(0, castagnoli, at[:])
	sum = crc32.Update(sum, castagnoli, length)
	return crc32.Update(sum, castagnoli, data)
}

// fileWriter writes a snapshot's file. It remembers an error, which close returns.
//
// Ownership: one goroutine uses it.
type fileWriter struct {
	w      io.WriteCloser
	block  []byte // with room for its head
	offset int64  // of the block in the file
	err    error
}

// newFileWriter takes over w. buf is used if it is large enough, and can be used again after close.
func newFileWriter(w io.WriteCloser, buf []byte) *fileWriter {
	if cap(buf) < blockHead+fileBlock {
		buf = make([]byte, 0, blockHead+fileBlock)
	}
	f := &fileWriter{w: w, block: buf[:blockHead]}
	f.put(append([]byte(fileMagic), fileVersion))
	return f
}

// put writes bytes to the file.
func (f *fileWriter) put(b []byte) {
	if f.err == nil {
		_, f.err = f.w.Write(b)
		f.offset += int64(len(b))
	}
}

// flush ends a block.
func (f *fileWriter) flush(flags uint32) {
	length, data := f.block[:4], f.block[blockHead:]
	binary.LittleEndian.PutUint32(length, uint32(len(data))|flags)
	binary.LittleEndian.PutUint32(f.block[4:], blockSum(f.offset, length, data))
	f.put(f.block)
	f.block = f.block[:blockHead]
}

// write adds data, of any length.
func (f *fileWriter) write(data []byte) {
	for len(data) > 0 && f.err == nil {
		if len(f.block) == blockHead+fileBlock {
			f.flush(0)
		}
		n := min(len(data), blockHead+fileBlock-len(f.block))
		f.block = append(f.block, data[:n]...)
		data = data[n:]
	}
}

func (f *fileWriter) number(n uint64) {
	var b [binary.MaxVarintLen64]byte
	f.write(b[:binary.PutUvarint(b[:], n)])
}

// text adds bytes behind their length.
func (f *fileWriter) text(b []byte) {
	f.number(uint64(len(b)))
	f.write(b)
}

// close ends the file, and returns the first error there was.
func (f *fileWriter) close() error {
	f.flush(lastBlock)
	return errors.Join(f.err, f.w.Close())
}

// fileError says what is wrong with a snapshot's file, and where.
type fileError struct {
	name   string
	offset int64
	err    error
}

func (e *fileError) Error() string {
	return fmt.Sprintf("snapshot file %s, offset %d: %v", e.name, e.offset, e.err)
}

func (e *fileError) Unwrap() error { return e.err }

var (
	errFileCut     = errors.New("the file ends early")
	errFileKind    = errors.New("this is no file of a kv snapshot")
	errFileSum     = errors.New("the block is damaged: its checksum is wrong")
	errFileBlock   = errors.New("the block is damaged: its length is wrong")
	errFileData    = errors.New("there are more data than there should be")
	errFileNumber  = errors.New("a number is damaged")
	errFileTooLong = errors.New("a length is out of bounds")
)

// fileReader reads what a fileWriter wrote. Every error of its names the file and the offset. It hands out nothing that
// does not match its checksum.
//
// Ownership: one goroutine uses it.
type fileReader struct {
	r      io.Reader
	name   string
	offset int64 // of the next block in the file
	begin  int64 // of data in the file
	data   []byte
	used   int // of data
	last   bool
	block  []byte
}

// newFileReader reads the file's beginning. buf is used for blocks for which it is large enough.
func newFileReader(r io.Reader, name string, buf []byte) (*fileReader, error) {
	f := &fileReader{r: r, name: name, block: buf}
	var head [len(fileMagic) + 1]byte
	if err := f.fetch(head[:]); err != nil {
		return nil, err
	}
	if string(head[:len(fileMagic)]) != fileMagic {
		return nil, &fileError{name, 0, errFileKind}
	}
	if v := head[len(fileMagic)]; v != fileVersion {
		return nil, &fileError{name, int64(len(fileMagic)), fmt.Errorf("the file is of version %d, this program reads version %d", v, fileVersion)}
	}
	return f, nil
}

// fetch reads bytes of the file.
func (f *fileReader) fetch(b []byte) error {
	n, err := io.ReadFull(f.r, b)
	f.offset += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errFileCut
	}
	if err != nil {
		return &fileError{f.name, f.offset, err}
	}
	return nil
}

// next reads a block.
func (f *fileReader) next() error {
	at := f.offset
	if f.last {
		return &fileError{f.name, at, errFileCut}
	}
	var head [blockHead]byte
	if err := f.fetch(head[:]); err != nil {
		return err
	}
	length := binary.LittleEndian.Uint32(head[:])
	f.last, length = length&lastBlock != 0, length&^lastBlock
	if length > fileBlock || length < fileBlock && !f.last {
		return &fileError{f.name, at, errFileBlock}
	}
	if uint32(cap(f.block)) < length {
		f.block = make([]byte, length)
	}
	f.begin, f.used, f.data = f.offset, 0, f.block[:length]
	if err := f.fetch(f.data); err != nil {
		f.data = nil
		return err
	}
	if blockSum(at, head[:4], f.data) != binary.LittleEndian.Uint32(head[4:]) {
		f.data = nil
		return &fileError{f.name, at, errFileSum}
	}
	return nil
}

// wrong is an error at the place in the file that is read next.
func (f *fileReader) wrong(err error) error {
	return &fileError{f.name, f.begin + int64(f.used), err}
}

// read fills b.
func (f *fileReader) read(b []byte) error {
	for len(b) > 0 {
		if f.used == len(f.data) {
			if err := f.next(); err != nil {
				return err
			}
			continue // a last block may be empty
		}
		n := copy(b, f.data[f.used:])
		f.used, b = f.used+n, b[n:]
	}
	return nil
}

func (f *fileReader) number() (n uint64, err error) {
	var b [1]byte
	for shift := 0; shift < 64; shift += 7 {
		if err := f.read(b[:]); err != nil {
			return 0, err
		}
		if shift == 63 && b[0] > 1 {
			break
		}
		n |= uint64(b[0]&0x7f) << shift
		if b[0] < 0x80 {
			return n, nil
		}
	}
	return 0, f.wrong(errFileNumber)
}

// text reads bytes behind their length, which is at most the given one.
func (f *fileReader) text(most int) ([]byte, error) {
	n, err := f.number()
	if err != nil {
		return nil, err
	}
	if n > uint64(most) {
		return nil, f.wrong(errFileTooLong)
	}
	b := make([]byte, n)
	return b, f.read(b)
}

// end makes sure that there is nothing more.
func (f *fileReader) end() error {
	for !f.last && f.used == len(f.data) {
		if err := f.next(); err != nil {
			return err
		}
	}
	if f.used < len(f.data) {
		return f.wrong(errFileData)
	}
	var b [1]byte
	switch n, err := f.r.Read(b[:]); {
	case n > 0:
		return &fileError{f.name, f.offset, errFileData}
	case err != nil && !errors.Is(err, io.EOF):
		return &fileError{f.name, f.offset, err}
	}
	return nil
}
