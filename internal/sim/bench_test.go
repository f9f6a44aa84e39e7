package sim

import (
	"runtime/debug"
	"testing"
	"time"
)

// BenchmarkQuiet lets three lightly loaded replicas run for ten virtual minutes.
func BenchmarkQuiet(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as TestSimulation does
	cpu := cpuTime()
	for range b.N {
		o := Quiet(1, 3)
		o.Faulty = 10 * time.Minute
		if r := Run(o); r.Err != nil {
			b.Fatal(r.Err)
		}
	}
	hours := float64(b.N) / 6
	b.ReportMetric(hours/(cpuTime()-cpu).Minutes(), "cluster-hours/CPU-min")
}
