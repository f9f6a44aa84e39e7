package main

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTheQuickestRunFirst shows that all tests are in exactly one portion, those that are not known in the last.
func TestTheQuickestRunFirst(t *testing.T) {
	const output = "=== RUN   TestSlow\n--- PASS: TestSlow (8.00s)\n--- PASS: TestQuick (0.01s)\n    --- PASS: TestQuick/part (0.00s)\n" +
		"--- PASS: TestMiddling (0.50s)\n--- FAIL: TestFails (0.10s)\n--- PASS: TestQuickToo (0.02s)\nFAIL\n"
	require.Equal(t, [][]string{
		{"-test.run=^(TestQuick|TestQuickToo)$"},
		{"-test.run=^(TestMiddling)$"},
		{"-test.skip=^(TestQuick|TestQuickToo|TestMiddling)$"},
	}, cut(timesOf(output)))
	require.Equal(t, everything(), cut(timesOf("FAIL\n")))
	require.Equal(t, everything(), cut(timesOf("--- PASS: TestAlone (3.00s)\n")))
}

// TestMeasuringIsDoneOnce shows that tests are measured for many mutants and not for few, and that nobody waits for it.
func TestMeasuringIsDoneOnce(t *testing.T) {
	many := newSchedule(options{tier: "wal,sim"}, make([]mutant, worthwhile))
	measured := 0
	require.NoError(t, many.prepare("wal", func() (string, error) {
		measured++
		require.NoError(t, many.prepare("wal", func() (string, error) { return "", errors.New("measured twice") }))
		require.Equal(t, everything(), many.portions("wal"))
		return "--- PASS: TestA (0.01s)\n--- PASS: TestB (9.00s)\n", nil
	}))
	require.Equal(t, 1, measured)
	require.Len(t, many.portions("wal"), 2)
	require.NoError(t, many.prepare("sim", func() (string, error) { return "", errors.New("seeds are not measured") }))
	require.Equal(t, everything(), many.portions("sim"))

	few := newSchedule(options{tier: "wal"}, make([]mutant, worthwhile-1))
	require.NoError(t, few.prepare("wal", func() (string, error) { return "", errors.New("measured for a few") }))
	require.Error(t, newSchedule(options{tier: "root"}, make([]mutant, worthwhile)).prepare("root", func() (string, error) { return "", errors.New("no") }))
}
