package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/tidwall/redcon"

	"github.com/graft-raft/graft"
)

// serverCommands are about the server: what it is, what it can do, how it is.
var serverCommands = []*command{
	{name: "command", arity: -1, group: "server", summary: "Describes the commands.", local: doCommand},
	{name: "config", arity: -2, group: "server", summary: "GET: what clients ask about the configuration.", local: doConfig},
	{name: "info", arity: -1, group: "server", summary: "Describes the server.", local: doInfo},
	{name: "role", arity: 1, group: "server", summary: "Says whether this replica leads.", local: doRole},
	{name: "time", arity: 1, group: "server", summary: "Returns the server's clock.", local: doTime},
}

// doCommand is COMMAND [COUNT | LIST | INFO [name …] | DOCS [name …]].
func doCommand(s *session, args [][]byte) *reply {
	sub := "INFO"
	if len(args) > 1 {
		sub = strings.ToUpper(string(args[1]))
	}
	named := commandList
	if len(args) > 2 {
		named = nil
		for _, name := range args[2:] {
			named = append(named, findCommand(name))
		}
	}
	switch sub {
	case "COUNT":
		return intReply(int64(len(commandList)))
	case "LIST":
		names := make([]string, 0, len(commandList))
		for _, cmd := range commandList {
			names = append(names, cmd.name)
		}
		return rawReply(appendTexts(nil, names...))
	case "INFO":
		b := redcon.AppendArray(nil, len(named))
		for _, cmd := range named {
			b = appendCommand(b, cmd, s.proto)
		}
		return rawReply(b)
	case "DOCS":
		return rawReply(appendDocs(named, s.proto))
	}
	return errorReply("ERR unknown subcommand '" + string(args[1]) + "'. Try COMMAND COUNT, DOCS, INFO or LIST.")
}

// appendCommand appends what COMMAND INFO says of a command: name, arity, flags, positions of keys, and four lists
// that are empty here.
func appendCommand(b []byte, c *command, proto int) []byte {
	if c == nil {
		return appendNull(b, proto)
	}
	b = redcon.AppendArray(b, 10)
	b = redcon.AppendBulkString(b, c.name)
	b = redcon.AppendInt(b, int64(c.arity))
	b = redcon.AppendArray(b, len(c.flags()))
	for _, flag := range c.flags() {
		b = redcon.AppendString(b, flag)
	}
	for _, n := range []int{c.first, c.last, c.step} {
		b = redcon.AppendInt(b, int64(n))
	}
	for range 4 {
		b = redcon.AppendArray(b, 0)
	}
	return b
}

// appendDocs appends what COMMAND DOCS says; it leaves out names that it does not know.
func appendDocs(named []*command, proto int) []byte {
	known := make([]*command, 0, len(named))
	for _, c := range named {
		if c != nil {
			known = append(known, c)
		}
	}
	b := appendMap(nil, proto, len(known))
	for _, c := range known {
		b = redcon.AppendBulkString(b, c.name)
		b = appendMap(b, proto, 3)
		b = appendTextPair(b, "summary", c.summary)
		b = appendTextPair(b, "since", "1.0.0")
		b = appendTextPair(b, "group", c.group)
	}
	return b
}

// configValues is what CONFIG GET knows: what tools ask before they begin.
var configValues = [][2]string{
	{"save", ""}, {"appendonly", "yes"}, {"appendfsync", "always"}, {"databases", "1"}, {"maxmemory", "0"},
	{"maxmemory-policy", "noeviction"}, {"cluster-enabled", "yes"}, {"timeout", "0"},
	{"maxclients", fmt.Sprint(maxClients)}, {"proto-max-bulk-len", fmt.Sprint(maxValue)},
}

// doConfig is CONFIG GET pattern [pattern …] and CONFIG RESETSTAT.
func doConfig(s *session, args [][]byte) *reply {
	switch sub := strings.ToUpper(string(args[1])); {
	case sub == "RESETSTAT" && len(args) == 2:
		return replyOK
	case sub == "GET" && len(args) > 2:
	default:
		return errorReply("ERR unknown subcommand or wrong number of arguments for '" + string(args[1]) + "'. Try CONFIG GET.")
	}
	var found [][2]string
	for _, pair := range configValues {
		for _, pattern := range args[2:] {
			if glob(strings.ToLower(string(pattern)), pair[0]) {
				found = append(found, pair)
				break
			}
		}
	}
	b := appendMap(nil, s.proto, len(found))
	for _, pair := range found {
		b = appendTextPair(b, pair[0], pair[1])
	}
	return rawReply(b)
}

func doTime(*session, [][]byte) *reply {
	now := time.Now()
	return rawReply(appendTexts(nil, fmt.Sprint(now.Unix()), fmt.Sprint(now.Nanosecond()/1000)))
}

// infoSection is one part of INFO.
type infoSection struct {
	name string
	text func(r *replica) string
}

var infoSections = []infoSection{
	{"Server", infoServer}, {"Clients", infoClients}, {"Persistence", infoPersistence}, {"Raft", infoRaft}, {"Cluster", infoCluster}, {"Keyspace", infoKeyspace},
}

// doInfo is INFO [section …].
func doInfo(s *session, args [][]byte) *reply {
	wanted := func(name string) bool {
		for _, arg := range args[1:] {
			switch a := strings.ToLower(string(arg)); a {
			case "all", "default", "everything", strings.ToLower(name):
				return true
			}
		}
		return len(args) == 1
	}
	var parts []string
	for _, section := range infoSections {
		if wanted(section.name) {
			parts = append(parts, "# "+section.name+"\r\n"+section.text(s.r))
		}
	}
	return textReply(strings.Join(parts, "\r\n"))
}

// infoLines formats names and values that follow each other.
func infoLines(pairs ...any) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "%v:%v\r\n", pairs[i], pairs[i+1])
	}
	return b.String()
}

func infoServer(r *replica) string {
	return infoLines("redis_version", serverVersion, "redis_mode", "cluster", "os", runtime.GOOS+" "+runtime.GOARCH,
		"process_id", os.Getpid(), "run_id", nodeID(r.self), "tcp_port", portOf(r.cfg.redis),
		"uptime_in_seconds", int(time.Since(r.started).Seconds()))
}

func infoClients(r *replica) string {
	open, accepted := r.server.counts()
	return infoLines("connected_clients", open, "total_connections_received", accepted, "maxclients", maxClients)
}

// infoRaft says how the replica stands. The digest is the keys' at raft_applied_index: replicas whose applied indexes
// are equal have equal digests.
func infoRaft(r *replica) string {
	st := r.node.Status()
	applied, digest, _ := r.machine.digest()
	text := infoLines("raft_self", raftKey(r.self), "raft_group", r.cfg.group, "raft_membership", r.membership(st),
		"raft_role", st.Role, "raft_term", st.Term, "raft_leader", st.Leader.Address,
		"raft_commit_index", st.CommitIndex, "raft_applied_index", applied,
		"raft_first_index", st.FirstIndex, "raft_last_index", st.LastIndex, "raft_conf_index", st.ConfIndex,
		"raft_peers", raftKeys(st.Conf.Voters()), "raft_learners", raftKeys(st.Conf.Learners()),
		"raft_old_peers", raftKeys(st.OldConf.Voters()), "raft_stage", st.Stage, "raft_awaited", raftKeys(st.Awaited),
		"raft_state_digest", fmt.Sprintf("%016x", digest), "raft_waiting", boolReply(st.Waiting).n)
	text += snapshotLines(st.Snapshot)
	if c := st.Change; c != nil {
		text += infoLines("raft_change_from", c.From, "raft_change_to", c.To, "raft_change_ms", c.Elapsed.Milliseconds())
	}
	if !st.Transferring.IsZero() {
		text += infoLines("raft_transferring", raftKey(st.Transferring))
	}
	for i, f := range st.Followers {
		text += infoLines(fmt.Sprintf("raft_follower%d", i), followerLine(f))
	}
	if st.Err != nil {
		text += infoLines("raft_error", oneLine(st.Err))
	}
	return text
}

// followerLine is what a leader knows of a peer, in the manner of Redis's slave0.
func followerLine(f graft.FollowerStatus) string {
	line := fmt.Sprintf("peer=%s,state=%s,match=%d,lag=%d,rate=%.0f,remaining_ms=%d,silent_ms=%d,catching_up=%d,leaving=%d", raftKey(f.Peer), f.State,
		f.Match, f.Lag, f.Rate, f.Remaining.Milliseconds(), f.Silent.Milliseconds(), boolReply(f.CatchingUp).n, boolReply(f.Leaving).n)
	if f.SnapshotIndex != 0 {
		line += fmt.Sprintf(",snapshot_index=%d,snapshot_done=%d,snapshot_total=%d", f.SnapshotIndex, f.SnapshotDone, f.SnapshotTotal)
	}
	return line
}

func raftKeys(peers []graft.PeerID) string {
	names := make([]string, 0, len(peers))
	for _, p := range peers {
		names = append(names, raftKey(p))
	}
	return strings.Join(names, ",")
}

func infoCluster(*replica) string { return infoLines("cluster_enabled", 1) }

func infoKeyspace(r *replica) string {
	_, _, size := r.machine.digest()
	if size == 0 {
		return ""
	}
	return fmt.Sprintf("db0:keys=%d,expires=0,avg_ttl=0\r\n", size)
}
