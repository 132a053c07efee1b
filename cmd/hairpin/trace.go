// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/pcapng"
	"hairpin/cmd/hairpin/trace"
	"hairpin/loader"
	"hairpin/maps/rule"
)

// errEnough ends a trace that has printed as much, or has run as long, as was asked for.
var errEnough = errors.New("done")

// limits say when a command that prints what happens ends by itself.
type limits struct {
	count    uint64        // lines; 0: any number
	duration time.Duration // 0: no limit
}

func (l *limits) flags(command *cobra.Command, what string) {
	command.Flags().Uint64Var(&l.count, "count", 0, "end after `N` "+what)
	command.Flags().DurationVar(&l.duration, "for", 0, "end after `TIME`, such as 30s")
}

func (l *limits) check() error {
	if l.duration < 0 {
		return usageError{fmt.Errorf("--for %s is negative", l.duration)}
	}
	return nil
}

// until returns a context that ends by a signal, or when the time is over.
func (l *limits) until(ctx context.Context) (context.Context, func()) {
	ctx, stop := untilSignal(ctx, unix.SIGINT, unix.SIGTERM)
	if l.duration == 0 {
		return ctx, stop
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.duration, errEnough)
	return ctx, func() {
		cancel()
		stop()
	}
}

// enough reports whether so many lines are as many as were asked for.
func (l *limits) enough(printed uint64) bool { return l.count > 0 && printed >= l.count }

// ended returns nil if a trace has ended as it should: by its limits or by a signal.
func ended(err error) error {
	var signal signalError
	if errors.Is(err, errEnough) || errors.As(err, &signal) {
		return nil
	}
	return err
}

func (a *app) traceCommand() *cobra.Command {
	var options trace.PacketOptions
	var limits limits
	var file string
	command := &cobra.Command{
		Use:   "trace [FILTER..]",
		Short: "Show packets as they arrive, what is decided, and how they leave",
		Long: `Show packets as they arrive, what is decided about them, and how they leave. One line is
one packet at one hook: time, interface, hook, protocol, source > destination, TCP flags,
verdict with its reason, forward, and after "=>" source > destination and interface with
which the packet leaves.

  send    translated and sent
  pass    left to the kernel: no packet of a forward
  defer   XDP leaves the packet to TC, where it is seen again
  drop    dropped; refuse: a connection was refused; hold: a fragment waits for the first one

The kernel filters. A packet must match every condition:
  FILTER := ` + trace.FilterSyntax + `
forward NAME also finds packets that the forward refuses. A client's packets are those that it
sends and those that it gets. port is a port of either end, before or after the rewrite. IF is
the interface by which the packet comes in or leaves.

No packet waits for the trace. Packets that come faster than they are printed are lost from the
trace, never from the network; the number is printed at the end. While no trace runs, nothing
is attached. It ends with Ctrl-C. "hairpin watch conn" shows connections instead of packets.`,
		Example: `  hairpin trace client 192.168.1.50
  hairpin trace forward web --count 20
  hairpin trace port 443 interface wan0 --sample 100
  hairpin trace forward web -w web.pcapng --for 30s`,
		ValidArgsFunction: a.completeFilter,
		RunE: func(command *cobra.Command, args []string) (err error) {
			if options.Filter, err = trace.ParseFilter(args); err != nil {
				return usageError{err}
			}
			if err := limits.check(); err != nil {
				return err
			}
			if file == "" && command.Flags().Changed("write") {
				return usageError{errors.New("-w is empty; leave the option out to print lines")} // probably a shell variable that is not set
			}
			options.Dir, options.Frames = a.dir, file != ""
			return a.tracePackets(command.Context(), options, limits, file)
		},
	}
	flags := command.Flags()
	flags.StringVarP(&file, "write", "w", "", "write a pcapng `FILE` instead of lines: the packets as they arrive and as they leave, up to 256 bytes of each; - is stdout")
	flags.Uint32Var(&options.Sample, "sample", 1, "only every `N`th matching packet")
	limits.flags(command, "packets")
	return command
}

// completeFilter offers the words of a filter.
func (a *app) completeFilter(command *cobra.Command, args []string, word string) (completions, cobra.ShellCompDirective) {
	const nothing = cobra.ShellCompDirectiveNoFileComp
	if len(args)%2 == 0 {
		return trace.FilterWords(), nothing
	}
	switch args[len(args)-1] {
	case "forward":
		return a.completeForwards(command, args, word)
	case "proto":
		return connectionProtocols(), nothing
	case "interface":
		return interfaceNames(""), nothing
	}
	return nil, nothing
}

// traceResult is the last document of a trace.
type traceResult struct {
	Packets uint64 `json:"packets"` // printed or written
	Lost    uint64 `json:"lost"`    // matched, and came too fast
}

func (a *app) tracePackets(ctx context.Context, options trace.PacketOptions, limits limits, file string) (err error) {
	ctx, stop := limits.until(ctx)
	defer stop()
	running, err := trace.OpenPackets(options)
	if err != nil {
		return a.explainTrace(err, options.Filter)
	}
	defer func() { err = errors.Join(err, running.Close()) }()
	write := a.packetPrinter()
	if file != "" {
		out, failed := a.create(file)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, out.Close()) }()
		if write, err = pcapngPrinter(out); err != nil {
			return err
		}
	}
	a.say("tracing; Ctrl-C ends")

	var result traceResult
	for !limits.enough(result.Packets) {
		packet, err := running.Next(ctx)
		if err != nil {
			if err = ended(err); err != nil {
				return err
			}
			break
		}
		written, err := write(packet)
		if err != nil {
			return err
		}
		if written {
			result.Packets++
		}
	}
	result.Lost = running.Lost()
	return a.traceDone(result, file)
}

// traceDone tells how much was traced and lost.
func (a *app) traceDone(result traceResult, file string) error {
	if result.Lost > 0 {
		a.warn("lost %s, which came faster than they were %s; use a narrower filter or --sample", count(int(result.Lost), "packet"),
			map[bool]string{false: "printed", true: "written"}[file != ""])
	}
	if file != "" {
		a.say("wrote %s to %s", count(int(result.Packets), "packet"), file)
	}
	if !a.json || file == stdinPath {
		return nil
	}
	return a.printJSON("trace", result)
}

// packetPrinter returns a function that prints a packet at once.
func (a *app) packetPrinter() func(*trace.Packet) (bool, error) {
	return func(p *trace.Packet) (bool, error) {
		if a.json {
			if err := a.printJSON("packet", p); err != nil {
				return false, err
			}
		} else {
			fmt.Fprintln(a.out, printable(p.Text()))
		}
		return true, a.flush()
	}
}

// flush writes what was printed to stdout at once.
func (a *app) flush() error {
	if err := a.out.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// create makes a file that only its owner reads: packets may hold secrets. It replaces no file.
func (a *app) create(file string) (io.WriteCloser, error) {
	if file == stdinPath {
		return flusher{a}, nil
	}
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, usageError{fmt.Errorf("%s exists already; name another file, or remove this one", file)}
	}
	if err != nil {
		return nil, fmt.Errorf("make the file of the trace: %w", err)
	}
	return out, nil
}

// flusher writes to stdout at once.
type flusher struct{ *app }

func (f flusher) Write(data []byte) (int, error) {
	n, err := f.out.Write(data)
	return n, errors.Join(err, f.flush())
}

func (f flusher) Close() error { return nil }

// pcapngPrinter returns a function that writes a packet to a pcapng file. The file has a block for each interface that exists now.
func pcapngPrinter(out io.Writer) (func(*trace.Packet) (bool, error), error) {
	links, err := loader.Links()
	if err != nil {
		return nil, err
	}
	var interfaces []pcapng.Interface
	for _, l := range links {
		interfaces = append(interfaces, pcapng.Interface{Name: l.Name, Index: uint32(l.Index), Bare: l.Bare})
	}
	w, err := pcapng.New(out, interfaces)
	if err != nil {
		return nil, err
	}
	return w.Write, nil
}

// explainTrace adds the cure to an error of a filter.
func (a *app) explainTrace(err error, filter trace.Filter) error {
	switch {
	case errors.Is(err, trace.ErrNoForward):
		s, opened := a.open()
		if opened != nil {
			return errors.Join(err, opened)
		}
		defer s.Close()
		return notFound(s, []string{filter.Forward})
	case errors.Is(err, loader.ErrNoInterface):
		return notFoundError{kind: "interface", name: filter.Interface, hint: interfaceHint(filter.Interface)}
	}
	return err
}

// interfaceHint names the interface that was probably meant.
func interfaceHint(name string) string {
	devices, err := net.Interfaces()
	if err != nil {
		return ""
	}
	var names []string
	for _, d := range devices {
		names = append(names, d.Name)
	}
	return rule.Suggest(name, names...)
}
