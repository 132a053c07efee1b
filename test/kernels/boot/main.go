// SPDX-License-Identifier: Apache-2.0

// Command boot runs the tests on Debian's kernels, each booted in qemu. It needs amd64 and no KVM:
// the processor is emulated, ten times slower than the real one. So another architecture is not slower.
//
//	boot [-cache DIR] [-timeout TIME] [-table FILE] [KERNEL...]
//
// It prints a table of the kernels and their results. If it has run all tests, it also writes their rows to FILE, where the rows of other
// kernels stay. A suite's kernel stays in the cache; to test a newer kernel, remove it from the cache.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kernel is the kernel of a Debian suite.
type kernel struct {
	name  string
	suite string
	arch  *arch
	runs  []string // nil: all
	// refused: the kernel is older than 6.1, and hairpin must refuse to start.
	refused bool
}

var kernels = []kernel{
	{name: "5.10", suite: "bullseye", arch: amd64, runs: []string{"load"}, refused: true},
	{name: "6.1", suite: "bookworm", arch: amd64},
	{name: "6.12", suite: "trixie", arch: amd64},
	{name: "backports", suite: "stable-backports", arch: amd64},
	{name: "newest", suite: "unstable", arch: amd64},
	{name: "arm64", suite: "bookworm", arch: arm64, runs: []string{"load", "packets", "T", "T6"}},
}

type options struct {
	cache   string
	timeout time.Duration // for one guest
	table   string        // "": not written
	runs    []string      // nil: all
	kernels []kernel
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	opts, err := parse(os.Args[1:])
	if err == nil {
		err = run(ctx, opts)
	}
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test-kernels:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var opts options
	flags := flag.NewFlagSet("boot", flag.ContinueOnError)
	flags.StringVar(&opts.cache, "cache", "", "directory for kernels, by default hairpin-kernels among the user's caches")
	flags.DurationVar(&opts.timeout, "timeout", time.Hour, "for the tests on one kernel")
	names := flags.String("runs", "", "tests to run, as \"load,packets\", by default all")
	flags.StringVar(&opts.table, "table", "", "file for the table of every kernel")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if *names != "" {
		opts.runs = strings.Split(*names, ",")
	}
	for _, name := range opts.runs {
		if !slices.ContainsFunc(runs, func(r testRun) bool { return r.name == name }) {
			return options{}, fmt.Errorf("there are no tests %q; choose from %s", name, strings.Join(runNames(), ", "))
		}
	}
	if opts.cache == "" {
		caches, err := os.UserCacheDir()
		if err != nil {
			return options{}, fmt.Errorf("find the user's cache directory: %w; use -cache DIR", err)
		}
		opts.cache = filepath.Join(caches, "hairpin-kernels")
	}
	var err error
	opts.kernels, err = selectKernels(flags.Args())
	return opts, err
}

// selectKernels returns the kernels with these names; without names, all kernels.
func selectKernels(names []string) ([]kernel, error) {
	if len(names) == 0 {
		return kernels, nil
	}
	var selected []kernel
	for _, name := range names {
		i := slices.IndexFunc(kernels, func(k kernel) bool { return k.name == name })
		if i < 0 {
			var known []string
			for _, k := range kernels {
				known = append(known, k.name)
			}
			return nil, fmt.Errorf("there is no kernel %q; choose from %s", name, strings.Join(known, ", "))
		}
		selected = append(selected, kernels[i])
	}
	return selected, nil
}

func run(ctx context.Context, opts options) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("this machine is %s, but the programs for the guests are copied from a machine that is amd64", runtime.GOARCH)
	}
	work, err := os.MkdirTemp("", "hairpin-kernels-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	roots := make(map[*arch]string)
	var rows []row
	for _, k := range opts.kernels {
		if roots[k.arch] == "" {
			fmt.Println("building the tests for", k.arch.name)
			if roots[k.arch], err = buildRoot(ctx, filepath.Join(work, k.arch.name), k.arch, runsOf(k.arch, opts)); err != nil {
				return err
			}
		}
		r, err := test(ctx, opts, k, roots[k.arch])
		if err != nil {
			return fmt.Errorf("kernel %s: %w", k.name, err)
		}
		rows = append(rows, r)
	}
	fmt.Print("\n", format(rows))
	if err := ctx.Err(); err != nil {
		return err // the rows say nothing about tests that did not run
	}
	if opts.table != "" && opts.runs == nil {
		before, err := os.ReadFile(opts.table)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(opts.table, []byte(preface+update(string(before), rows)), 0o644); err != nil {
			return err
		}
	}
	return failures(rows)
}

// test boots one kernel and returns its row. Tests that fail in the guest are in the row; the error is for all other failures.
func test(ctx context.Context, opts options, k kernel, tests string) (row, error) {
	image, err := fetch(ctx, opts.cache, k.suite, k.arch)
	if err != nil {
		return row{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	fmt.Printf("\nLinux %s of %s\n", image.version, k.suite)
	began := time.Now()
	g := guest{arch: k.arch, image: image, tests: tests, runs: runsFor(k, opts.runs)}
	outcomes, err := g.boot(ctx)
	fmt.Printf("  %v in all\n", time.Since(began).Round(time.Second))
	return row{kernel: k, runs: g.runs, version: image.version, outcomes: outcomes, died: err}, nil
}
