package main

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
)

// session is one client's connection. Its reader reads commands and begins them, its querier carries out queries, and
// its writer writes the answers; in between nobody waits, so that a client may have as many commands under way as the
// outbox allows.
//
// Ownership: the three are goroutines of serve. The fields below "the reader's" are its own; name is read by CLIENT
// LIST too.
type session struct {
	r    *replica
	conn net.Conn
	id   int64
	out  *outbox
	seq  *sequencer
	name atomic.Pointer[string]

	// The reader's.
	proto    int
	readonly bool // READONLY was said: reads are served on a follower too
	quit     bool // QUIT was said
	frames   framer
	args     [][]byte
	op       op
}

const (
	readBuffer  = 16 << 10 // to begin with
	writeBuffer = 64 << 10 // written at once, unless a single answer is larger
)

func newSession(r *replica, conn net.Conn, id int64) *session {
	s := &session{r: r, conn: conn, id: id, proto: 2, out: newOutbox(), seq: newSequencer()}
	s.name.Store(new(string))
	return s
}

// serve handles the connection until its end.
func (s *session) serve() {
	var writer, querier sync.WaitGroup
	writer.Go(s.writeAll)
	querier.Go(s.queryAll)
	if err := s.readAll(); err != nil {
		s.reply(errorReply(err.Error()))
	}
	s.out.finish()
	writer.Wait()
	s.close()
	querier.Wait()
}

// close ends the connection at once; whoever waits for it is let go.
func (s *session) close() {
	s.conn.Close()
	s.out.abandon()
	s.seq.close()
}

// readAll begins the commands that come in, until the client says goodbye or goes away. An error is for the client
// to know.
func (s *session) readAll() error {
	buf := make([]byte, readBuffer)
	start, end := 0, 0
	for !s.quit {
		args, size, err := s.frames.next(buf[start:end], s.args)
		if err != nil {
			return err
		}
		if size > 0 {
			start += size
			if len(args) > 0 {
				s.dispatch(args)
				s.args, s.op.args = emptied(args), emptied(s.op.args)
			}
			continue
		}
		buf, start, end = makeRoom(buf, start, end)
		n, err := s.conn.Read(buf[end:])
		end += n
		if err != nil && n == 0 {
			return nil // end of file, or the connection broke
		}
	}
	return nil
}

// makeRoom moves or copies buf[start:end] so that more can be read behind it. A buffer that one large command made
// grow is given back after it.
func makeRoom(buf []byte, start, end int) (roomy []byte, newStart, newEnd int) {
	kept := end - start
	switch {
	case kept == 0 && len(buf) > 1<<20:
		return make([]byte, readBuffer), 0, 0
	case kept > len(buf)/2:
		roomy = make([]byte, 2*len(buf))
		copy(roomy, buf[start:end])
		return roomy, 0, kept
	case start > 0:
		copy(buf, buf[start:end])
	}
	return buf, 0, kept
}

// maxKeptArgs keeps what one command with many arguments has taken from staying with its connection.
const maxKeptArgs = 1 << 10

// emptied is args to be used again. They hold no buffer that was given back.
func emptied(args [][]byte) [][]byte {
	if cap(args) > maxKeptArgs {
		return nil
	}
	clear(args)
	return args[:0]
}

// writeAll writes the answers, as many at once as are there.
func (s *session) writeAll() {
	var slots []outSlot
	var buf []byte
	for ok := true; ok; {
		if slots, ok = s.out.take(slots[:0]); !ok {
			return
		}
		size := 0 // of what is in buf
		for i := range slots {
			slot := slots[i]
			slots[i] = outSlot{}
			buf = slot.reply.encode(buf, int(slot.proto))
			size += slot.size
			if len(buf) < writeBuffer && i < len(slots)-1 {
				continue
			}
			if _, err := s.conn.Write(buf); err != nil {
				s.close()
				return
			}
			if buf = buf[:0]; cap(buf) > 4*writeBuffer {
				buf = nil
			}
			s.out.written(size)
			size = 0
		}
	}
}

// reply answers the current command at once.
func (s *session) reply(r *reply) {
	if number, ok := s.out.reserve(s.proto, r.size()); ok {
		s.out.answer(number, r)
	}
}

// dispatch begins one command.
func (s *session) dispatch(args [][]byte) {
	cmd := findCommand(args[0])
	switch {
	case cmd == nil:
		s.reply(unknownCommand(args))
	case (cmd.arity > 0 && len(args) != cmd.arity) || len(args) < -cmd.arity:
		s.reply(errorReply("ERR wrong number of arguments for '" + cmd.name + "' command"))
	case cmd.local != nil:
		r := cmd.local(s, args) // may change the protocol's version, HELLO's own answer included
		s.reply(r)
	case cmd.later != nil:
		if number, ok := s.out.reserve(s.proto, weight(args)); ok {
			cmd.later(s, args, func(r *reply) { s.out.answer(number, r) })
		}
	default:
		s.dispatchKeys(cmd, args)
	}
}

// dispatchKeys begins a command that reads or writes the keyspace.
func (s *session) dispatchKeys(cmd *command, args [][]byte) {
	slot := 0 // of a command without keys; MOVED needs one
	for i, key := range cmd.keys(args) {
		if len(key) > maxKey {
			s.reply(replyKeyLong)
			return
		}
		if i == 0 {
			slot = slotOf(key)
		}
	}
	if cmd.write != nil {
		s.op = op{args: s.op.args[:0]}
		if refused := cmd.write(s, &s.op, args); refused != nil {
			s.reply(refused)
			return
		}
		if moved := s.r.redirect(slot, false); moved != nil {
			s.reply(moved)
			return
		}
		s.beginWrite(slot, weight(args))
		return
	}
	query, refused := cmd.read(args)
	if refused == nil {
		refused = s.r.redirect(slot, s.readonly)
	}
	if refused != nil {
		s.reply(refused)
		return
	}
	s.beginRead(slot, weight(args), query)
}

// perItem is what an argument, an item of an answer, or an answer, keeps in memory besides its bytes, or more.
const perItem = 64

// weight is how many bytes a command keeps while it is under way, or more.
func weight(args [][]byte) int {
	n := perItem * (1 + len(args))
	for _, arg := range args {
		n += len(arg)
	}
	return n
}

// write is a proposal under way. It is pooled, with its closure, so that a write costs no allocation but the
// library's.
type write struct {
	s      *session
	number uint64
	slot   int
	data   []byte
	done   func(result any, err error)
}

var writes sync.Pool

func newWrite() *write {
	if w, ok := writes.Get().(*write); ok {
		return w
	}
	w := new(write)
	w.done = w.settle
	return w
}

// maxPooledWrite keeps single large values from staying in the pool.
const maxPooledWrite = 16 << 10

// beginWrite proposes s.op, of a command of that weight.
func (s *session) beginWrite(slot, weight int) {
	if !s.seq.beginWrite() {
		return
	}
	number, ok := s.out.reserve(s.proto, weight)
	if !ok {
		s.seq.endWrite()
		return
	}
	w := newWrite()
	w.s, w.number, w.slot = s, number, slot
	w.data = s.op.append(w.data[:0])
	s.r.propose(w.data, w.done)
}

// settle answers the command with what has become of the proposal.
func (w *write) settle(result any, err error) {
	s, number := w.s, w.number
	var r *reply
	if err != nil {
		r = s.r.refusal(err, w.slot)
	} else {
		r = result.(*reply)
	}
	w.s = nil
	if cap(w.data) > maxPooledWrite {
		w.data = nil
	}
	writes.Put(w)
	s.out.answer(number, r)
	s.seq.endWrite()
}

// read is a query under way.
type read struct {
	s      *session
	number uint64
	slot   int
	query  query

	// The sequencer's.
	confirmed bool
	err       error // why it is not carried out; set when it is confirmed
}

// beginRead has a query carried out once this replica has confirmed that it knows everything that was acknowledged.
func (s *session) beginRead(slot, weight int, query query) {
	number, ok := s.out.reserve(s.proto, weight)
	if !ok {
		return
	}
	r := &read{s: s, number: number, slot: slot, query: query}
	s.seq.beginRead(r)
	s.r.node.ReadIndexAsync(r.confirm)
}

// confirm says that the query may be carried out. It runs on goroutines of the library on which others wait, such as
// the one that reads what another replica answers; so it leaves the query to the connection's own.
func (r *read) confirm(_ int64, err error) { r.s.seq.confirm(r, err) }

// queryAll carries out the queries as their turn comes.
func (s *session) queryAll() {
	var reads []*read
	for ok := true; ok; {
		reads, ok = s.seq.next(reads[:0])
		for i, r := range reads {
			if !s.out.admit(r.number) {
				return
			}
			s.out.answer(r.number, r.run())
			reads[i] = nil
		}
	}
}

func (r *read) run() *reply {
	if r.err != nil {
		return r.s.r.refusal(r.err, r.slot)
	}
	return r.query(r.s.r.machine)
}

// unknownCommand is Redis's answer to a name that it does not know.
func unknownCommand(args [][]byte) *reply {
	var b strings.Builder
	fmt.Fprintf(&b, "ERR unknown command '%.128s', with args beginning with: ", args[0])
	for _, arg := range args[1:] {
		if b.Len() > 128 {
			break
		}
		fmt.Fprintf(&b, "'%.128s' ", arg)
	}
	return errorReply(b.String())
}
