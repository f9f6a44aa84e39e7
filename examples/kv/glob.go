package main

// glob reports whether s matches a pattern of SCAN MATCH: ? is one byte, * any number of them, [a-c] and
// [^a-c] a set, and \ takes the next byte as it is.
func glob(pattern, s string) bool {
	star, from := -1, 0 // where to go on if the text behind the last * does not match
	p, i := 0, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			star, from = p, i
			p++
			continue
		}
		if n, ok := globOne(pattern[p:], s[i]); ok {
			p, i = p+n, i+1
			continue
		}
		if star < 0 {
			return false
		}
		from++
		p, i = star+1, from
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// globOne matches one byte with the head of a pattern, and returns how long that head is.
func globOne(pattern string, c byte) (n int, ok bool) {
	if pattern == "" {
		return 0, false
	}
	switch pattern[0] {
	case '?':
		return 1, true
	case '[':
		return globSet(pattern, c)
	case '\\':
		if len(pattern) > 1 {
			return 2, pattern[1] == c
		}
	}
	return 1, pattern[0] == c
}

// globSet matches one byte with a set. One that is not closed reaches to the pattern's end, as in Redis.
func globSet(pattern string, c byte) (n int, ok bool) {
	i, negated := 1, false
	if i < len(pattern) && pattern[i] == '^' {
		i, negated = i+1, true
	}
	for i < len(pattern) && pattern[i] != ']' {
		if pattern[i] == '\\' && i+1 < len(pattern) {
			i++
		}
		low, high := pattern[i], pattern[i]
		if i+2 < len(pattern) && pattern[i+1] == '-' && pattern[i+2] != ']' {
			high = pattern[i+2]
			i += 2
		}
		ok = ok || (min(low, high) <= c && c <= max(low, high))
		i++
	}
	return min(i+1, len(pattern)), ok != negated
}
