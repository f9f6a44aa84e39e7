//go:build race

package snapdir

const raceEnabled = true
