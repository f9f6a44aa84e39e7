//go:build !race

package graft

// slowness is how much longer everything takes with the race detector.
const slowness = 1
