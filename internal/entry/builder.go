package entry

import (
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// Builder encodes new entries into a batch, byte for byte as braft would. The zero
// Builder is ready for Reset.
//
// Ownership: one caller at a time. Payloads are copied; Build hands the memory
// over and the builder does not touch it again.
type Builder struct {
	first       int64
	count       int
	metas, data []byte
}

// Reset drops what has been appended and starts a batch at index first.
func (b *Builder) Reset(first int64) {
	b.first, b.count = first, 0
	b.metas, b.data = b.metas[:0], b.data[:0]
}

// Grow makes room for so many more entries with payloads of so many bytes
// together, to spare a caller who knows them the copying while the batch grows.
func (b *Builder) Grow(entries, bytes int) {
	b.metas = slices.Grow(b.metas, entries*(shortSize+2)) // terms and lengths of two bytes
	b.data = slices.Grow(b.data, bytes)
}

// AppendData appends an entry that carries payload. Terms begin at 1 and do not
// decrease.
func (b *Builder) AppendData(term int64, payload []byte) {
	b.count++
	b.data = append(b.data, payload...)
	if t := uint64(term); t < 0x80 && len(payload) < 0x80 {
		b.metas = append(b.metas, tagRecord, shortSize-2, tagTerm, byte(t), tagType, byte(Data), tagDataLen, byte(len(payload)))
		return
	}
	size := 4 + protowire.SizeVarint(uint64(term)) + protowire.SizeVarint(uint64(len(payload)))
	b.metas = append(b.metas, tagRecord, byte(size), tagTerm)
	b.metas = protowire.AppendVarint(b.metas, uint64(term))
	b.metas = append(b.metas, tagType, byte(Data), tagDataLen)
	b.metas = protowire.AppendVarint(b.metas, uint64(len(payload)))
}

// AppendConf appends a configuration entry. peers must not be empty; old is the
// old configuration of a joint entry, else empty.
func (b *Builder) AppendConf(term int64, peers, old []string) {
	b.count++
	// term, type, and a data_len of 0, which braft writes for configurations too
	size := 1 + protowire.SizeVarint(uint64(term)) + 2 + 2
	for _, list := range [2][]string{peers, old} {
		for _, peer := range list {
			size += 1 + protowire.SizeBytes(len(peer))
		}
	}
	b.metas = append(b.metas, tagRecord)
	b.metas = protowire.AppendVarint(b.metas, uint64(size))
	b.metas = append(b.metas, tagTerm)
	b.metas = protowire.AppendVarint(b.metas, uint64(term))
	b.metas = append(b.metas, tagType, byte(Configuration))
	for _, peer := range peers {
		b.metas = protowire.AppendString(append(b.metas, tagPeers), peer)
	}
	b.metas = append(b.metas, tagDataLen, 0)
	for _, peer := range old {
		b.metas = protowire.AppendString(append(b.metas, tagOldPeers), peer)
	}
}

// Count returns the number of entries appended since Reset.
func (b *Builder) Count() int { return b.count }

// Size returns the number of bytes they take, payloads included.
func (b *Builder) Size() int { return len(b.metas) + len(b.data) }

// Build returns the batch and forgets it. The next batch begins behind it, unless
// Reset says otherwise.
func (b *Builder) Build() Batch {
	batch := Batch{First: b.first, Count: b.count, Metas: b.metas, Data: b.data}
	*b = Builder{first: batch.Last() + 1}
	return batch
}
