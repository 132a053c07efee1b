// SPDX-License-Identifier: Apache-2.0

// Command run measures the time of one run of the XDP and the TC program by BPF_PROG_TEST_RUN, for each kind of packet. It can
// compare the programs with another object, tree or revision.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"hairpin/test/bench/measure"
	"hairpin/test/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	err := lab.Program(func() error { return command(ctx, os.Args[1:]) })
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench-run:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	var opts options
	flags := pflag.NewFlagSet("bench-run", pflag.ContinueOnError)
	flags.StringVar(&opts.base, "base", "", "object file, tree or revision to compare with")
	flags.StringVar(&opts.kind, "kind", "", "measure only the kinds of packets whose name contains this")
	flags.IntVar(&opts.loads, "loads", 8, "how often each object is loaded")
	flags.IntVar(&opts.rounds, "rounds", 5, "slices of each kind after each load")
	flags.IntVar(&opts.cpu, "cpu", runtime.NumCPU()-1, "CPU to run on")
	object := flags.String("serve", "", "object to measure, by requests on standard input; - is the built-in object")
	_ = flags.MarkHidden("serve")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *object == "" {
		return compare(ctx, opts, os.Stdout)
	}
	clock, err := measure.NewClock(opts.cpu)
	if err != nil {
		return err
	}
	return serve(ctx, clock, *object, os.Stdin, os.Stdout)
}
