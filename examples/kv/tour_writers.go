package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"
)

// tourPace is the pause between two writes of a writer.
const tourPace = 2 * time.Millisecond

// writeStats is what came of the writes of one step.
type writeStats struct {
	acknowledged int
	unknown      int           // the connection broke, or leadership was lost, while the write was under way
	pause        time.Duration // the longest time in which no writer got an acknowledgement
}

// tourWriters write all the time, and remember every write that was acknowledged. A key is written by one writer, once;
// what certainly was not done is tried again.
//
// Ownership: mu, a leaf lock, guards the fields below it.
type tourWriters struct {
	g    *tourGroup
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	acked   map[string]string
	unknown map[string]string
	lastAck time.Time
	step    writeStats
}

func startWriters(ctx context.Context, g *tourGroup, n int) *tourWriters {
	w := &tourWriters{g: g, acked: make(map[string]string), unknown: make(map[string]string), lastAck: time.Now()}
	ctx, w.stop = context.WithCancel(ctx)
	for id := range n {
		w.wg.Go(func() { w.run(ctx, id) })
	}
	return w
}

// close ends the writers and waits for them.
func (w *tourWriters) close() {
	w.stop()
	w.wg.Wait()
}

func (w *tourWriters) run(ctx context.Context, id int) {
	tick := time.NewTicker(tourPace)
	defer tick.Stop()
	var c *client
	defer func() {
		if c != nil {
			c.close()
		}
	}()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		key, value := fmt.Sprintf("writer-%d-%d", id, n), fmt.Sprintf("%d.%d", id, rand.Uint64())
		c = w.write(ctx, c, key, value)
	}
}

// write writes one key until its outcome is certain or certainly unknown. It returns the connection to go on with.
func (w *tourWriters) write(ctx context.Context, c *client, key, value string) *client {
	pause := time.NewTicker(tourPace)
	defer pause.Stop()
	to := ""
	for hops := 0; ctx.Err() == nil; hops++ {
		var err error
		if c == nil {
			c, err = w.connect(to)
		}
		if err == nil {
			_, err = c.do(tourAnswer, "SET", key, value)
		}
		if err == nil {
			w.acknowledged(map[string]string{key: value})
			return c
		}
		if c != nil {
			c.close()
			c = nil
		}
		if !nothingDone(err) {
			w.mu.Lock()
			w.unknown[key] = value
			w.step.unknown++
			w.mu.Unlock()
			return nil
		}
		if to = movedTo(err); to == "" || hops > 3 { // while leadership changes, replicas may point at each other
			<-pause.C
		}
	}
	return c
}

// connect dials the replica that the last answer named, or any.
func (w *tourWriters) connect(to string) (*client, error) {
	if all := w.g.list(); to == "" && len(all) > 0 {
		to = all[rand.IntN(len(all))].redis
	}
	return dialClient(to, tourAnswer)
}

// acknowledged notes writes that were acknowledged just now.
func (w *tourWriters) acknowledged(written map[string]string) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.Copy(w.acked, written)
	w.step.acknowledged += len(written)
	w.step.pause = max(w.step.pause, now.Sub(w.lastAck))
	w.lastAck = now
}

// nextStep returns what came of the writes since it was last called.
func (w *tourWriters) nextStep() writeStats {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.step.pause = max(w.step.pause, now.Sub(w.lastAck))
	done := w.step
	w.step = writeStats{}
	return done
}
