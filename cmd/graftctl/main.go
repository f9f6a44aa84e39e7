// Command graftctl is the operator's command line for groups of graft: it shows them, changes their members while they
// run, moves leadership, and backs them up. It works against braft servers too, as far as those can do what is asked.
//
//	graftctl --peers 10.0.0.1:8001,10.0.0.2:8001 --group kv status
//	graftctl --peers 10.0.0.1:8001 --group kv add 10.0.0.4:8001
//
// How a command travels: command.go has the flags and hands each command a client; client.go calls servers; leader.go
// finds the one that leads; change.go asks it for a change and waits, while progress.go shows how far that is.
// snapshot.go and snapshot_backup.go work without servers for the most part, on what datadir.go finds.
// What a command has found goes to standard output, everything said on the way to standard error.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], console{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		canAsk: isTerminal(os.Stdin), canRedraw: isTerminal(os.Stderr) && os.Getenv("TERM") != "dumb",
	})
	stop()
	os.Exit(code)
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
