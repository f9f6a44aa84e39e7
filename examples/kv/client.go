package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// client is a connection to one replica. It follows no redirection and repeats nothing: an error says what happened.
//
// Ownership: one goroutine uses it at a time; close may be called from anywhere.
type client struct {
	addr string
	conn net.Conn
	rd   *bufio.Reader
}

// answerError is an answer that begins with "-": MOVED, CLUSTERDOWN, UNKNOWN, …
type answerError string

func (e answerError) Error() string { return string(e) }

// is reports whether the answer's first word is the given one.
func (e answerError) is(word string) bool { return strings.HasPrefix(string(e), word+" ") }

// dialClient connects within timeout. If it fails nothing was sent.
func dialClient(addr string, timeout time.Duration) (*client, error) {
	conn, err := net.DialTimeout("tcp", addr, timeout)
	if err != nil {
		return nil, err
	}
	return &client{addr: addr, conn: conn, rd: bufio.NewReaderSize(conn, 64<<10)}, nil
}

func (c *client) close() { c.conn.Close() }

// do sends one command and waits for its answer: a string, an int64, nil, or a list of these.
func (c *client) do(timeout time.Duration, args ...string) (any, error) {
	all, err := c.doMany(timeout, args)
	if err != nil {
		return nil, err
	}
	if err, ok := all[0].(answerError); ok {
		return nil, err
	}
	return all[0], nil
}

// doMany sends several commands at once and waits for all answers, among which there may be answerErrors.
func (c *client) doMany(timeout time.Duration, commands ...[]string) ([]any, error) {
	if err := c.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	var b []byte
	for _, args := range commands {
		b = appendTexts(b, args...)
	}
	if _, err := c.conn.Write(b); err != nil {
		return nil, err
	}
	answers := make([]any, 0, len(commands))
	for range commands {
		v, err := c.read()
		if err != nil {
			return nil, err
		}
		answers = append(answers, v)
	}
	return answers, nil
}

// maxDepth is how deep lists may lie in lists. No command's answer comes near.
const maxDepth = 8

// read reads one answer of the protocol's version 2. Whoever answers may be anybody: nothing is believed of sizes.
func (c *client) read() (any, error) { return c.readAt(0) }

func (c *client) readAt(depth int) (any, error) {
	line, err := c.rd.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return nil, errors.New("empty line for an answer")
	}
	switch line[0] {
	case '+':
		return line[1:], nil
	case '-':
		return answerError(line[1:]), nil
	}
	n, err := strconv.ParseInt(line[1:], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("answer %q: %w", line, err)
	}
	switch {
	case line[0] == ':':
		return n, nil
	case n < 0:
		return nil, nil
	case line[0] == '$' && n > maxRequest, line[0] == '*' && (n > maxArgs || depth == maxDepth):
		return nil, fmt.Errorf("answer %q is too large", line)
	case line[0] == '$':
		b := make([]byte, n+2)
		if _, err := io.ReadFull(c.rd, b); err != nil {
			return nil, err
		}
		return string(b[:n]), nil
	case line[0] == '*':
		list := make([]any, 0, min(n, 1024))
		for range n {
			v, err := c.readAt(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	}
	return nil, fmt.Errorf("answer %q is of an unknown kind", line)
}

// movedTo returns where an answer sends the client, "" if it does not.
func movedTo(err error) string {
	var e answerError
	if !errors.As(err, &e) || !e.is("MOVED") {
		return ""
	}
	return string(e)[strings.LastIndexByte(string(e), ' ')+1:]
}

// nothingDone reports whether an error says for certain that a command was not carried out, and that
// it is worth trying again.
func nothingDone(err error) bool {
	var e answerError
	if errors.As(err, &e) {
		return e.is("MOVED") || e.is("CLUSTERDOWN") || e.is("BUSY")
	}
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial"
}

// parseInfo reads the lines of INFO.
func parseInfo(text string) map[string]string {
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	return info
}
