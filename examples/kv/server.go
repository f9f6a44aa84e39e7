package main

import (
	"errors"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"
)

// maxClients bounds the connections that are open at once, as Redis's option of that name.
const maxClients = 10_000

// server accepts clients.
//
// Invariants: every connection in sessions has its goroutines counted in wg; after close none is added.
//
// Ownership: mu, a leaf lock, guards the fields below it.
type server struct {
	r        *replica
	listener net.Listener
	wg       sync.WaitGroup

	mu       sync.Mutex
	sessions map[int64]*session
	accepted int64
	closed   bool
}

func newServer(r *replica, listener net.Listener) *server {
	return &server{r: r, listener: listener, sessions: make(map[int64]*session)}
}

// start begins to accept.
func (v *server) start() {
	v.wg.Add(1)
	go func() {
		defer v.wg.Done()
		v.accept()
	}()
}

// accept runs until the listener is closed. What fails for lack of file descriptors is tried again.
func (v *server) accept() {
	for {
		conn, err := v.listener.Accept()
		if err == nil {
			v.open(conn)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		v.r.cfg.log.Warn("redis port: accept", zap.Error(err))
		time.Sleep(10 * time.Millisecond)
	}
}

// open starts a session for a new connection.
func (v *server) open(conn net.Conn) {
	v.mu.Lock()
	refuse := v.closed || len(v.sessions) >= maxClients
	var s *session
	if !refuse {
		v.accepted++
		s = newSession(v.r, conn, v.accepted)
		v.sessions[s.id] = s
		v.wg.Add(1)
	}
	v.mu.Unlock()
	if refuse {
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		conn.Write([]byte("-ERR max number of clients reached\r\n"))
		conn.Close()
		return
	}
	go func() {
		defer v.wg.Done()
		s.serve()
		v.mu.Lock()
		delete(v.sessions, s.id)
		v.mu.Unlock()
	}()
}

// all returns the sessions that are open.
func (v *server) all() []*session {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := make([]*session, 0, len(v.sessions))
	for _, s := range v.sessions {
		all = append(all, s)
	}
	return all
}

func (v *server) counts() (open int, accepted int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.sessions), v.accepted
}

// close stops to accept, hangs up on everybody, and waits until all have ended.
func (v *server) close() {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	v.listener.Close()
	for _, s := range v.all() {
		s.close()
	}
	v.wg.Wait()
}
