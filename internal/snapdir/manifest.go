package snapdir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

const (
	manifestName = "__raft_snapshot_meta" // braft's
	manifestTemp = manifestName + ".tmp"

	// crcSize is what graft_crc takes as the last field: tag and value.
	crcSize = 6

	// maxManifest bounds the memory that a manifest of another node takes; it has
	// room for 2 TiB in files of any size.
	maxManifest = 64 << 20
)

// crcTag is the tag of graft_crc: field 1999, four bytes.
var crcTag = [2]byte{1999<<3&0x7f | 5 | 0x80, 1999 << 3 >> 7}

// ManifestName is the name under which the manifest is served, as by braft.
const ManifestName = manifestName

// File is what a manifest says of one file.
type File struct {
	Name     string
	UserMeta []byte
	Checksum string // equal ones of equal names mean equal bytes; empty: none
	Size     int64  // -1: not known, as in a manifest of braft's

	blockSize int64
	blocks    []byte // the hashes of the blocks; nil if the size is not known
}

// hashed reports whether the file's content can be verified.
func (f *File) hashed() bool { return f.Size >= 0 }

// block is the range and hash of the i-th block.
func (f *File) block(i int64) (off, n int64, sum []byte) {
	off = i * f.blockSize
	return off, min(f.blockSize, f.Size-off), f.blocks[i*sumSize : (i+1)*sumSize]
}

// manifest is a table of contents.
//
// Invariants: meta is set; the names are valid and agree with each other; blocks
// fit sizes.
//
// Ownership: constant once made.
type manifest struct {
	meta    *raftpb.SnapshotMeta
	ours    bool // group is known, and there is a CRC
	group   uint64
	files   []File
	byName  map[string]int
	diskCRC uint32 // of all of the manifest's file, if it came from one
}

func (m *manifest) index() int64 { return m.meta.GetLastIncludedIndex() }

// file finds a file by its name.
func (m *manifest) file(name string) *File {
	if i, ok := m.byName[name]; ok {
		return &m.files[i]
	}
	return nil
}

// bytes is the size of all files, -1 if one is not known.
func (m *manifest) bytes() int64 {
	total := int64(0)
	for i := range m.files {
		if !m.files[i].hashed() {
			return -1
		}
		total += m.files[i].Size
	}
	return total
}

// newManifest builds the table of contents; the names were checked as they came in.
func newManifest(meta *raftpb.SnapshotMeta, group uint64, files []File) *manifest {
	m := &manifest{meta: proto.CloneOf(meta), ours: true, group: group, files: files, byName: map[string]int{}}
	for i := range files {
		m.byName[files[i].Name] = i
	}
	return m
}

// encode is the message as it is on the wire: without File.meta.source.
func (m *manifest) encode() ([]byte, error) {
	pb := &raftpb.LocalSnapshotPbMeta{Meta: m.meta}
	for i := range m.files {
		f := &m.files[i]
		meta := &raftpb.LocalFileMeta{UserMeta: f.UserMeta}
		if f.Checksum != "" {
			meta.Checksum = proto.String(f.Checksum)
		}
		if f.hashed() {
			meta.GraftSize, meta.GraftBlockSize, meta.GraftBlocks = proto.Int64(f.Size), proto.Int64(f.blockSize), f.blocks
		}
		pb.Files = append(pb.Files, &raftpb.LocalSnapshotPbMeta_File{Name: proto.String(f.Name), Meta: meta})
	}
	if m.ours {
		pb.GraftGroupId = proto.Uint64(m.group)
	}
	data, err := proto.Marshal(pb)
	if err != nil || !m.ours {
		return data, err
	}
	sum := crc32.Checksum(data, castagnoli())
	return binary.LittleEndian.AppendUint32(append(data, crcTag[:]...), sum), nil
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// parse reads the message as encode writes it, or as braft does.
func parse(data []byte, l layout) (*manifest, error) {
	var pb raftpb.LocalSnapshotPbMeta
	if len(data) > maxManifest {
		return nil, fmt.Errorf("it has %d bytes, at most %d are allowed", len(data), maxManifest)
	}
	if err := proto.Unmarshal(data, &pb); err != nil {
		return nil, fmt.Errorf("it cannot be decoded: %w", err)
	}
	m := &manifest{meta: pb.GetMeta(), ours: pb.GraftGroupId != nil, group: pb.GetGraftGroupId(), byName: map[string]int{}}
	if err := checkCRC(data, &pb); err != nil {
		return nil, err
	}
	if m.meta == nil || m.index() <= 0 || m.meta.GetLastIncludedTerm() < 0 {
		return nil, errors.New("it has no index and term")
	}
	names, total := newNameSet(), int64(0)
	for _, file := range pb.GetFiles() {
		if err := names.add(file.GetName()); err != nil {
			return nil, err
		}
		f, err := parseFile(file, l)
		if err != nil {
			return nil, fmt.Errorf("file %q: %w", file.GetName(), err)
		}
		if total += max(f.Size, 0); total > maxFileSize {
			return nil, fmt.Errorf("its files have more than %d bytes together", int64(maxFileSize))
		}
		m.byName[f.Name] = len(m.files)
		m.files = append(m.files, f)
	}
	return m, nil
}

// checkCRC demands a CRC of a manifest that names a group: only braft makes one
// without.
func checkCRC(data []byte, pb *raftpb.LocalSnapshotPbMeta) error {
	switch at := len(data) - crcSize; {
	case pb.GraftCrc == nil && pb.GraftGroupId == nil:
		return nil
	case pb.GraftCrc == nil:
		return errors.New("its CRC is missing")
	case at < 0 || [2]byte(data[at:]) != crcTag || binary.LittleEndian.Uint32(data[at+2:]) != crc32.Checksum(data[:at], castagnoli()):
		return errors.New("its CRC is wrong")
	}
	return nil
}

// parseFile checks that what is said of a file fits together.
func parseFile(file *raftpb.LocalSnapshotPbMeta_File, l layout) (File, error) {
	meta := file.GetMeta()
	f := File{Name: file.GetName(), UserMeta: meta.GetUserMeta(), Checksum: meta.GetChecksum(), Size: -1}
	if meta == nil || meta.GraftSize == nil {
		return f, nil
	}
	f.Size, f.blockSize, f.blocks = meta.GetGraftSize(), meta.GetGraftBlockSize(), meta.GetGraftBlocks()
	switch {
	case !l.fits(f.Size, f.blockSize) || int64(len(f.blocks)) != count(f.Size, f.blockSize)*sumSize:
		return f, fmt.Errorf("size %d, blocks of %d and %d bytes of hashes do not fit together", f.Size, f.blockSize, len(f.blocks))
	case strings.HasPrefix(f.Checksum, checksumPrefix) && f.Checksum != checksum(f.blocks, f.Size):
		return f, errors.New("its checksum does not match its blocks")
	}
	return f, nil
}

// writeManifest puts the manifest into a directory, durable but for its name, which
// the caller's SyncDir makes durable.
func writeManifest(fs vfs.FS, dir string, m *manifest) error {
	data, err := m.encode()
	if err != nil {
		return err
	}
	if len(data) > maxManifest {
		return fmt.Errorf("snapshot has too many files: its manifest would have %d bytes, at most %d are allowed", len(data), maxManifest)
	}
	disk := append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)
	m.diskCRC = crc32.Checksum(disk, castagnoli())
	temp := filepath.Join(dir, manifestTemp)
	f, err := fs.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(disk, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return fs.Rename(temp, filepath.Join(dir, manifestName))
}

// readManifest reads the manifest of a directory. A *DamageError says that there is
// none or a bad one, anything else that it could not be read.
func readManifest(fs vfs.FS, dir string, l layout) (*manifest, error) {
	file := filepath.Join(dir, manifestName)
	damaged := func(off int64, format string, args ...any) (*manifest, error) {
		return nil, &DamageError{Path: file, Name: manifestName, Offset: off, Reason: fmt.Sprintf(format, args...)}
	}
	disk, err := readFile(fs, file, maxManifest+4)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return damaged(0, "there is no manifest")
	case errors.Is(err, errTooLong):
		return damaged(0, "it has %v", err)
	case err != nil:
		return nil, err
	case len(disk) < 4 || int64(binary.BigEndian.Uint32(disk)) != int64(len(disk)-4):
		return damaged(0, "its length does not fit its size")
	}
	m, err := parse(disk[4:], l)
	if err != nil {
		return damaged(4, "%v", err)
	}
	m.diskCRC = crc32.Checksum(disk, castagnoli())
	return m, nil
}
