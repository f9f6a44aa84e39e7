//go:build race

package fulltest

const raceEnabled = true
