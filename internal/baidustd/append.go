package baidustd

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

// One byte tags of the fields written.
const (
	tagRequest        = fieldRequest<<3 | byte(protowire.BytesType)
	tagResponse       = fieldResponse<<3 | byte(protowire.BytesType)
	tagCompressType   = fieldCompressType<<3 | byte(protowire.VarintType)
	tagCorrelationID  = fieldCorrelationID<<3 | byte(protowire.VarintType)
	tagAttachmentSize = fieldAttachmentSize<<3 | byte(protowire.VarintType)
	tagService        = fieldService<<3 | byte(protowire.BytesType)
	tagMethod         = fieldMethod<<3 | byte(protowire.BytesType)
	tagErrorCode      = fieldErrorCode<<3 | byte(protowire.VarintType)
	tagErrorText      = fieldErrorText<<3 | byte(protowire.BytesType)
)

// AppendRequestMeta appends the RpcMeta of a request.
func AppendRequestMeta(b []byte, service, method string, id int64, attachment int) []byte {
	size := 2 + protowire.SizeBytes(len(service)) + protowire.SizeBytes(len(method))
	b = append(b, tagRequest)
	b = protowire.AppendVarint(b, uint64(size))
	b = append(b, tagService)
	b = protowire.AppendString(b, service)
	b = append(b, tagMethod)
	b = protowire.AppendString(b, method)
	return appendCommon(b, id, attachment)
}

// AppendResponseMeta appends the RpcMeta of a response. The error code is written
// also where it is 0, the text only where there is one, as brpc does.
func AppendResponseMeta(b []byte, code int32, text string, id int64, attachment int) []byte {
	size := 1 + protowire.SizeVarint(uint64(int64(code)))
	if text != "" {
		size += 1 + protowire.SizeBytes(len(text))
	}
	b = append(b, tagResponse)
	b = protowire.AppendVarint(b, uint64(size))
	b = append(b, tagErrorCode)
	b = protowire.AppendVarint(b, uint64(int64(code)))
	if text != "" {
		b = append(b, tagErrorText)
		b = protowire.AppendString(b, text)
	}
	return appendCommon(b, id, attachment)
}

func appendCommon(b []byte, id int64, attachment int) []byte {
	b = append(b, tagCompressType, 0, tagCorrelationID)
	b = protowire.AppendVarint(b, uint64(id))
	if attachment > 0 {
		b = append(b, tagAttachmentSize)
		b = protowire.AppendVarint(b, uint64(attachment))
	}
	return b
}

// AppendRequest appends header and meta of a request whose message and attachment
// of the given sizes follow.
func AppendRequest(b []byte, service, method string, id int64, message, attachment int) []byte {
	at := len(b)
	b = append(b, "PRPC\x00\x00\x00\x00\x00\x00\x00\x00"...)
	return fillHeader(AppendRequestMeta(b, service, method, id, attachment), at, message+attachment)
}

// AppendResponse appends header and meta of a response whose message and
// attachment of the given sizes follow. Both are 0 if code is not.
func AppendResponse(b []byte, code int32, text string, id int64, message, attachment int) []byte {
	at := len(b)
	b = append(b, "PRPC\x00\x00\x00\x00\x00\x00\x00\x00"...)
	return fillHeader(AppendResponseMeta(b, code, text, id, attachment), at, message+attachment)
}

// fillHeader sets the sizes in the header at offset at, whose meta ends b.
func fillHeader(b []byte, at, payload int) []byte {
	meta := len(b) - at - HeaderSize
	binary.BigEndian.PutUint32(b[at+4:], uint32(meta+payload))
	binary.BigEndian.PutUint32(b[at+8:], uint32(meta))
	return b
}
