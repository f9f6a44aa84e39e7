module github.com/graft-raft/graft/examples

go 1.25.0

replace github.com/graft-raft/graft => ../

require github.com/graft-raft/graft v0.0.0
