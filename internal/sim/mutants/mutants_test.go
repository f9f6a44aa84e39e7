package main

import (
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const root = "../../.."

// Groups of bugs that others have had.
var groups = []string{
	"elections and votes", "replication and log", "commit and apply", "membership", "reads", "storage and recovery", "transport",
	"liveness", "resources", "callbacks", "snapshots",
}

// TestPatchesApply shows that each patch fits the project as it is, and changes code that compiles as far as a parser can
// tell. Whether the mutants are caught is what the command is for.
func TestPatchesApply(t *testing.T) {
	mutants, err := load("patches")
	require.NoError(t, err)
	found := make(map[string]int)
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			group, _, _ := strings.Cut(m.group, " (")
			found[group]++
			for _, name := range m.tiers {
				require.Contains(t, tiers, name)
			}
			require.True(t, strings.HasSuffix(m.bug, "."), "the header's Bug is a sentence")
			changed, err := m.mutated(root)
			require.NoError(t, err)
			for path, text := range changed {
				require.False(t, strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "internal/sim/"), "%s is a test", path)
				before, err := os.ReadFile(filepath.Join(root, path))
				require.NoError(t, err)
				require.NotEqual(t, codeOf(t, path, string(before)), codeOf(t, path, text), "%s: only comments differ", path)
			}
		})
	}
	for _, g := range groups {
		if found[g] == 0 {
			t.Errorf("no mutant stands for the group %q", g)
		}
		delete(found, g)
	}
	require.Empty(t, found, "groups that are not known")
}

// codeOf is a file without comments, in a form that does not depend on how it is laid out.
func codeOf(t *testing.T, path, text string) string {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, text, parser.SkipObjectResolution)
	require.NoError(t, err)
	var b strings.Builder
	for _, d := range file.Decls {
		require.NoError(t, format.Node(&b, fset, ast.Node(d)))
		b.WriteByte('\n')
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

const patchHead = "Bug: B.\nGroup: liveness (V1)\nCaught by: sim, root\n\n"

// TestApply shows where a patch still fits, and that it fails aloud where it does not.
func TestApply(t *testing.T) {
	const patch = patchHead + "--- a/x.go\n+++ b/x.go\n@@ -2,3 +2,3 @@ func f\n two\n-three\n+THREE\n four\n"
	for _, test := range []struct{ name, text, want, fails string }{
		{"as it is", "one\ntwo\nthree\nfour\n", "one\ntwo\nTHREE\nfour\n", ""},
		{"moved", "0\n0\n0\none\ntwo\nthree\nfour\n", "0\n0\n0\none\ntwo\nTHREE\nfour\n", ""},
		{"at the place that is named, though there is another", "one\ntwo\nthree\nfour\ntwo\nthree\nfour\n", "one\ntwo\nTHREE\nfour\ntwo\nthree\nfour\n", ""},
		{"context has changed", "one\ntwo!\nthree\nfour\n", "", "not there any more"},
		{"line has changed", "one\ntwo\nthree!\nfour\n", "", "not there any more"},
		{"moved, to two places", "two\nthree\nfour\n\ntwo\nthree\nfour\n", "", "2 other places"},
		{"applied already", "one\ntwo\nTHREE\nfour\n", "", "not there any more"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := parse(patch)
			require.NoError(t, err)
			require.Equal(t, []string{"sim", "root"}, m.tiers)
			got, err := m.files[0].apply(test.text)
			if test.fails != "" {
				require.ErrorContains(t, err, test.fails)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

// TestApplyHunks shows that later hunks move with earlier ones, and each is looked for behind the one before.
func TestApplyHunks(t *testing.T) {
	m, err := parse(patchHead + "--- a/x.go\n+++ b/x.go\n@@ -1 +1,2 @@\n-a\n+A\n+B\n@@ -3 +4 @@\n-a\n+C\n")
	require.NoError(t, err)
	got, err := m.files[0].apply("a\nb\na\na\n")
	require.NoError(t, err)
	require.Equal(t, "A\nB\nb\nC\na\n", got)
	got, err = m.files[0].apply("0\na\nb\n")
	require.Error(t, err, "%q: the second hunk's line is the first one's", got)
}

// TestPatchesAreRead shows what is no patch.
func TestPatchesAreRead(t *testing.T) {
	const diff = "--- a/x.go\n+++ b/x.go\n"
	for _, test := range []struct{ name, text, fails string }{
		{"no header", diff + "@@ -1 +1 @@\n-a\n+b\n", "must have the lines"},
		{"a header without a group", "Bug: B.\nCaught by: sim\n" + diff + "@@ -1 +1 @@\n-a\n+b\n", "must have the lines"},
		{"a line of a header that is none", "Bugs: B.\n", "no line of a header"},
		{"no diff", patchHead, "no diff"},
		{"another file's", patchHead + "--- a/x.go\n+++ b/y.go\n@@ -1 +1 @@\n-a\n+b\n", "of one file"},
		{"no hunk", patchHead + diff, "no hunk"},
		{"a hunk that is cut short", patchHead + diff + "@@ -1,2 +1,2 @@\n-a\n+b\n", "cut short"},
		{"a hunk that is too long", patchHead + diff + "@@ -1 +1 @@\n-a\n+b\n+c\n", "want --- a/path"},
		{"a hunk without numbers", patchHead + diff + "@@ -x +1 @@\n-a\n+b\n", "no span of lines"},
		{"a hunk that changes nothing", patchHead + diff + "@@ -1 +1 @@\n a\n", "its head says"},
		{"rubbish in a hunk", patchHead + diff + "@@ -1,2 +1,2 @@\n a\n*b\n", "no line of a hunk"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parse(test.text)
			require.ErrorContains(t, err, test.fails)
		})
	}
}

// TestFindings shows what is made of the output of tests.
func TestFindings(t *testing.T) {
	for _, test := range []struct {
		name, output string
		want         finding
	}{
		{"the simulator", "--- FAIL: TestSimulation (2.10s)\n    sim_test.go:77: seeds from 1\n    sim_test.go:87: machine 1 votes\n        replay: go test ./internal/sim -run TestSimulation -sim.seed=17 -v\n    sim_test.go:92: 17 seeds\nFAIL\n",
			finding{"TestSimulation", 17, "machine 1 votes"}},
		{"a test within a test", "--- FAIL: TestX (0.00s)\n    --- FAIL: TestX/y (0.00s)\n        x_test.go:3: got 1\nFAIL\n", finding{"TestX", 0, "got 1"}},
		{"testify", "--- FAIL: TestX (0.00s)\n    x_test.go:3: \n        \tError Trace:\tx_test.go:3\n        \tError:      \tNot equal\nFAIL\n", finding{"TestX", 0, "Not equal"}},
		{"a panic in a test", "--- FAIL: TestX (0.00s)\npanic: boom\n\ngoroutine 1 [running]:\n", finding{"TestX", 0, "panic: boom"}},
		{"a panic elsewhere", "panic: boom\n\ngoroutine 7 [running]:\nmain.f()\n\ngoroutine 6 [sleep]:\na/b.TestX(0xc0)\n", finding{"TestX", 0, "panic: boom"}},
		{"a leak", "PASS\ngoleak: Errors on successful test run: found\n", finding{"", 0, "goleak: Errors on successful test run: found"}},
	} {
		t.Run(test.name, func(t *testing.T) { require.Equal(t, test.want, read(test.output)) })
	}
}
