package main

import (
	"bytes"
	"math"
	"strconv"
)

// Bounds of what the store holds. They are part of the state machine: all replicas must agree on
// them, so they are constants and not flags.
const (
	maxKey   = 64 << 10
	maxValue = 16 << 20
)

// scanBuckets is how many parts the keys are spread over. A SCAN cursor names a part, and a part is what is copied when
// it is written to while a snapshot needs it.
const scanBuckets = 1 << 14

// keyspace is the data: keys and their values.
//
// A value's bytes never change once they are stored: SET puts others in their place, APPEND writes
// behind them at most. So a slice that was read stays valid without a lock.
//
// Invariants: size is the number of keys, bytes what they and their values come to; digest is the sum of all entries'
// hashes, so it depends on what is stored and not on how it came there. What the view needs is not written to.
//
// Ownership: the machine's; it has no lock of its own.
type keyspace struct {
	buckets [scanBuckets]bucket
	size    int
	bytes   int64
	digest  uint64
	view    *view // nil: nobody needs the keys as they were
}

// bucket is the keys of one part.
type bucket map[string]*item

// item is one stored value.
type item struct {
	value []byte
	hash  uint64 // of key and value
}

// bucketOf spreads keys over the buckets, in the same way on every replica.
func bucketOf(key []byte) int { return int(hash64(key, nil) >> 50 % scanBuckets) }

func (k *keyspace) find(key []byte) *item { return k.buckets[bucketOf(key)][string(key)] }

// get returns a key's value. The bytes must not be changed.
func (k *keyspace) get(key []byte) (value []byte, ok bool) {
	if it := k.find(key); it != nil {
		return it.value, true
	}
	return nil, false
}

// set stores value, which belongs to the keyspace from then on.
func (k *keyspace) set(key, value []byte) {
	b := k.writable(bucketOf(key))
	it := b[string(key)]
	if it == nil {
		it = new(item)
		b[string(key)] = it
		k.size++
		k.bytes += int64(len(key))
	}
	k.bytes += int64(len(value) - len(it.value))
	k.digest -= it.hash
	it.value, it.hash = value, hash64(key, value)
	k.digest += it.hash
}

// del removes a key and reports whether it was there.
func (k *keyspace) del(key []byte) bool {
	it := k.find(key)
	if it == nil {
		return false
	}
	delete(k.writable(bucketOf(key)), string(key))
	k.size--
	k.bytes -= int64(len(key) + len(it.value))
	k.digest -= it.hash
	return true
}

// writable returns a bucket for writing to. One that the view still needs is left to it, and a copy takes its place; the values'
// bytes are shared.
func (k *keyspace) writable(n int) bucket {
	b := k.buckets[n]
	switch {
	case b == nil:
		b = make(bucket)
	case k.view != nil && k.view.needs(n):
		b = b.clone()
	default:
		return b
	}
	k.buckets[n] = b
	if k.view != nil {
		k.view.replaced[n] = true
	}
	return b
}

// insert stores what is not there yet, in the bucket that is the key's, and returns its hash. The sums are left to
// the caller, so that several buckets can be filled at a time.
func (k *keyspace) insert(b int, key, value []byte) (hash uint64) {
	if k.buckets[b] == nil {
		k.buckets[b] = make(bucket)
	}
	it := &item{value, hash64(key, value)}
	k.buckets[b][string(key)] = it
	return it.hash
}

func (b bucket) clone() bucket {
	c, items, i := make(bucket, len(b)), make([]item, len(b)), 0
	for key, it := range b {
		items[i] = *it
		c[key] = &items[i]
		i++
	}
	return c
}

// clear removes everything. A view keeps what it has.
func (k *keyspace) clear() { *k = keyspace{} }

// incr adds delta to the integer that is stored, 0 if there is none.
func (k *keyspace) incr(key []byte, delta int64) *reply {
	var n int64
	if old, ok := k.get(key); ok {
		if n, ok = parseInt(old); !ok {
			return replyNotInt
		}
	}
	if (delta > 0 && n > math.MaxInt64-delta) || (delta < 0 && n < math.MinInt64-delta) {
		return replyOverflow
	}
	n += delta
	k.set(key, strconv.AppendInt(nil, n, 10))
	return intReply(n)
}

// append lengthens a value and returns its new length.
func (k *keyspace) append(key, tail []byte) *reply {
	old, _ := k.get(key)
	if len(old)+len(tail) > maxValue {
		return replyTooLong
	}
	k.set(key, append(old, tail...))
	return intReply(int64(len(old) + len(tail)))
}

// cas replaces the value by another if it is old, and reports whether it was.
func (k *keyspace) cas(key, old, value []byte) bool {
	if now, ok := k.get(key); !ok || !bytes.Equal(now, old) {
		return false
	}
	k.set(key, bytes.Clone(value))
	return true
}

// scan calls visit for the keys from cursor on until about count were visited, and returns where to go on; 0
// is the end. A key that is there all the time is visited by every full iteration.
func (k *keyspace) scan(cursor uint64, count int, visit func(key string)) (next uint64) {
	for b := cursor; b < scanBuckets; b++ {
		if count <= 0 {
			return b
		}
		for key := range k.buckets[b] {
			visit(key)
		}
		count -= len(k.buckets[b])
	}
	return 0
}

// parseInt reads an integer as Redis does: only the way it would itself be written counts.
func parseInt(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return 0, false
	}
	var canonical [20]byte
	return n, bytes.Equal(strconv.AppendInt(canonical[:0], n, 10), b)
}
