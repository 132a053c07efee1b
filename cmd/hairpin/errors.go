// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/dns"
	"hairpin/cmd/hairpin/presence"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/rule"
)

// Exit codes. Scripts depend on them; do not change them.
const (
	exitDone        = 0 // done, or nothing to do
	exitInvalid     = 1 // usage or configuration is invalid
	exitRefused     = 2 // kernel refused, or no permission
	exitNotFound    = 3 // not found, or diff is not empty
	exitNotAttached = 4 // not attached, or attached by another version
	exitLocked      = 5
	exitSignal      = 128 // plus the number of the signal, as shells do
)

var (
	// errDiffers only sets the exit code of diff, which has already printed the difference.
	errDiffers   = errors.New("configuration and running state differ")
	errNoCommand = errors.New("no command given")
)

// usageError is an error in the arguments. The command did nothing.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// invalidError is an error in the configuration or a forward. Nothing was changed.
type invalidError struct{ error }

func (e invalidError) Unwrap() error { return e.error }

// notFoundError says that something with this name does not exist.
type notFoundError struct{ kind, name, hint string }

func (e notFoundError) Error() string {
	text := fmt.Sprintf("no %s %q", e.kind, e.name)
	if e.hint != "" {
		text += ": " + e.hint
	}
	return text
}

// signalError says which signal ended a command before it was done.
type signalError struct{ syscall.Signal }

func (e signalError) Error() string { return "ended by signal " + unix.SignalName(e.Signal) }

// invalid marks err as an error of the configuration.
func invalid(err error) error {
	if err == nil {
		return nil
	}
	return invalidError{err}
}

func exitCode(err error) int {
	var (
		usage    usageError
		wrong    invalidError
		problem  *rule.Problem
		path     *dns.PathError
		notFound notFoundError
		ended    signalError
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &ended):
		return exitSignal + int(ended.Signal)
	case errors.Is(err, loader.ErrNotLoaded), errors.Is(err, loader.ErrSchema), errors.Is(err, loader.ErrVersion):
		return exitNotAttached
	case errors.Is(err, loader.ErrLocked), errors.Is(err, presence.ErrRunning):
		return exitLocked
	case errors.Is(err, loader.ErrPermission), errors.Is(err, fs.ErrPermission):
		return exitRefused
	case errors.Is(err, errDiffers), errors.As(err, &notFound):
		return exitNotFound
	case errors.As(err, &usage), errors.As(err, &wrong), errors.As(err, &problem), errors.As(err, &path):
		return exitInvalid
	}
	return exitRefused
}

// finish flushes stdout, prints err and returns the exit code.
func (a *app) finish(err error) int {
	if flushed := a.out.Flush(); flushed != nil && err == nil {
		err = fmt.Errorf("write output: %w", flushed)
	}
	if err != nil && !errors.Is(err, errDiffers) {
		a.report(err)
	}
	return exitCode(err)
}

func (a *app) report(err error) {
	for line := range strings.Lines(strings.TrimSpace(err.Error())) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			fmt.Fprintln(a.stderr, "hairpin: "+printable(shortenLine(line)))
		}
	}
	if errors.Is(err, loader.ErrNotLoaded) && !errors.Is(err, maps.ErrEmpty) {
		hint := `start the daemon (systemctl start hairpin), or run "hairpin attach"`
		if private := loader.CheckMount(a.dir); errors.Is(private, loader.ErrPrivateMount) {
			_, why, _ := strings.Cut(private.Error(), ": ")
			hint = "hairpin may run where this command cannot see it: " + why
		}
		fmt.Fprintln(a.stderr, "hairpin: "+printable(hint))
	}
	var verifier *ebpf.VerifierError
	switch {
	case !errors.As(err, &verifier):
	case a.verbose:
		fmt.Fprintf(a.stderr, "%+v\n", verifier)
	default:
		fmt.Fprintln(a.stderr, "hairpin: -v prints the whole log of the verifier")
	}
}

// shortenLine cuts the middle out of a long line: an argument may be a megabyte long.
func shortenLine(line string) string {
	const limit = 2000
	if len(line) <= limit {
		return line
	}
	return line[:limit/2] + " ... " + line[len(line)-limit/2:]
}
