package wire

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Tags and fields of AppendEntriesResponse.
const (
	tagRespTerm  = 1<<3 | byte(protowire.VarintType)
	tagSuccess   = 2<<3 | byte(protowire.VarintType)
	tagLastIndex = 3<<3 | byte(protowire.VarintType)
	tagReadonly  = 4<<3 | byte(protowire.VarintType)

	fieldFeatures      = 1000
	fieldRespGroup     = 1001
	fieldConflictTerm  = 1002
	fieldConflictIndex = 1003
	fieldAppliedIndex  = 1004
	fieldStoredIndex   = 1005
	fieldInstallDone   = 1006
	fieldInstallTotal  = 1007
	fieldInstallLoads  = 1008
)

// AppendResponse is an AppendEntriesResponse. graft's own fields are absent where
// they are 0.
type AppendResponse struct {
	Term    int64
	Success bool

	LastIndex    int64
	HasLastIndex bool
	Readonly     bool
	HasReadonly  bool

	Features                    uint64
	GraftGroup                  uint64
	ConflictTerm, ConflictIndex int64
	AppliedIndex, StoredIndex   int64
	InstallDone, InstallTotal   int64
	InstallLoads                bool
}

// Append appends the encoded message.
func (r *AppendResponse) Append(b []byte) []byte {
	b = protowire.AppendVarint(append(b, tagRespTerm), uint64(r.Term))
	b = append(b, tagSuccess, byte(protowire.EncodeBool(r.Success)))
	if r.HasLastIndex {
		b = protowire.AppendVarint(append(b, tagLastIndex), uint64(r.LastIndex))
	}
	if r.HasReadonly {
		b = append(b, tagReadonly, byte(protowire.EncodeBool(r.Readonly)))
	}
	if r.Features != 0 {
		b = appendNumber(b, fieldFeatures, r.Features)
	}
	if r.GraftGroup != 0 {
		b = appendNumber(b, fieldRespGroup, r.GraftGroup)
	}
	if r.ConflictTerm != 0 {
		b = appendNumber(b, fieldConflictTerm, uint64(r.ConflictTerm))
	}
	if r.ConflictIndex != 0 {
		b = appendNumber(b, fieldConflictIndex, uint64(r.ConflictIndex))
	}
	if r.AppliedIndex != 0 {
		b = appendNumber(b, fieldAppliedIndex, uint64(r.AppliedIndex))
	}
	if r.StoredIndex != 0 {
		b = appendNumber(b, fieldStoredIndex, uint64(r.StoredIndex))
	}
	if r.InstallDone != 0 {
		b = appendNumber(b, fieldInstallDone, uint64(r.InstallDone))
	}
	if r.InstallTotal != 0 {
		b = appendNumber(b, fieldInstallTotal, uint64(r.InstallTotal))
	}
	if r.InstallLoads {
		b = appendNumber(b, fieldInstallLoads, 1)
	}
	return b
}

// ParseAppendResponse decodes a message as the generated code would.
func ParseAppendResponse(b []byte) (AppendResponse, error) {
	var r AppendResponse
	var hasTerm, hasSuccess bool
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return AppendResponse{}, malformed("a tag", n)
		}
		b = b[n:]
		if typ != protowire.VarintType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return AppendResponse{}, malformed(fmt.Sprintf("field %d", num), n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return AppendResponse{}, malformed(fmt.Sprintf("field %d", num), n)
		}
		b = b[n:]
		switch num {
		case 1:
			r.Term, hasTerm = int64(v), true
		case 2:
			r.Success, hasSuccess = v != 0, true
		case 3:
			r.LastIndex, r.HasLastIndex = int64(v), true
		case 4:
			r.Readonly, r.HasReadonly = v != 0, true
		case fieldFeatures:
			r.Features = v
		case fieldRespGroup:
			r.GraftGroup = v
		case fieldConflictTerm:
			r.ConflictTerm = int64(v)
		case fieldConflictIndex:
			r.ConflictIndex = int64(v)
		case fieldAppliedIndex:
			r.AppliedIndex = int64(v)
		case fieldStoredIndex:
			r.StoredIndex = int64(v)
		case fieldInstallDone:
			r.InstallDone = int64(v)
		case fieldInstallTotal:
			r.InstallTotal = int64(v)
		case fieldInstallLoads:
			r.InstallLoads = v != 0
		}
	}
	if !hasTerm || !hasSuccess {
		return AppendResponse{}, fmt.Errorf("%w: a required field is missing", ErrMalformed)
	}
	return r, nil
}
