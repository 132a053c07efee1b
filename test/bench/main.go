// SPDX-License-Identifier: Apache-2.0

// Command bench compares hairpin with the kernel's own translation and with the bare hooks, in one run. README.md in its
// directory says how.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	err := lab.Program(func() error { return command(ctx, os.Args[1:], os.Stdout, os.Stderr) })
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	short := flags.Bool("short", false, "measure for about two minutes instead of fifteen")
	out := flags.String("out", "", "directory for bench.json, bench.txt, README.md and plots; \"\": write no files")
	only := flags.String("only", "", "run only the sections whose name contains this")
	soak := flags.String("soak", "", "do not measure: send packets through this contender until interrupted, for a profiler")
	flows := flags.Int("flows", 1, "number of flows of these packets")
	cpu := flags.Int("cpu", runtime.NumCPU()-1, "CPU for generator and router")
	if err := flags.Parse(args); err != nil {
		return err
	}
	clock, err := measure.NewClock(*cpu)
	if err != nil {
		return err
	}
	b := &bench{clock: clock, cpu: *cpu, short: *short, report: newReport(*short), log: stderr}
	if *soak != "" {
		return b.soak(ctx, *soak, *flows)
	}
	if err := b.run(ctx, *only); err != nil {
		return err
	}
	if err := b.report.print(stdout); err != nil {
		return err
	}
	if *out == "" {
		return nil
	}
	return b.report.write(*out)
}
