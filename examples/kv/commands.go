package main

// command is one entry of the command table. Exactly one of local, later, read and write is set.
type command struct {
	name    string
	arity   int // with the name itself; negative: at least so many
	first   int // position of the first key, 0 if there is none
	last    int // of the last, from the end if negative
	step    int // from one key to the next
	group   string
	summary string

	// local answers from what this process knows, at once.
	local func(s *session, args [][]byte) *reply
	// later answers once, whenever it likes. The arguments must not be used after it returned.
	later func(s *session, args [][]byte, answer func(*reply))
	// read returns the query that answers once the read is known to be linearizable, or why there is none. The
	// arguments must not be used after it returned.
	read func(args [][]byte) (q query, refused *reply)
	// write fills in the operation to propose, or returns why there is none.
	write func(s *session, o *op, args [][]byte) (refused *reply)
}

// commandList is everything that the server understands.
var commandList []*command

// commands finds them by their name in lower case.
var commands = make(map[string]*command)

func init() { // not an initialiser, since COMMAND refers to the table that it is in
	for _, list := range [][]*command{keyReads, keyWrites, connectionCommands, serverCommands, clusterCommands, raftCommands, saveCommands} {
		commandList = append(commandList, list...)
	}
	for _, cmd := range commandList {
		commands[cmd.name] = cmd
	}
}

// maxCommandName is longer than any name in the table.
const maxCommandName = 32

// findCommand looks a name up, in any case; nil if there is no such command.
func findCommand(name []byte) *command {
	var lower [maxCommandName]byte
	if len(name) > len(lower) {
		return nil
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	return commands[string(lower[:len(name)])]
}

// keys yields the positions and bytes of the keys among args: their number from 0, and the key.
func (c *command) keys(args [][]byte) func(yield func(int, []byte) bool) {
	return func(yield func(int, []byte) bool) {
		if c.first == 0 {
			return
		}
		last := c.last
		if last < 0 {
			last += len(args)
		}
		for i, n := c.first, 0; i <= last && i < len(args); i, n = i+c.step, n+1 {
			if !yield(n, args[i]) {
				return
			}
		}
	}
}

// flags are the command's flags as COMMAND tells them.
func (c *command) flags() []string {
	switch {
	case c.write != nil:
		return []string{"write", "denyoom"}
	case c.read != nil:
		return []string{"readonly"}
	case c.later != nil:
		return []string{"admin", "stale", "blocking"}
	}
	return []string{"loading", "stale", "fast"}
}
