// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/daemon"
	"hairpin/cmd/hairpin/places"
	"hairpin/maps/config"
)

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "The daemon: attach, apply the file, follow the network, serve metrics",
		Long: `The daemon: attach, apply the file, follow links, addresses and routes, serve
metrics. "hairpin reload" or SIGHUP reloads the file; an invalid file changes nothing.
SIGTERM stops the daemon only: packets are still translated until "hairpin detach --all".

If hairpin is attached already and the files have not changed, the daemon keeps
the running configuration, with the forwards that were changed at run time.

If the file is invalid, the daemon keeps what runs. If nothing runs, as after a boot,
it runs the configuration that was applied last. It says so in its log, in "hairpin
status", in the metrics and at /-/ready.

The log goes to stderr: text on a terminal, lines with priorities in the systemd
journal, JSON with -j.`,
		Args: takes(0),
		RunE: func(command *cobra.Command, _ []string) error { return a.runDaemon(command.Context()) },
	}
}

func (a *app) runDaemon(ctx context.Context) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	defer signal.Stop(hangup)
	// SIGPIPE must not end the daemon when the reader of its log is gone; if it is caught, the write only
	// returns an error. It is not ignored, because the commands of dns.reload would inherit an ignored
	// signal. It is caught until the process ends: systemd treats an end by SIGPIPE as success, and would
	// hide a failure.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	ctx, stop := untilSignal(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	err := daemon.Run(ctx, daemon.Options{
		Dir:        a.dir,
		LockWait:   a.lockWait,
		ConfigFile: a.configFile,
		ReadConfig: a.configReader(),
		Reload:     hangup,
		Store:      a.store(),
		Socket:     places.Socket(a.dir),
		ExitCode:   exitCode,
		Version:    buildInfo().Version,
		Notify:     a.getenv("NOTIFY_SOCKET"),
		Log:        a.newLogger(),
		Events:     a.stdout,
	})
	if errors.Is(err, context.Canceled) {
		// The signal came during the start. After the start, the signal is the normal end and no error.
		err = fmt.Errorf("%w during the start: %w", context.Cause(ctx), err)
	}
	return err
}

// configReader returns a function that reads the configuration file. A second call fails if the
// configuration comes from standard input.
func (a *app) configReader() func() (config.Config, error) {
	again := false
	return func() (config.Config, error) {
		if again && a.configFile == stdinPath {
			return config.Config{}, errors.New("cannot read the configuration again: it came from standard input; restart the daemon, or start it with -c FILE")
		}
		again = true
		return a.readConfig(a.configFile)
	}
}

// untilSignal works as signal.NotifyContext, but the cause of the context is a signalError.
func untilSignal(parent context.Context, signals ...os.Signal) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, signals...)
	go func() {
		select {
		case got := <-arrived:
			cancel(signalError{got.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(arrived)
		cancel(nil)
	}
}
