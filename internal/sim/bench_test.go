package sim

import (
	"testing"
	"time"
)

// BenchmarkQuiet lets three lightly loaded replicas run for ten virtual minutes.
func BenchmarkQuiet(b *testing.B) {
	for range b.N {
		o := Quiet(1, 3)
		o.Faulty = 10 * time.Minute
		if r := Run(o); r.Err != nil {
			b.Fatal(r.Err)
		}
	}
	hours := float64(b.N) / 6
	b.ReportMetric(hours/b.Elapsed().Minutes(), "cluster-hours/min")
}
