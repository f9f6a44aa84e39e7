#!/bin/sh
# Generates the .pb.go files from the .proto files beside this script, into the
# directory named by the first argument, or here. The version of protoc-gen-go is
# pinned in tools/go.mod. That of protoc has no influence on the result but for a
# comment, which is dropped: the output is the same on every machine.
set -eu

command -v protoc >/dev/null || { echo "generate.sh: protoc is not installed (Debian: protobuf-compiler)" >&2; exit 1; }

out=$(mkdir -p "${1:-$(dirname "$0")}" && cd "${1:-$(dirname "$0")}" && pwd)
cd "$(dirname "$0")"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
(cd ../tools && GOWORK=off GOFLAGS=-mod=readonly go build -o "$tmp/protoc-gen-go" google.golang.org/protobuf/cmd/protoc-gen-go)

# Files register under the path protoc is given, which must be unlike that of any
# other package in a program; hence the prefix.
mkdir -p "$tmp/src/graft" "$tmp/out"
ln -s "$(pwd)" "$tmp/src/graft/raftpb"
protos=$(cd "$tmp/src" && ls graft/raftpb/*.proto)
# shellcheck disable=SC2086 # one word per file is meant
protoc -I "$tmp/src" --plugin="$tmp/protoc-gen-go" --go_out="$tmp/out" --go_opt=paths=source_relative $protos
for file in "$tmp"/out/graft/raftpb/*.pb.go; do
	sed '/^\/\/[[:space:]]*protoc[[:space:]]*v[0-9]/d' "$file" >"$out/$(basename "$file")"
done
