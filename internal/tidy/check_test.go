package tidy

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

const (
	module = "github.com/graft-raft/graft"

	maxFuncLines     = 70
	maxFileLines     = 700
	maxTestFileLines = 900
)

// mayImport lists, for each package below internal/, what of internal/ (and raftpb)
// its production code may import: DESIGN.md §2. A new package needs a line here.
var mayImport = map[string][]string{
	"actor":    {},
	"baidustd": {},
	"election": {},
	"entry":    {"raftpb"},
	"env":      {"actor", "vfs", "wal"},
	"progress": {},
	"quorum":   {},
	"rpc":      {"baidustd", "actor", "raftpb", "wire"},
	"snapdir":  {"vfs", "raftpb"},
	"tidy":     {},
	"vfs":      {},
	"wal":      {"vfs", "actor", "entry"},
	"wire":     {"baidustd", "entry", "raftpb"},
}

// forTestsOnly are the packages that production code never imports. They may import
// anything, the root package too.
var forTestsOnly = []string{"internal/sim"}

// pure lists the packages and files that are functions of their arguments.
var pure = []string{
	"internal/quorum", "internal/election", "internal/progress", "internal/baidustd", "internal/wire", "internal/entry",
	"conf_ctx.go", "ballot.go",
}

// impure lists what a pure package may not import.
var impure = []string{"sync", "sync/atomic", "os", "net", "context", "go.uber.org/zap"}

// osFree are the parts of package os that touch no file: constants, types and errors.
func osFree(name string) bool {
	return strings.HasPrefix(name, "O_") || strings.HasPrefix(name, "Err") || strings.HasPrefix(name, "Mode") ||
		slices.Contains([]string{"FileMode", "FileInfo", "DirEntry", "PathError", "LinkError", "SyscallError", "IsNotExist", "IsExist",
			"Getpid", "Hostname", "Signal", "Interrupt"}, name)
}

// source is one parsed file.
type source struct {
	rel  string // from the module's root, with slashes
	text string
	fset *token.FileSet
	file *ast.File
}

func (s source) isTest() bool { return strings.HasSuffix(s.rel, "_test.go") }

// pkg is the file's package as DESIGN.md names it: "wal" for internal/wal and below, "" outside internal/.
func (s source) pkg() string {
	rest, ok := strings.CutPrefix(s.rel, "internal/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

func (s source) in(places []string) bool {
	return slices.ContainsFunc(places, func(place string) bool {
		return s.rel == place || strings.HasPrefix(s.rel, place+"/")
	})
}

func (s source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.rel, s.fset.Position(n.Pos()).Line)
}

// imports maps the name under which a file knows each package to its path.
func (s source) imports() map[string]string {
	names := make(map[string]string)
	for _, spec := range s.file.Imports {
		p := strings.Trim(spec.Path.Value, `"`)
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = p
	}
	return names
}

// selectors calls f for each use of a package's name, as in os.Open.
func (s source) selectors(f func(n ast.Node, pkg, name string)) {
	names := s.imports()
	ast.Inspect(s.file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if id, ok := sel.X.(*ast.Ident); ok && names[id.Name] != "" {
				f(n, names[id.Name], sel.Sel.Name)
			}
		}
		return true
	})
}

// check returns what is wrong with the files, where doc is the text of doc.go.
func check(files []source, doc string) (findings []string) {
	table, started := goroutineTable(doc), map[string]bool{}
	for _, s := range files {
		findings = append(findings, checkLength(s)...)
		if s.isTest() {
			findings = append(findings, checkSleep(s)...)
			continue
		}
		findings = append(findings, checkArrows(s)...)
		findings = append(findings, checkPure(s)...)
		findings = append(findings, checkSeams(s)...)
		findings = append(findings, checkGoroutines(s, table, started)...)
	}
	for _, name := range table {
		if !started[name] {
			findings = append(findings, fmt.Sprintf("doc.go lists the goroutine %q, but no go statement is there: a table that is wrong in one line is believed in none", name))
		}
	}
	return findings
}

// checkArrows holds imports against the layout.
func checkArrows(s source) (findings []string) {
	pkg := s.pkg()
	if s.in(forTestsOnly) {
		return nil
	}
	allowed, known := mayImport[pkg]
	if pkg != "" && !known {
		return []string{fmt.Sprintf("%s: package internal/%s has no line in mayImport: the layout is decided, not grown", s.rel, pkg)}
	}
	for _, spec := range s.file.Imports {
		p := strings.Trim(spec.Path.Value, `"`)
		to, ours := strings.CutPrefix(p, module+"/")
		to, inner := strings.CutPrefix(to, "internal/")
		first, _, _ := strings.Cut(to, "/")
		switch {
		case slices.Contains(forTestsOnly, "internal/"+first) && inner:
			findings = append(findings, fmt.Sprintf("%s imports %s, which is for tests only: no production code may depend on a simulator", s.at(spec), p))
		case pkg == "":
		case p == module:
			findings = append(findings, fmt.Sprintf("%s imports the root package: dependencies point inward only, or the parts cannot be tested without the whole", s.at(spec)))
		case ours && first != pkg && !slices.Contains(allowed, first):
			findings = append(findings, fmt.Sprintf("%s imports %s; internal/%s may import only %v of this module: the arrows of the layout keep it free of cycles and the parts replaceable", s.at(spec), p, pkg, allowed))
		}
	}
	return findings
}

// checkPure holds the pure files to being functions of their arguments.
func checkPure(s source) (findings []string) {
	if !s.in(pure) {
		return nil
	}
	const why = "the rules of Raft are pure so that a table can test them and a seed can replay them"
	for _, spec := range s.file.Imports {
		if p := strings.Trim(spec.Path.Value, `"`); slices.Contains(impure, p) || strings.HasPrefix(p, "go.uber.org/zap/") || strings.HasPrefix(p, "net/") {
			findings = append(findings, fmt.Sprintf("%s imports %s in a pure file: %s", s.at(spec), p, why))
		}
	}
	s.selectors(func(n ast.Node, pkg, name string) {
		if pkg == "time" && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}, name) {
			findings = append(findings, fmt.Sprintf("%s uses time.%s in a pure file: take now as an argument; %s", s.at(n), name, why))
		}
	})
	ast.Inspect(s.file, func(n ast.Node) bool {
		if _, ok := n.(*ast.GoStmt); ok {
			findings = append(findings, fmt.Sprintf("%s starts a goroutine in a pure file: %s", s.at(n), why))
		}
		return true
	})
	return findings
}

// checkSeams keeps files and sockets behind the packages that a simulation replaces.
func checkSeams(s source) (findings []string) {
	if s.in(forTestsOnly) {
		return nil
	}
	if s.pkg() != "rpc" && s.rel != "transport.go" {
		for _, spec := range s.file.Imports {
			if p := strings.Trim(spec.Path.Value, `"`); p == "net" {
				findings = append(findings, fmt.Sprintf("%s imports net; only internal/rpc and transport.go may (net/netip is free): a second door to the network would pass the simulated one by", s.at(spec)))
			}
		}
	}
	if s.pkg() != "vfs" {
		s.selectors(func(n ast.Node, pkg, name string) {
			if s.pkg() == "rpc" && pkg == "syscall" && name == "Write" {
				return // to a socket
			}
			if pkg == "os" && !osFree(name) || pkg == "io/ioutil" || pkg == "syscall" && slices.Contains([]string{"Open", "Write", "Pwrite", "Fsync", "Fdatasync", "Rename", "Unlink"}, name) {
				findings = append(findings, fmt.Sprintf("%s uses %s.%s; only internal/vfs touches files: what goes past it is not in the crash tests", s.at(n), path.Base(pkg), name))
			}
		})
	}
	return findings
}

// goroutineTable reads doc.go's table of goroutines. A line of the table is an
// indented line of the package comment whose first word is a Go file, with its path
// from the module's root, and whose second is the function or method that contains
// the go statement; the rest says who ends it:
//
//	//	internal/actor/goroutines.go run   one per actor with work; ends when it has none
func goroutineTable(doc string) (names []string) {
	for line := range strings.Lines(doc) {
		rest, ok := strings.CutPrefix(line, "//\t")
		if words := strings.Fields(rest); ok && len(words) > 2 && strings.HasSuffix(words[0], ".go") {
			names = append(names, words[0]+" "+words[1])
		}
	}
	return names
}

// checkGoroutines compares go statements with the table and notes those seen in started.
func checkGoroutines(s source, table []string, started map[string]bool) (findings []string) {
	for _, decl := range s.file.Decls {
		where := s.rel + " init" // of a package variable
		if fn, ok := decl.(*ast.FuncDecl); ok {
			where = s.rel + " " + fn.Name.Name
		}
		ast.Inspect(decl, func(n ast.Node) bool {
			name := startsGoroutine(n)
			if name == "" {
				return true
			}
			if started[where] = true; !slices.Contains(table, where) {
				findings = append(findings, fmt.Sprintf("%s starts a goroutine (%s) that is not in doc.go's table: write down who starts it, what ends it and who waits, as a line %q", s.at(n), name, "//\t"+where+"   …"))
			}
			return true
		})
	}
	return findings
}

// startsGoroutine returns how n starts a goroutine, "" if it does not: a go statement, or a
// call that is one in disguise. time.AfterFunc is a timer, not counted.
func startsGoroutine(n ast.Node) string {
	switch n := n.(type) {
	case *ast.GoStmt:
		return "go"
	case *ast.CallExpr:
		sel, ok := n.Fun.(*ast.SelectorExpr)
		if !ok || sel.Sel.Name != "Go" || len(n.Args) != 1 {
			return ""
		}
		return "a method Go"
	}
	return ""
}

// checkLength bounds functions and files.
func checkLength(s source) (findings []string) {
	limit := maxFileLines
	if s.isTest() {
		limit = maxTestFileLines
	}
	if lines := strings.Count(s.text, "\n"); lines > limit {
		findings = append(findings, fmt.Sprintf("%s has %d lines, the limit is %d: it holds more than one concept", s.rel, lines, limit))
	}
	if s.isTest() {
		return findings
	}
	for _, decl := range s.file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		lines := s.fset.Position(fn.End()).Line - s.fset.Position(fn.Pos()).Line + 1
		if lines >= maxFuncLines {
			findings = append(findings, fmt.Sprintf("%s: %s has %d lines, must be under %d: it does more than one thing", s.at(fn), fn.Name.Name, lines, maxFuncLines))
		}
	}
	return findings
}

// checkSleep keeps real waiting out of tests.
func checkSleep(s source) (findings []string) {
	for _, p := range s.imports() {
		if p == "testing/synctest" {
			return nil // in a bubble, sleeping takes no time
		}
	}
	s.selectors(func(n ast.Node, pkg, name string) {
		if pkg == "time" && name == "Sleep" {
			findings = append(findings, fmt.Sprintf("%s sleeps outside of a synctest bubble: it is too short on a slow machine and too long on a fast one; wait for the event", s.at(n)))
		}
	})
	return findings
}
