package baidustd

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
)

// captured is one line of testdata/frames.jsonl: a frame seen on the wire.
type captured struct {
	Name       string `json:"name"`
	Direction  string `json:"direction"`
	WrittenBy  string `json:"written_by"`
	Service    string `json:"service"`
	Method     string `json:"method"`
	Hex        string `json:"hex"`
	Attachment string `json:"attachment_hex"`
}

func readFrames(t testing.TB) []captured {
	file, err := os.Open("testdata/frames.jsonl")
	require.NoError(t, err)
	defer file.Close()
	var all []captured
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c captured
		require.NoError(t, json.Unmarshal(lines.Bytes(), &c))
		all = append(all, c)
	}
	require.NoError(t, lines.Err())
	return all
}

// reencode writes the header and meta that m and the payload sizes ask for.
func reencode(m Meta, message, attachment int) []byte {
	if m.IsRequest {
		return AppendRequest(nil, string(m.Service), string(m.Method), m.CorrelationID, message, attachment)
	}
	return AppendResponse(nil, m.ErrorCode, string(m.ErrorText), m.CorrelationID, message, attachment)
}

func TestCapturedFramesRoundTrip(t *testing.T) {
	byBraft := 0
	for _, c := range readFrames(t) {
		raw, err := hex.DecodeString(c.Hex)
		require.NoError(t, err)
		body, meta, err := ParseHeader(raw, DefaultMaxBody)
		require.NoError(t, err, c.Name)
		require.Len(t, raw, HeaderSize+body, c.Name)
		m, err := ParseMeta(raw[HeaderSize : HeaderSize+meta])
		require.NoError(t, err, c.Name)
		require.Equal(t, c.Direction == "request", m.IsRequest, c.Name)
		if m.IsRequest {
			require.Equal(t, c.Service, string(m.Service), c.Name)
			require.Equal(t, c.Method, string(m.Method), c.Name)
		}
		if m.CompressType != 0 {
			continue
		}
		message, attachment, ok := m.Split(raw[HeaderSize+meta:])
		if !ok {
			require.NotEqual(t, "braft", c.WrittenBy, c.Name)
			continue
		}
		require.Equal(t, c.Attachment, hex.EncodeToString(attachment), c.Name)
		if c.WrittenBy != "braft" {
			continue
		}
		byBraft++
		again := reencode(m, len(message), len(attachment))
		again = append(append(again, message...), attachment...)
		require.Equal(t, c.Hex, hex.EncodeToString(again), c.Name)
	}
	require.Greater(t, byBraft, 50)
}

func TestParseHeaderRefuses(t *testing.T) {
	for _, test := range []struct {
		name, header string
		want         error
	}{
		{"empty body", "PRPC\x00\x00\x00\x00\x00\x00\x00\x00", nil},
		{"at the limit", "PRPC\x00\x00\x03\xe8\x00\x00\x03\xe8", nil},
		{"over the limit", "PRPC\x00\x00\x03\xe9\x00\x00\x00\x01", ErrTooLarge},
		{"2 GiB", "PRPC\x80\x00\x00\x00\x00\x00\x00\x01", ErrTooLarge},
		{"4 GiB - 1", "PRPC\xff\xff\xff\xff\xff\xff\xff\xff", ErrTooLarge},
		{"meta longer than body", "PRPC\x00\x00\x00\x05\x00\x00\x00\x06", ErrMetaSize},
		{"meta 4 GiB", "PRPC\x00\x00\x00\x05\xff\xff\xff\xff", ErrMetaSize},
		{"http", "GET / HTTP/1", ErrMagic},
		{"tls", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00", ErrMagic},
		{"lower case", "prpc\x00\x00\x00\x00\x00\x00\x00\x00", ErrMagic},
	} {
		_, _, err := ParseHeader([]byte(test.header), 1000)
		require.Equal(t, test.want, err, test.name)
	}
	_, _, err := ParseHeader([]byte("PRPC\x00\x02\x00\x00\x00\x01\x00\x01"), 1<<20)
	require.Equal(t, ErrMetaSize, err, "a meta over its limit within a large body")
	require.True(t, CheckMagic(nil))
	require.True(t, CheckMagic([]byte("PR")))
	require.False(t, CheckMagic([]byte("G")))
}

func TestParseMetaRefuses(t *testing.T) {
	request := "\x0a\x06\x0a\x01S\x12\x01M"
	for _, test := range []struct {
		name, meta string
		ok         bool
	}{
		{"request", request, true},
		{"empty response", "\x12\x00", true},
		{"unknown fields", request + "\x52\x01x\x58\x05\xf8\x07\x01", true},
		{"wrong wire type of compress_type is an unknown field", request + "\x1a\x01x", true},
		{"unknown group", request + "\xa3\x06\xa4\x06", true},
		{"request split over two occurrences", "\x0a\x03\x0a\x01S\x0a\x03\x12\x01M", true},
		{"empty", "", false},
		{"neither", "\x18\x00\x20\x01", false},
		{"both", request + "\x12\x00", false},
		{"no method", "\x0a\x03\x0a\x01S", false},
		{"no service", "\x0a\x03\x12\x01M", false},
		{"field 0", request + "\x02\x00", false},
		{"cut tag", request + "\x80", false},
		{"cut varint", request + "\x20\x80", false},
		{"long varint", request + "\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", false},
		{"cut bytes", "\x0a\x07\x0a\x01S\x12\x01M", false},
		{"huge length", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", false},
		{"inner length beyond the part", "\x0a\x06\x0a\x01S\x12\x02M", false},
		{"unclosed group", request + "\xa3\x06", false},
		{"nested groups without end", strings.Repeat("\xa3\x06", MaxMeta/2), false},
	} {
		_, err := ParseMeta([]byte(test.meta))
		if test.ok {
			require.NoError(t, err, test.name)
		} else {
			require.ErrorIs(t, err, ErrMeta, test.name)
		}
	}
}

func TestSplitChecksTheAttachment(t *testing.T) {
	payload := []byte("message+attachment")
	for _, test := range []struct {
		size int32
		ok   bool
	}{{0, true}, {10, true}, {int32(len(payload)), true}, {int32(len(payload)) + 1, false}, {-1, false}, {1<<31 - 1, false}} {
		m := Meta{AttachmentSize: test.size}
		message, attachment, ok := m.Split(payload)
		require.Equal(t, test.ok, ok, test.size)
		if ok {
			require.Len(t, attachment, int(test.size))
			require.Equal(t, payload, append(append([]byte(nil), message...), attachment...))
		}
	}
}

func TestNumbersAtTheirBounds(t *testing.T) {
	for _, id := range []int64{0, 1, -1, 1<<63 - 1, -1 << 63, 4294969602} {
		m, err := ParseMeta(AppendRequestMeta(nil, "s", "m", id, 1<<31-1))
		require.NoError(t, err)
		require.Equal(t, id, m.CorrelationID)
		require.Equal(t, int32(1<<31-1), m.AttachmentSize)
	}
	for _, code := range []int32{0, 1, -1, 1<<31 - 1, -1 << 31} {
		m, err := ParseMeta(AppendResponseMeta(nil, code, "text", 7, 0))
		require.NoError(t, err)
		require.Equal(t, code, m.ErrorCode)
		require.Equal(t, "text", string(m.ErrorText))
	}
	// An int32 written as a longer varint keeps its low bits.
	b := protowire.AppendVarint([]byte("\x12\x00\x28"), 1<<32|5)
	m, err := ParseMeta(b)
	require.NoError(t, err)
	require.Equal(t, int32(5), m.AttachmentSize)
}

func FuzzParse(f *testing.F) {
	for _, c := range readFrames(f) {
		raw, err := hex.DecodeString(c.Hex)
		require.NoError(f, err)
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) < HeaderSize {
			return
		}
		body, meta, err := ParseHeader(raw, 1<<20)
		if err != nil || len(raw) < HeaderSize+body {
			return
		}
		m, err := ParseMeta(raw[HeaderSize : HeaderSize+meta])
		if err != nil {
			return
		}
		message, attachment, ok := m.Split(raw[HeaderSize+meta : HeaderSize+body])
		if !ok {
			return
		}
		again := reencode(m, len(message), len(attachment))
		m2, err := ParseMeta(again[HeaderSize:])
		require.NoError(t, err)
		m.CompressType, m.AuthLen = 0, 0
		require.True(t, bytes.Equal(m.Service, m2.Service) && bytes.Equal(m.Method, m2.Method) && bytes.Equal(m.ErrorText, m2.ErrorText))
		require.Equal(t, []any{m.IsRequest, m.ErrorCode, m.CorrelationID, m.AttachmentSize},
			[]any{m2.IsRequest, m2.ErrorCode, m2.CorrelationID, m2.AttachmentSize})
	})
}

func BenchmarkParseMeta(b *testing.B) {
	meta := AppendRequestMeta(nil, "braft.RaftService", "append_entries", 4294969602, 100)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseMeta(meta); err != nil {
			b.Fatal(err)
		}
	}
}
