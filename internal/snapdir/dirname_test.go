package snapdir

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// What a directory is called tells whose it is, but for the end of a long name.
func TestDirNamesAreReadBack(t *testing.T) {
	long := strings.Repeat("x/", 200)
	for _, group := range []string{"g", "G", "a.b", "..", "%47", "\x00", "ü", "kv-1_2", long} {
		for _, index := range []int{0, 1, 17} {
			got, i, whole, ok := ParseDirName(DirName(group, index))
			assert.True(t, ok, group)
			assert.Equal(t, index, i, group)
			assert.Equal(t, len(group) < 100, whole)
			if whole {
				assert.Equal(t, group, got)
			} else {
				assert.True(t, strings.HasPrefix(group, got) && len(got) > 20, got)
			}
		}
	}
	for _, name := range []string{"G", "a.b", "a.0", "a.-1", "a.01", "%4", "%zz", "%61", "a.1.2"} {
		_, _, _, ok := ParseDirName(name)
		assert.False(t, ok, name)
	}
}
