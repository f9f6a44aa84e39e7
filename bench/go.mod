module github.com/graft-raft/graft/bench

go 1.25.0

require (
	github.com/graft-raft/graft v0.0.0
	go.uber.org/goleak v1.3.0
)

require (
	go.uber.org/multierr v1.10.0 // indirect
	go.uber.org/zap v1.27.1 // indirect
	golang.org/x/sys v0.40.0 // indirect
	google.golang.org/protobuf v1.36.11 // indirect
)

replace github.com/graft-raft/graft => ../
