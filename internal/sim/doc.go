// Package sim runs whole replicas, the production code with its log store and its
// wire format, on simulated machines: one seed decides about time, network, disks,
// crashes and clients, so that a run can be repeated exactly. Everything happens
// on one goroutine, and a checker looks at all replicas after every step.
//
// A run has two phases. In the first one faults happen and only safety is asked
// for. Then everything heals, and the group must get a leader, take writes and
// converge, and nobody may be left waiting.
//
//	go test ./internal/sim -run TestSimulation -sim.hours=200 -timeout 0
//	go test ./internal/sim -run TestSimulation -sim.seed=17 -v
//
// The package is for tests: of this module, and through grafttest of others.
package sim
