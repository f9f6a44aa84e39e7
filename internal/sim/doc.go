// Package sim runs whole replicas, the production code with its log store and its
// wire format, on simulated machines: one seed decides about time, network, disks,
// crashes and clients, so that a run can be repeated exactly. Everything happens
// on one goroutine, and a checker looks at a replica after every step of it.
//
// A run has two phases. In the first one faults happen and only safety is asked
// for. Then everything heals, and the group must get a leader, take writes and
// converge, and nobody may be left waiting.
//
// Who belongs to the group changes all the while: machines are added, removed, wiped
// and added again, made learners and voters, and leadership is handed over, in the middle
// of faults. The checker works out anew, from logs and disks, which configuration was in
// force when, and by it who may lead and what is committed. In the end the configuration
// must be at rest, those who were removed must keep quiet, and it must be possible to change it again.
//
// Some groups save snapshots, and some of these have state machines that keep what they have applied themselves.
//
// A seed switches whole classes of faults off, or in some runs everything on. In many runs storms, in which all of it happens, and lulls
// take turns, so that there is time for what takes long. Every fault, change and crash is an act with a name; if a run
// fails, acts are left out as long as it still fails, and what is left is printed with what it takes to run it again.
//
//	go test ./internal/sim -run TestSimulation -sim.hours=200 -timeout 0     hunt
//	go test ./internal/sim -run TestSimulation -sim.seed=17 -v               replay; with -sim.events all it does
//	go test ./internal/sim -run TestSimulation -sim.seed=17 -sim.shrink=10m  look longer for a small schedule
//	go test ./internal/sim -run TestSimulation -sim.options='{…}' -v         replay what was found so
//	go test ./internal/sim -run '^$' -bench Quiet                            virtual cluster-hours per CPU-minute
//
// # What is checked, and where
//
// A violation names the check, the machine, the term and the index.
//
//	I1  election safety             check_lead.go: one leader per term ever, elected by a quorum of the configuration in its log of voters that have
//	                                forgotten nothing, or by all; whom a replica takes for the leader
//	I2  vote safety                 checker.look, votes, recovered: term and vote, also across restarts from the disk
//	I3  log matching                checker.entry: index and term determine content and prefix, in every log, at every restart; what the log manager
//	                                remembers of terms, above all after truncations (checker.remembersAll); Cluster.rot
//	I4  leader append-only          checker.logChanged
//	I5  leader completeness         checker.role, against all that was ever committed
//	I6  state machine safety        checker.commit, app.apply; digests in Cluster.converged
//	I7  commit rule                 checker.commit: own term, durable on a quorum, on both if joint, by what disks are known to hold
//	I8  configuration safety        check_conf.go: disjoint quorums, comebacks, one uncommitted change, own-term entry first, who campaigns;
//	                                what the log manager remembers of configurations
//	I9  ordering                    checker.look, commit, durable, logChanged: applied ≤ commit ≤ last, nothing goes back
//	I10 durability                  checker.recovered, audit (what a power cut would leave now), clients.finalScan
//	I11 lease exclusivity           not yet: there are no leases
//	I12 read index                  clients.answered: not behind what anybody has seen
//	I13 exactly one answer          clients.written, ask, admin.answered, machine.stopped; Cluster.converged: none is missing
//	I14 honest failure              clients.written, refusal, stepped, answered, logged; admin.begun, judge, refused, unknown; checker.failed
//	I15 state machine contract      app.go
//	                                app_durable.go: what a durable state machine holds is not applied again, and nothing else is left out
//	I16 snapshot fidelity           app_snapshot.go: index, term, configuration and content are those of the applied position; check_snapshot.go: a log
//	                                begins behind what is committed and in a snapshot
//	I17 disk honesty                checker.says, stored, installed: nothing is told that is not durable, or not held; heldBack: a durable state machine is given nothing
//	                                that is not
//	I18 bounded resources           Cluster.waiting: requests in flight; the rest is tested on the whole library
//	I19 identity                    Cluster.wrongHands: directories of others; frames reach the process they were sent to only (Network)
//	I20 client history              clients.succeeded, answered, logged, applied: each write takes effect once, between call and answer, and
//	                                whoever reads later sees it; values nobody wrote are noticed
//	V1  stickiness                  checker.sticky: who hears a leader, or leads with a quorum, grants no pre-vote
//	V3  check-quorum                checker.checkQuorum: a leader that no quorum answers stops
//	L1  a leader                    Cluster.recoverAll, within 10 election timeouts
//	L2  fresh writes and reads      Cluster.freshWrites, within 20
//	L3  no needless change          Cluster.steady, for 50; nagging: who was removed keeps quiet
//	L4  equal state                 Cluster.converged
//	L5  changes and hand-overs end  Cluster.settled, freshChanges
//	L6  nobody is left waiting      Cluster.converged, stopAll
//	L7  not left joint              Cluster.settled
//	L8  everybody converges         Cluster.converged
//	L9  all is durable at rest      Cluster.allDurable: logs, terms and votes, also what disks had refused for want of space
//
// Witnesses do not exist yet either.
//
// The package is for tests: of this module, and through grafttest of others.
package sim
