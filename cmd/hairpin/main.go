// SPDX-License-Identifier: Apache-2.0

// Hairpin translates network addresses on Linux routers. This package is the command line, which also
// starts the daemon. It has the commands, their output and the exit codes.
//
// It makes no decision about packets, and changes the kernel only through package router. The eBPF programs
// handle packets with or without a running command or daemon.
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

// env is the part of the process that a command uses. Tests replace it.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
}

// app is one run of the command line. It holds the global options and the outputs.
type app struct {
	stdin  io.Reader
	out    *bufio.Writer // to stdout
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string

	configFile string
	dir        string
	lockWait   time.Duration
	json       bool
	quiet      bool
	verbose    bool
	color      string  // one of colorModes
	styled     painter // of stdout
	styledErr  painter // of stderr

	started bool // the arguments were accepted; a later error is not a usage error
	changes bool // the command has taken the writer lock, to change something
}

// sparseGC is the GC percentage of most commands. Most commands end before the first collection; with many
// forwards and the usual percentage, collections would take half of the time.
const sparseGC = 400

// usualGC is the GC percentage of commands that print a list of any length: they run long, and should use
// little memory.
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
		// End by the signal itself, so that a service manager sees the end that it asked for. The signal
		// goes to this thread, so it arrives before Tgkill returns.
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
	return a.execute(ctx, a.rootCommand(), args)
}

func (a *app) execute(ctx context.Context, root *cobra.Command, args []string) int {
	if args == nil {
		args = []string{} // for nil, cobra takes the arguments of the process
	}
	root.SetArgs(args)

	command, err := root.ExecuteContextC(ctx)
	if err != nil && !a.started {
		err = fmt.Errorf("%w\nsee %q", usageError{err}, command.CommandPath()+" --help")
	}
	if err == nil && a.changes {
		a.tellChanged(ctx, args)
	}
	return a.finish(err)
}

func newApp(env env) *app {
	a := &app{stdin: env.stdin, out: bufio.NewWriter(env.stdout), stdout: env.stdout, stderr: env.stderr, getenv: env.getenv}
	a.setColor(colorAuto) // until the options are read
	return a
}

// setColor decides which outputs get colors.
func (a *app) setColor(mode string) {
	a.styled, a.styledErr = newPainter(mode, a.stdout, a.getenv), newPainter(mode, a.stderr, a.getenv)
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
4 not attached, or attached by a version with another table layout, or no daemon
to reload, 5 lock not obtained, 128+N ended by signal N.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              rootArgs,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if err := checkColor(a.color); err != nil {
				return err
			}
			a.setColor(a.color)
			if a.quiet && a.verbose {
				return errors.New("-q and -v exclude each other")
			}
			if a.dir == "" {
				// The cause is probably a shell variable that is not set, so do not use the default.
				return errors.New("--bpffs is empty; leave the option out to use " + loader.DefaultDir)
			}
			if a.configFile == "" {
				return errors.New("-c is empty; leave the option out to use " + defaultConfigFile)
			}
			a.dir = filepath.Clean(a.dir) // as package loader does, so that both use the same path
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
	flags.StringVar(&a.color, "color", colorAuto, "`WHEN` to color tables and messages: auto, always or never; auto: on a terminal, unless NO_COLOR is set")
	_ = root.RegisterFlagCompletionFunc("color", cobra.FixedCompletions(colorModes(), cobra.ShellCompDirectiveNoFileComp))

	root.AddCommand(
		a.runCommand(),
		a.checkCommand(), a.diffCommand(), a.applyCommand(), a.confirmCommand(), a.rollbackCommand(), a.reloadCommand(), a.saveCommand(),
		a.attachCommand(), a.detachCommand(), a.upgradeCommand(), a.statusCommand(),
		a.explainCommand(), a.doctorCommand(),
		a.forwardCommand(), a.connCommand(), a.denyCommand(), a.dnsCommand(), a.importCommand(),
		a.traceCommand(), a.watchCommand(),
		a.completionCommand(), a.versionCommand(), a.laterCommand(), a.prepareCommand(),
	)
	return root
}
