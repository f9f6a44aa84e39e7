package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// frameAll feeds stream to a framer in pieces of the given size and returns the commands it found.
func frameAll(stream string, piece int) (cmds [][]string, err error) {
	var f framer
	start := 0
	for end := 0; end < len(stream); {
		end = min(end+piece, len(stream))
		for {
			args, size, err := f.next([]byte(stream[start:end]), nil)
			if err != nil {
				return cmds, err
			}
			if size == 0 {
				break
			}
			start += size
			if len(args) > 0 {
				var cmd []string
				for _, a := range args {
					cmd = append(cmd, string(a))
				}
				cmds = append(cmds, cmd)
			}
		}
	}
	return cmds, nil
}

func TestFramesAreFoundHoweverTheyArrive(t *testing.T) {
	stream := "*2\r\n$3\r\nGET\r\n$1\r\na\r\n" + "*0\r\n" + "*-1\r\n" + "PING\r\n" + "\r\n" + `set "a b" 'c'` + "\n" +
		"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$4\r\n\r\n\r\n\r\n"
	want := [][]string{{"GET", "a"}, {"PING"}, {"set", "a b", "c"}, {"SET", "", "\r\n\r\n"}}
	for piece := 1; piece <= len(stream); piece++ {
		got, err := frameAll(stream, piece)
		require.NoError(t, err)
		require.Equal(t, want, got, "in pieces of %d", piece)
	}
}

func TestRubbishIsRefused(t *testing.T) {
	for _, test := range []struct{ stream, want string }{
		{"*x\r\n", "invalid multibulk length"},
		{"*1048577\r\n", "invalid multibulk length"},
		{"*99999999999999999999999", "too big multibulk count string"},
		{"*1\n", "invalid multibulk length"},
		{"*1\r\n+OK\r\n", "expected '$', got '+'"},
		{"*1\r\n$x\r\n", "invalid bulk length"},
		{"*1\r\n$-2\r\n", "invalid bulk length"}, // crashes redcon's own reader
		{"*1\r\n$-20\r\n", "invalid bulk length"},
		{"*1\r\n$9223372036854775807\r\n", "invalid bulk length"},
		{"*1\r\n$2147483648\r\n", "invalid bulk length"},
		{"*1\r\n$+1\r\na\r\n", "invalid bulk length"},
		{"*1\r\n$1\r\nabc", "invalid bulk length"},
		{"*1\r\n$1111111111111111111111", "too big bulk count string"},
		{"$4 PING\r\n", "expected '*', got '$'"},
		{`set "a` + "\r\n", "unbalanced quotes"},
		{strings.Repeat("x", maxInline+1), "too big inline request"},
		{strings.Repeat("x", maxInline+1) + "\n", "too big inline request"},
	} {
		for _, piece := range []int{1, len(test.stream)} {
			if piece == 1 && len(test.stream) > 1000 {
				continue
			}
			_, err := frameAll(test.stream, piece)
			if assert.Error(t, err, "%.40q", test.stream) {
				assert.Contains(t, err.Error(), "ERR Protocol error: ")
				assert.Contains(t, err.Error(), test.want, "%.40q", test.stream)
			}
		}
	}
}

func TestRequestsAreBounded(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("*100\r\n")
	for range 100 {
		b.WriteString("$1000000\r\n" + strings.Repeat("x", 1_000_000) + "\r\n")
	}
	_, err := frameAll(b.String(), 8<<20)
	assert.Error(t, err)
}

func FuzzFramer(f *testing.F) {
	f.Add("*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n", uint8(3))
	f.Add("*1\r\n$-2\r\n", uint8(1))
	f.Add("*-5\r\nset 'a' \"b\"\r\n", uint8(2))
	f.Fuzz(func(t *testing.T, stream string, piece uint8) {
		whole, err1 := frameAll(stream, len(stream)+1)
		split, err2 := frameAll(stream, int(piece)+1)
		require.Equal(t, err1 == nil, err2 == nil)
		require.Equal(t, whole, split)
	})
}
