package snapdir

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// maxDirName leaves room for a hash and an index in what file systems take.
const maxDirName = 150

// DirName is the name of a replica's directory among those of its host. Names of groups are any bytes, those of
// directories may be the same for a file system if they differ in case only.
func DirName(group string, index int) string {
	var b strings.Builder
	for i := range len(group) {
		if c := group[i]; c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	name := b.String()
	if len(name) > maxDirName {
		sum := sha256.Sum256([]byte(group))
		name = name[:maxDirName-len(sum)] + "." + hex.EncodeToString(sum[:])
	}
	if index != 0 {
		name += "." + strconv.Itoa(index)
	}
	return name
}

// ParseDirName reads what DirName has made. Of a long group name only the beginning is in it, and whole is false; of
// what DirName cannot have made ok is false.
func ParseDirName(name string) (group string, index int, whole, ok bool) {
	parts := strings.Split(name, ".")
	rest := parts[1:]
	if len(rest) > 0 && len(rest[0]) == 2*sha256.Size {
		rest = rest[1:]
	}
	whole = len(parts) == len(rest)+1
	if len(rest) > 1 {
		return "", 0, false, false
	}
	if len(rest) == 1 {
		n, err := strconv.Atoi(rest[0])
		if err != nil || n <= 0 {
			return "", 0, false, false
		}
		index = n
	}
	group, ok = unescape(parts[0], !whole)
	return group, index, whole, ok && (!whole || DirName(group, index) == name)
}

// unescape reads a name in which %xx stands for a byte. It may be cut off in the midst of one.
func unescape(s string, cut bool) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+3 > len(s) {
			return b.String(), cut
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), true
}
