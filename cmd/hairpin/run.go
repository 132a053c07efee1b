// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/daemon"
	"hairpin/maps/config"
)

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "The daemon: attach, apply the file, follow the network, serve metrics",
		Long: `The daemon: attach, apply the file, follow links, addresses and routes, serve
metrics. SIGHUP reloads the file; an invalid file changes nothing. SIGTERM stops
the daemon only: packets are still translated until "hairpin detach --all".

If hairpin is attached already and the files have not changed, the daemon keeps
the running configuration, with the forwards that were changed at run time.`,
		Args: takes(0),
		RunE: func(command *cobra.Command, _ []string) error { return a.runDaemon(command.Context()) },
	}
}

func (a *app) runDaemon(ctx context.Context) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	defer signal.Stop(hangup)
	// A log whose reader has gone ends no daemon. Caught, the signal becomes an error of the write.
	// It is not ignored: the commands of dns.reload would inherit that. It is caught to the very end:
	// a service manager takes an end by SIGPIPE for one that was wanted, whatever failed before.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	ctx, stop := untilSignal(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	err := daemon.Run(ctx, daemon.Options{
		Dir:        a.dir,
		LockWait:   a.lockWait,
		ConfigFile: a.configFile,
		ReadConfig: a.configReader(),
		Reload:     hangup,
		Version:    buildInfo().Version,
		Notify:     a.getenv("NOTIFY_SOCKET"),
		Log:        a.newLogger(),
	})
	if errors.Is(err, context.Canceled) {
		// It was still starting. Later on these signals are how it is meant to end.
		err = fmt.Errorf("%w during the start: %w", context.Cause(ctx), err)
	}
	return err
}

// configReader reads the configuration file each time it is called; standard input can be read once only.
func (a *app) configReader() func() (config.Config, error) {
	again := false
	return func() (config.Config, error) {
		if again && a.configFile == stdinPath {
			return config.Config{}, errors.New("the configuration came from standard input, which is at its end; restart the daemon, or start it with -c FILE")
		}
		again = true
		return a.readConfig(a.configFile)
	}
}

// untilSignal is signal.NotifyContext whose cause is a signalError.
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

func (a *app) newLogger() *slog.Logger {
	level := slog.LevelInfo
	switch {
	case a.quiet:
		level = slog.LevelWarn
	case a.verbose:
		level = slog.LevelDebug
	}
	options := &slog.HandlerOptions{Level: level}
	if onJournal(a.getenv("JOURNAL_STREAM"), a.stderr) {
		// The journal has its own time.
		options.ReplaceAttr = func(groups []string, attr slog.Attr) slog.Attr {
			if len(groups) == 0 && attr.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return attr
		}
	}
	return slog.New(slog.NewTextHandler(a.stderr, options))
}

// onJournal reports whether out is the journal; stream is the value of JOURNAL_STREAM.
// The variable alone proves nothing: a child whose output was redirected inherits it.
// So systemd.exec(5) wants its device and inode compared with those of the descriptor.
// journal.StderrIsJournalStream of go-systemd does the same, but for the environment
// and descriptor 2 of this process only, which commands here do not use directly.
func onJournal(stream string, out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok || stream == "" {
		return false
	}
	info, err := file.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}
