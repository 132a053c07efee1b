// SPDX-License-Identifier: Apache-2.0

// Hairpin translates network addresses on Linux routers. This is the command line, and the start of the daemon: commands,
// output and exit codes.
//
// It decides nothing about packets, and changes the kernel through package router only. The programs of package bpf
// handle packets whether a command or the daemon runs or not.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hairpin/loader"
)

const (
	defaultConfigFile = "/etc/hairpin/hairpin.toml"
	defaultLockWait   = 30 * time.Second
)

// env is what a command uses of its process, so that tests can run commands in theirs.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
}

// app is one run of the command line: the options that every command has, and
// where its output goes.
type app struct {
	stdin  io.Reader
	out    *bufio.Writer
	stderr io.Writer
	getenv func(string) string

	configFile string
	dir        string
	lockWait   time.Duration
	json       bool
	quiet      bool
	verbose    bool

	started bool // the arguments were accepted: a later failure is no usage error
}

// sparseGC is the GC percentage of commands. Most end before the first collection; with many forwards, collections
// at the usual percentage take half of a command's time.
const sparseGC = 400

// usualGC is for commands that print any number of rows: they run long, and should hold little.
const usualGC = 100

func main() {
	debug.SetGCPercent(sparseGC)
	code := run(context.Background(), env{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
	}, os.Args[1:])
	if code > exitSignal {
		// As if nobody had caught it: a service manager takes that for the end that it asked for.
		// Sent to this thread, the signal is there before the call returns.
		ended := syscall.Signal(code - exitSignal)
		signal.Reset(ended)
		runtime.LockOSThread()
		_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), ended)
	}
	os.Exit(code)
}

// run executes one command and returns its exit code.
func run(ctx context.Context, env env, args []string) int {
	a := newApp(env)
	root := a.rootCommand()
	if args == nil {
		args = []string{} // cobra takes nil for "those of the process"
	}
	root.SetArgs(args)

	command, err := root.ExecuteContextC(ctx)
	if err != nil && !a.started {
		err = fmt.Errorf("%w\nsee %q", usageError{err}, command.CommandPath()+" --help")
	}
	return a.finish(err)
}

func newApp(env env) *app {
	return &app{stdin: env.stdin, out: bufio.NewWriter(env.stdout), stderr: env.stderr, getenv: env.getenv}
}

func (a *app) rootCommand() *cobra.Command {
	var version bool
	root := &cobra.Command{
		Use:   "hairpin",
		Short: "Port forwards and NAT reflection for Linux routers, in eBPF",
		Long: `Port forwards and NAT reflection for Linux routers, in eBPF.

Forwards and connections are in the kernel: every command works whether the
daemon runs or not. Results go to stdout, messages to stderr.

Exit codes: 0 done or nothing to do, 1 usage or configuration invalid,
2 kernel refused or no permission, 3 not found or diff not empty,
4 not attached or other schema, 5 lock not obtained. A command that a signal
ends has 128 plus the number of the signal, as a shell shows it.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              rootArgs,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.quiet && a.verbose {
				return errors.New("-q and -v exclude each other")
			}
			if a.dir == "" {
				// Most likely a shell variable that is not set, so the default is not meant.
				return errors.New("--bpffs is empty; leave the option out to use " + loader.DefaultDir)
			}
			if a.configFile == "" {
				return errors.New("-c is empty; leave the option out to use " + defaultConfigFile)
			}
			a.dir = filepath.Clean(a.dir) // as package loader does: both name the same files
			if a.lockWait < 0 {
				return fmt.Errorf("--wait %s is negative; use 0s not to wait", a.lockWait)
			}
			a.started = true
			return nil
		},
		RunE: func(command *cobra.Command, _ []string) error {
			if version {
				return a.printVersion()
			}
			a.started = false
			return errNoCommand
		},
	}
	root.Flags().BoolVar(&version, "version", false, "show the version of this binary")
	root.SetIn(a.stdin)
	root.SetOut(a.out)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
	root.SetUsageFunc(printUsage)
	root.SetHelpCommand(a.helpCommand())
	cobra.EnableCommandSorting = false

	flags := root.PersistentFlags()
	flags.SortFlags = false
	flags.StringVarP(&a.configFile, "config", "c", defaultConfigFile, "configuration `FILE`; - is standard input")
	flags.StringVar(&a.dir, "bpffs", loader.DefaultDir, "`DIR` that holds the pinned maps and programs")
	flags.DurationVar(&a.lockWait, "wait", defaultLockWait, "`TIME` to wait while another command changes something")
	flags.BoolVarP(&a.json, "json", "j", false, "JSON output")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "errors only")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "more messages, and the whole log of the verifier")

	root.AddCommand(
		a.runCommand(),
		a.checkCommand(), a.diffCommand(), a.applyCommand(), a.saveCommand(),
		a.attachCommand(), a.detachCommand(), a.upgradeCommand(), a.statusCommand(),
		a.forwardCommand(), a.connCommand(), a.denyCommand(), a.dnsCommand(),
		a.completionCommand(), a.versionCommand(),
	)
	return root
}
