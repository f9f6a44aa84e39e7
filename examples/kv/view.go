package main

import "sync/atomic"

// view is the keys as they were when they were frozen, for a snapshot that is written while they change. Freezing copies the list
// of buckets and nothing else; the keyspace copies a bucket before it writes to it for the first time, unless
// the snapshot has that bucket behind it.
//
// Ownership: the goroutine that writes the snapshot reads buckets, in their order; replaced is the keyspace's.
type view struct {
	buckets [scanBuckets]bucket
	size    int
	bytes   int64
	digest  uint64

	replaced [scanBuckets]bool // the keyspace has another bucket of its own by now
	passed   atomic.Int64      // how many buckets the snapshot has behind it
}

// freeze returns a view of all keys. There is one at a time, until thaw.
func (k *keyspace) freeze() *view {
	k.view = &view{buckets: k.buckets, size: k.size, bytes: k.bytes, digest: k.digest}
	return k.view
}

// thaw ends a view, if it is the keyspace's.
func (k *keyspace) thaw(v *view) {
	if k.view == v {
		k.view = nil
	}
}

// needs reports whether the keyspace must not write to its bucket.
func (v *view) needs(n int) bool { return !v.replaced[n] && int64(n) >= v.passed.Load() }

// pass says that the snapshot has buckets up to n behind it. Their memory can be used again.
func (v *view) pass(n int) {
	v.buckets[n] = nil
	v.passed.Store(int64(n) + 1)
}
