package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// mutant is one seeded bug: a patch, and what its header says about it.
type mutant struct {
	name  string
	bug   string   // in one sentence
	group string   // of bugs that others have had
	tiers []string // of tests that are to catch it, in the order in which they are tried
	files []filePatch
}

// filePatch is the part of a patch that is about one file.
type filePatch struct {
	path  string // from the project's root, with slashes
	hunks []hunk
}

// hunk replaces some lines by others, both with the context around them.
type hunk struct {
	line     int // where the old lines are said to begin, from 1
	old, new []string
}

// load reads all patches of a directory, by name.
func load(dir string) (mutants []mutant, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil || len(names) == 0 {
		return nil, errors.Join(err, fmt.Errorf("no patches in %s", dir))
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		m, err := parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
		m.name = strings.TrimSuffix(filepath.Base(name), ".patch")
		mutants = append(mutants, m)
	}
	return mutants, nil
}

// parse reads a patch: a header of "Key: value" lines, then a unified diff with paths from the project's root
// behind a/ and b/.
func parse(text string) (m mutant, err error) {
	lines := strings.SplitAfter(text, "\n")
	at := 0
	for ; at < len(lines) && !strings.HasPrefix(lines[at], "--- "); at++ {
		key, value, ok := strings.Cut(strings.TrimSpace(lines[at]), ": ")
		switch {
		case key == "" && !ok:
		case key == "Bug":
			m.bug = value
		case key == "Group":
			m.group = value
		case key == "Caught by":
			m.tiers = strings.Split(value, ", ")
		default:
			return m, fmt.Errorf("line %d: %q is no line of a header: want Bug, Group, or Caught by", at+1, lines[at])
		}
	}
	if m.bug == "" || m.group == "" || len(m.tiers) == 0 {
		return m, errors.New("the header must have the lines Bug, Group and Caught by")
	}
	p := patchReader{lines: lines, at: at}
	for p.more() {
		f, err := p.file()
		if err != nil {
			return m, fmt.Errorf("line %d: %w", p.at+1, err)
		}
		m.files = append(m.files, f)
	}
	if len(m.files) == 0 {
		return m, errors.New("there is no diff")
	}
	return m, nil
}

// patchReader reads a unified diff.
type patchReader struct {
	lines []string
	at    int
}

func (p *patchReader) more() bool { return p.at < len(p.lines) && p.lines[p.at] != "" }

// next returns the next line if it begins with prefix, without that.
func (p *patchReader) next(prefix string) (rest string, ok bool) {
	if !p.more() {
		return "", false
	}
	if rest, ok = strings.CutPrefix(p.lines[p.at], prefix); ok {
		p.at++
	}
	return rest, ok
}

func (p *patchReader) file() (f filePatch, err error) {
	from, ok := p.next("--- a/")
	to, ok2 := p.next("+++ b/")
	if !ok || !ok2 || from != to {
		return f, errors.New("want --- a/path and +++ b/path of one file")
	}
	f.path = strings.TrimSpace(to)
	for p.more() && strings.HasPrefix(p.lines[p.at], "@@ ") {
		h, err := p.hunk()
		if err != nil {
			return f, err
		}
		f.hunks = append(f.hunks, h)
	}
	if len(f.hunks) == 0 {
		return f, fmt.Errorf("%s: no hunk", f.path)
	}
	return f, nil
}

func (p *patchReader) hunk() (h hunk, err error) {
	head := strings.Fields(p.lines[p.at])
	if len(head) < 4 || head[3] != "@@" {
		return h, fmt.Errorf("%q is no head of a hunk", p.lines[p.at])
	}
	line, olds, err := span(head[1], "-")
	if err != nil {
		return h, err
	}
	_, news, err := span(head[2], "+")
	if err != nil {
		return h, err
	}
	h.line = line
	p.at++
	for len(h.old) < olds || len(h.new) < news {
		if !p.more() {
			return h, errors.New("the hunk is cut short")
		}
		kind, rest := p.lines[p.at][0], p.lines[p.at][1:]
		if kind == '\n' { // an empty line of context whose blank an editor has taken away
			kind, rest = ' ', "\n"
		}
		switch kind {
		case ' ':
			h.old, h.new = append(h.old, rest), append(h.new, rest)
		case '-':
			h.old = append(h.old, rest)
		case '+':
			h.new = append(h.new, rest)
		default:
			return h, fmt.Errorf("%q is no line of a hunk", p.lines[p.at])
		}
		p.at++
	}
	if len(h.old) != olds || len(h.new) != news || slices.Equal(h.old, h.new) {
		return h, fmt.Errorf("the hunk has %d old and %d new lines, its head says %d and %d", len(h.old), len(h.new), olds, news)
	}
	return h, nil
}

// span reads "-12,7": where a hunk begins and how many lines it has.
func span(s, sign string) (line, count int, err error) {
	s, ok := strings.CutPrefix(s, sign)
	first, rest, counted := strings.Cut(s, ",")
	line, err = strconv.Atoi(first)
	count = 1
	if err == nil && counted {
		count, err = strconv.Atoi(rest)
	}
	if !ok || err != nil {
		return 0, 0, fmt.Errorf("%q is no span of lines", sign+s)
	}
	return line, count, nil
}

// apply returns a file's text with the patch applied. The old lines, with their context, must be there word for word:
// at the place that the patch names, or at one other place only.
func (f *filePatch) apply(text string) (string, error) {
	lines := strings.SplitAfter(text, "\n")
	var out []string
	done, shift := 0, 0
	for _, h := range f.hunks {
		at, err := find(lines, h, done, h.line-1+shift)
		if err != nil {
			return "", fmt.Errorf("%s: %w", f.path, err)
		}
		shift = at - (h.line - 1)
		out = append(append(out, lines[done:at]...), h.new...)
		done = at + len(h.old)
	}
	return strings.Join(append(out, lines[done:]...), ""), nil
}

// find returns where in lines, from the line from on, a hunk's old lines are.
func find(lines []string, h hunk, from, expected int) (int, error) {
	var places []int
	for at := from; at+len(h.old) <= len(lines); at++ {
		if slices.Equal(lines[at:at+len(h.old)], h.old) {
			places = append(places, at)
		}
	}
	switch {
	case slices.Contains(places, expected):
		return expected, nil
	case len(places) == 1:
		return places[0], nil
	case len(places) == 0:
		return 0, fmt.Errorf("the lines that the patch expects at line %d are not there any more: renew it", h.line)
	}
	return 0, fmt.Errorf("the lines that the patch expects at line %d are at %d other places: give it more context", h.line, len(places))
}

// mutated applies the patch to the project at root and returns the changed files by path.
func (m *mutant) mutated(root string) (map[string]string, error) {
	changed := make(map[string]string)
	for _, f := range m.files {
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(f.path)))
		if err != nil {
			return nil, err
		}
		if changed[f.path], err = f.apply(string(text)); err != nil {
			return nil, err
		}
	}
	return changed, nil
}
