module github.com/graft-raft/graft/bench

go 1.25.0

require github.com/graft-raft/graft v0.0.0

replace github.com/graft-raft/graft => ../
