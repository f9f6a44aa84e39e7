package tidy

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const actorTable = "//\tinternal/actor/goroutines.go run   one per actor with work\n"

// TestRules shows that each rule can fail, and does not where it must not.
func TestRules(t *testing.T) {
	long := func(lines int) string { return "package p\n" + strings.Repeat("\n", lines-1) }
	longFunc := func(lines int) string {
		return "package p\nfunc f() {\n" + strings.Repeat("\n", lines-2) + "}\n"
	}
	imports := func(p string) string { return "package p\nimport _ \"" + p + "\"\n" }
	for _, test := range []struct {
		name, rel, text, doc string
		want                 string // a part of the only finding; "" wants none
	}{
		{"internal imports root", "internal/wal/x.go", imports(module), "", "imports the root package"},
		{"internal sub-package imports root", "internal/wal/sub/x.go", imports(module), "", "imports the root package"},
		{"a test imports root", "internal/wal/x_test.go", imports(module), "", ""},
		{"the simulator imports root", "internal/sim/x.go", imports(module), "", ""},
		{"production imports the simulator", "node.go", imports(module + "/internal/sim"), "", "for tests only"},
		{"internal imports the simulator", "internal/rpc/x.go", imports(module + "/internal/sim"), "", "for tests only"},
		{"an allowed arrow", "internal/wal/x.go", imports(module + "/internal/vfs"), "", ""},
		{"an arrow against the layout", "internal/vfs/x.go", imports(module + "/internal/wal"), "", "may import only"},
		{"actor imports nothing", "internal/actor/x.go", imports(module + "/internal/vfs"), "", "may import only"},
		{"a pure package imports raftpb", "internal/quorum/x.go", imports(module + "/raftpb"), "", "may import only"},
		{"a package not in the layout", "internal/helpers/x.go", "package p\n", "", "no line in mayImport"},
		{"root may import internal", "node.go", imports(module + "/internal/wal"), "", ""},

		{"pure imports sync", "internal/quorum/x.go", imports("sync"), "", "pure file"},
		{"pure imports context", "conf_ctx.go", imports("context"), "", "pure file"},
		{"pure imports zap", "ballot.go", imports("go.uber.org/zap"), "", "pure file"},
		{"pure imports time", "internal/election/x.go", "package p\nimport \"time\"\nvar d = time.Second\n", "", ""},
		{"pure reads the clock", "internal/election/x.go", "package p\nimport \"time\"\nvar d = time.Now()\n", "", "time.Now"},
		{"pure reads the clock, renamed", "internal/election/x.go", "package p\nimport c \"time\"\nvar d = c.Since\n", "", "time.Since"},
		{"a field called time", "internal/election/x.go", "package p\nfunc f(time struct{ Now int }) int { return time.Now }\n", "", ""},
		{"others may read the clock", "internal/actor/x.go", "package p\nimport \"time\"\nvar d = time.Now()\n", "", ""},

		{"net outside rpc", "internal/wal/x.go", imports("net"), "", "imports net"},
		{"net in the node", "node.go", imports("net"), "", "imports net"},
		{"net in rpc", "internal/rpc/x.go", imports("net"), "", ""},
		{"net in transport.go", "transport.go", imports("net"), "", ""},
		{"netip anywhere", "configuration.go", imports("net/netip"), "", ""},
		{"os file outside vfs", "internal/wal/x.go", "package p\nimport \"os\"\nvar f, _ = os.Open(\"x\")\n", "", "os.Open"},
		{"os constants", "internal/wal/x.go", "package p\nimport \"os\"\nvar f = os.O_RDWR\nvar m os.FileMode\nvar e = os.ErrNotExist\n", "", ""},
		{"os file in vfs", "internal/vfs/x.go", "package p\nimport \"os\"\nvar f, _ = os.Open(\"x\")\n", "", ""},

		{"a goroutine in the table", "internal/actor/goroutines.go", "package p\nfunc run() { go run() }\n", actorTable, ""},
		{"a goroutine not in the table", "host.go", "package p\nfunc f() { go f() }\n", "", "not in doc.go's table"},
		{"a goroutine in a literal", "host.go", "package p\nvar f = func() { go print() }\n", "", "not in doc.go's table"},
		{"a WaitGroup's goroutine", "host.go", "package p\nimport \"sync\"\nfunc f(w *sync.WaitGroup) { w.Go(func() {}) }\n", "", "not in doc.go's table"},
		{"a goroutine of a test", "host_test.go", "package p\nfunc f() { go f() }\n", "", ""},
		{"a line of the table without goroutine", "host.go", "package p\n", actorTable, "no go statement is there"},

		{"function at the limit", "node.go", longFunc(maxFuncLines), "", "must be under"},
		{"function below the limit", "node.go", longFunc(maxFuncLines - 1), "", ""},
		{"file above the limit", "node.go", long(maxFileLines + 1), "", "more than one concept"},
		{"file at the limit", "node.go", long(maxFileLines), "", ""},
		{"test file above the limit", "node_test.go", long(maxTestFileLines + 1), "", "more than one concept"},
		{"test file at the limit", "node_test.go", long(maxTestFileLines), "", ""},

		{"a test sleeps", "node_test.go", "package p\nimport \"time\"\nfunc f() { time.Sleep(1) }\n", "", "sleeps"},
		{"a test sleeps in a bubble", "node_test.go", "package p\nimport (\n\"time\"\n\"testing/synctest\"\n)\nvar _ = synctest.Test\nfunc f() { time.Sleep(1) }\n", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			file, err := parse(test.rel, test.text)
			require.NoError(t, err)
			got := check([]source{file}, test.doc)
			switch {
			case test.want == "" && len(got) > 0:
				t.Errorf("found %q, want nothing", got)
			case test.want != "" && (len(got) != 1 || !strings.Contains(got[0], test.want)):
				t.Errorf("found %q, want one finding with %q", got, test.want)
			}
		})
	}
}

func TestGoInAPureFile(t *testing.T) {
	file, err := parse("ballot.go", "package p\nfunc f() { go f() }\n")
	require.NoError(t, err)
	got := check([]source{file}, "//\tballot.go f   anything\n")
	if len(got) != 1 || !strings.Contains(got[0], "in a pure file") {
		t.Errorf("found %q, want that a pure file starts no goroutine", got)
	}
}

// TestGoroutineTable is the format of the table in doc.go.
func TestGoroutineTable(t *testing.T) {
	doc := "// Package p.\n//\n// host.go f is prose.\n//\thost.go serve   accepts; Close waits\n//\tinternal/rpc/tcp.go accept one per listener\n//\thost.go nothing\n//\n//\tnode := x\npackage p\n"
	require.Equal(t, []string{"host.go serve", "internal/rpc/tcp.go accept"}, goroutineTable(doc))
}
