package main

import (
	"encoding/binary"
	"math/bits"
)

// The multipliers of hash64: arbitrary odd numbers with as many ones as zeros.
const (
	hashA = 0xa0761d6478bd642f
	hashB = 0xe7037ed1a0b428db
	hashC = 0x8ebc6af09c88c6e3
)

// hash64 is the hash of a key with its value. It is the same in every process, unlike hash/maphash, because
// replicas compare their digests; it is not meant to withstand somebody who seeks collisions.
func hash64(key, value []byte) uint64 {
	h := mix(uint64(len(key))^hashA, uint64(len(value))^hashB)
	h = hashBytes(h, key)
	h = hashBytes(h, value)
	return mix(h^hashA, hashC)
}

// hashBytes continues h over b, eight bytes at a time.
func hashBytes(h uint64, b []byte) uint64 {
	for len(b) >= 16 {
		h = mix(binary.LittleEndian.Uint64(b)^hashB^h, binary.LittleEndian.Uint64(b[8:])^hashC)
		b = b[16:]
	}
	if len(b) == 0 {
		return h
	}
	var tail [16]byte
	copy(tail[:], b)
	return mix(binary.LittleEndian.Uint64(tail[:])^hashB^h, binary.LittleEndian.Uint64(tail[8:])^hashC^uint64(len(b)))
}

// mix folds the product of two words.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
