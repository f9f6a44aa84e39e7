//go:build !race

package fulltest

const raceEnabled = false
