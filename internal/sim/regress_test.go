package sim

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A bug that a run has found once is not found by it again.
func TestRegressions(t *testing.T) {
	files, err := filepath.Glob("testdata/regressions/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no regressions in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var saved struct {
				What, Check string
				Options     Options
			}
			if err := json.Unmarshal(b, &saved); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if saved.What == "" || saved.Options.Nodes == 0 {
				t.Fatalf("%s: what and options are needed", file)
			}
			if r := New(saved.Options).play(); r.Err != nil {
				t.Errorf("%s: %v", saved.What, r.Err)
			}
		})
	}
}
