//go:build !race

package main

// slowness is how much longer everything takes with the race detector.
const slowness = 1
