// Package raftpb holds the messages that nodes exchange: the .proto files and what
// protoc makes of them. It contains no logic; internal/wire encodes and decodes the
// frequent ones by hand, to the same bytes.
//
// After changing a .proto file run go generate here. It needs protoc on the PATH.
package raftpb

//go:generate ./generate.sh
