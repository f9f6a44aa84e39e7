package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/redcon"
)

// serverVersion is the version of Redis whose commands clients may expect.
const serverVersion = "7.0.0"

// connectionCommands are about the connection itself.
var connectionCommands = []*command{
	{name: "ping", arity: -1, group: "connection", summary: "Answers.", local: doPing},
	{name: "echo", arity: 2, group: "connection", summary: "Answers with what it is given.", local: doEcho},
	{name: "hello", arity: -1, group: "connection", summary: "Agrees on the protocol's version.", local: doHello},
	{name: "auth", arity: -2, group: "connection", summary: "Is refused: there are no passwords.", local: doAuth},
	{name: "select", arity: 2, group: "connection", summary: "Selects database 0, the only one.", local: doSelect},
	{name: "client", arity: -2, group: "connection", summary: "SETNAME, GETNAME, SETINFO, ID, INFO, LIST, NO-EVICT, NO-TOUCH.", local: doClient},
	{name: "quit", arity: -1, group: "connection", summary: "Ends the connection.", local: doQuit},
	{name: "reset", arity: 1, group: "connection", summary: "Puts the connection into its first state.", local: doReset},
	{name: "readonly", arity: 1, group: "cluster", summary: "Lets a follower serve linearizable reads on this connection.", local: doReadonly},
	{name: "readwrite", arity: 1, group: "cluster", summary: "Takes READONLY back.", local: doReadwrite},
	{name: "asking", arity: 1, group: "cluster", summary: "Does nothing: slots do not move.", local: doAsking},
}

func doPing(_ *session, args [][]byte) *reply {
	switch len(args) {
	case 1:
		return replyPong
	case 2:
		return textReply(string(args[1]))
	}
	return errorReply("ERR wrong number of arguments for 'ping' command")
}

func doEcho(_ *session, args [][]byte) *reply { return textReply(string(args[1])) }

const noPassword = "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"

func doAuth(*session, [][]byte) *reply { return errorReply(noPassword) }

func doSelect(_ *session, args [][]byte) *reply {
	switch n, ok := parseInt(args[1]); {
	case !ok:
		return errorReply("ERR invalid DB index")
	case n != 0:
		return errorReply("ERR SELECT is not allowed in cluster mode")
	}
	return replyOK
}

func doQuit(s *session, _ [][]byte) *reply {
	s.quit = true
	return replyOK
}

func doReset(s *session, _ [][]byte) *reply {
	s.proto, s.readonly = 2, false
	s.name.Store(new(string))
	return &reply{kind: kindStatus, text: "RESET"}
}

func doReadonly(s *session, _ [][]byte) *reply {
	s.readonly = true
	return replyOK
}

func doReadwrite(s *session, _ [][]byte) *reply {
	s.readonly = false
	return replyOK
}

func doAsking(*session, [][]byte) *reply { return replyOK }

// doHello is HELLO [version [AUTH user password] [SETNAME name]].
func doHello(s *session, args [][]byte) *reply {
	proto, name := s.proto, *s.name.Load()
	if len(args) > 1 {
		n, ok := parseInt(args[1])
		if !ok {
			return errorReply("ERR Protocol version is not an integer or out of range")
		}
		if n != 2 && n != 3 {
			return errorReply("NOPROTO unsupported protocol version")
		}
		proto = int(n)
	}
	for i := 2; i < len(args); {
		switch option := strings.ToUpper(string(args[i])); {
		case option == "AUTH" && i+2 < len(args):
			return errorReply(noPassword)
		case option == "SETNAME" && i+1 < len(args):
			if name = string(args[i+1]); !validName(name) {
				return replyBadName
			}
			i += 2
		default:
			return errorReply("ERR Syntax error in HELLO option '" + string(args[i]) + "'")
		}
	}
	s.proto = proto
	s.name.Store(&name)
	role := "replica"
	if s.r.node.IsLeader() {
		role = "master"
	}
	b := appendMap(nil, proto, 7)
	b = appendTextPair(b, "server", "redis")
	b = appendTextPair(b, "version", serverVersion)
	b = redcon.AppendInt(redcon.AppendBulkString(b, "proto"), int64(proto))
	b = redcon.AppendInt(redcon.AppendBulkString(b, "id"), s.id)
	b = appendTextPair(b, "mode", "cluster")
	b = appendTextPair(b, "role", role)
	b = redcon.AppendArray(redcon.AppendBulkString(b, "modules"), 0)
	return rawReply(b)
}

func appendTextPair(b []byte, key, value string) []byte {
	return redcon.AppendBulkString(redcon.AppendBulkString(b, key), value)
}

var replyBadName = errorReply("ERR Client names cannot contain spaces, newlines or special characters.")

// validName reports whether a name would not break the lines of CLIENT LIST.
func validName(name string) bool {
	return len(name) <= 256 && !strings.ContainsFunc(name, func(c rune) bool { return c < '!' || c > '~' })
}

// doClient is CLIENT with what clients say on their own account.
func doClient(s *session, args [][]byte) *reply {
	sub := strings.ToUpper(string(args[1]))
	switch {
	case sub == "SETNAME" && len(args) == 3:
		name := string(args[2])
		if !validName(name) {
			return replyBadName
		}
		s.name.Store(&name)
		return replyOK
	case sub == "GETNAME" && len(args) == 2:
		if name := *s.name.Load(); name != "" {
			return textReply(name)
		}
		return replyNull
	case sub == "SETINFO" && len(args) == 4, (sub == "NO-EVICT" || sub == "NO-TOUCH") && len(args) == 3:
		return replyOK
	case sub == "ID" && len(args) == 2:
		return intReply(s.id)
	case sub == "INFO" && len(args) == 2:
		return textReply(s.describe() + "\n")
	case sub == "LIST":
		all := s.r.server.all()
		slices.SortFunc(all, func(a, b *session) int { return int(a.id - b.id) })
		var b strings.Builder
		for _, c := range all {
			b.WriteString(c.describe() + "\n")
		}
		return textReply(b.String())
	case sub == "TRACKING" && len(args) >= 3 && strings.EqualFold(string(args[2]), "off"):
		return replyOK
	}
	return errorReply("ERR unknown subcommand or wrong number of arguments for '" + string(args[1]) + "'. Try CLIENT ID, GETNAME, INFO, LIST, SETINFO or SETNAME.")
}

// describe is the connection's line in CLIENT LIST.
func (s *session) describe() string {
	return fmt.Sprintf("id=%s addr=%s laddr=%s name=%s db=0",
		strconv.FormatInt(s.id, 10), s.conn.RemoteAddr(), s.conn.LocalAddr(), *s.name.Load())
}
