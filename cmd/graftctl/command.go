package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/graft-raft/graft"
)

// console is where a command reads and writes.
type console struct {
	in        io.Reader
	out, err  io.Writer
	canAsk    bool // in is a terminal: somebody can answer a question
	canRedraw bool // err is a terminal: lines can be drawn over
}

// app is one run of the command: what all its subcommands have in common.
type app struct {
	console
	group   string
	peers   []string
	json    bool
	timeout time.Duration
	tls     tlsFlags

	servers []server // of peers
}

// run runs the command and returns its exit status.
func run(ctx context.Context, args []string, c console) int {
	out := &noted{w: c.out}
	c.out = out
	a := &app{console: c}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil && out.err == nil {
		return 0
	}
	var f *failure
	if out.err != nil {
		f = unsaid(out.err)
	} else if !errors.As(err, &f) { // cobra's, about flags and arguments
		f = usage(cmd.CommandPath(), "%v", err)
	}
	// Where the flags could not be read, it is the arguments that tell.
	a.report(f, out.err == nil && (a.json || slices.Contains(args, "--json")))
	return 1
}

const long = `graftctl shows and changes replicated groups: graft's, and braft's as far as they can do it.

Give it the addresses of some members with --peers; it finds the leader by itself. Peers are written
host:port[:index[:role]], where role is 0 for a voter and 2 for a learner.

The exit status is 0 if what was asked for is done, else 1. With --json the result, or
{"error": …}, is one JSON object on standard output.`

const example = `  graftctl --peers 10.0.0.1:8001,10.0.0.2:8001 --group kv status
  graftctl --peers 10.0.0.1:8001 --group kv add 10.0.0.4:8001
  graftctl --peers 10.0.0.1:8001 --group kv change 10.0.0.1:8001,10.0.0.4:8001,10.0.0.5:8001
  graftctl --peers 10.0.0.1:8001 --group kv transfer`

// command builds the tree of commands.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use: "graftctl", Short: "Operate replicated groups", Long: long, Example: example,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.group, "group", "", "name of the group")
	f.StringSliceVar(&a.peers, "peers", nil, "addresses of some members, host:port,…")
	f.BoolVar(&a.json, "json", false, "print the result, or the error, as JSON")
	f.DurationVar(&a.timeout, "timeout", 0, "bound for the whole command, 0 for none (default none for changes, 10s for the rest)")
	a.tls.register(f)
	root.AddCommand(
		a.statusCommand(), a.peersCommand(), a.leaderCommand(),
		a.addCommand(), a.removeCommand(), a.changeCommand(), a.learnerCommand(), a.cancelCommand(),
		a.transferCommand(), a.snapshotCommand(), a.resetCommand(),
	)
	return root
}

// result is what a command has found. It is printed as JSON, or by print.
type result interface{ print(w io.Writer) }

// quick bounds commands that wait for no data to be copied.
const quick = 10 * time.Second

// perform runs a command within its time and prints what it found.
func (a *app) perform(cmd *cobra.Command, limit time.Duration, do func(ctx context.Context, c *client) (result, error)) error {
	if err := a.check(cmd); err != nil {
		return err
	}
	if cmd.Flags().Changed("timeout") {
		limit = a.timeout
	}
	ctx := cmd.Context()
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	c, err := newClient(a)
	if err != nil {
		return err
	}
	defer c.close()
	r, err := do(ctx, c)
	if err != nil {
		return a.explain(err)
	}
	if a.json {
		return json.NewEncoder(a.out).Encode(r)
	}
	r.print(a.out)
	return nil
}

// check reads the flags that all commands have.
func (a *app) check(cmd *cobra.Command) error {
	path := cmd.CommandPath()
	needsPeers := cmd.Flags().Lookup("peer") == nil // reset names its server otherwise
	switch {
	case a.group == "":
		return usage(path, "--group is missing: the name under which the servers started the group")
	case len(a.peers) == 0 && needsPeers:
		return usage(path, "--peers is missing: the addresses of some members, host:port,…")
	case a.timeout < 0:
		return usage(path, "--timeout is %v, must not be negative", a.timeout)
	}
	for _, s := range a.peers {
		s = strings.TrimSpace(s)
		p, err := graft.ParsePeerID(s)
		if err != nil {
			return usage(path, "--peers: %v", err)
		}
		a.servers = append(a.servers, server{PeerID: p.ID(), anyone: s == p.Address})
	}
	return nil
}

// report prints why the command failed.
func (a *app) report(f *failure, asJSON bool) {
	if asJSON {
		// There is nobody left to tell if standard output breaks now.
		_ = json.NewEncoder(a.out).Encode(map[string]*failure{"error": f})
		return
	}
	fmt.Fprintln(a.err, "graftctl: "+f.Message)
	if f.Hint != "" {
		fmt.Fprintln(a.err, f.Hint)
	}
}

// invocation is how this run's command line would look with another command.
func (a *app) invocation(command string) string {
	peers := ""
	if len(a.peers) > 0 {
		peers = "--peers " + strings.Join(a.peers, ",") + " "
	}
	group := a.group
	if !plainWord.MatchString(group) {
		group = "'" + strings.ReplaceAll(group, "'", `'\''`) + "'"
	}
	return "graftctl " + peers + "--group " + group + " " + command
}

// plainWord is what a shell takes as it is.
var plainWord = regexp.MustCompile(`^[\w./:,@%+=-]+$`)
