package main

import (
	"bufio"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Whoever answers may be anybody: sizes that cannot be are refused, and take no memory.
func TestAbsurdAnswersAreRefused(t *testing.T) {
	for _, answer := range []string{
		"$9223372036854775807\r\n", "$9223372036854775806\r\n", "$25165825\r\n", "*9223372036854775807\r\n", "*1048577\r\n",
		strings.Repeat("*1\r\n", 1_000_000), "*1048576\r\n", "$5\r\nabc", "%2\r\n", "\r\n", ":x\r\n", "",
	} {
		c := &client{rd: bufio.NewReader(strings.NewReader(answer))}
		v, err := c.read()
		assert.Error(t, err, "%.40q gives %v", answer, v)
	}
	c := &client{rd: bufio.NewReader(strings.NewReader("*2\r\n*2\r\n$1\r\na\r\n:7\r\n$-1\r\n"))}
	v, err := c.read()
	assert.NoError(t, err)
	assert.Equal(t, []any{[]any{"a", int64(7)}, nil}, v)
}
