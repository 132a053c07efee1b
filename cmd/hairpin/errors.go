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

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/control"
	"hairpin/cmd/hairpin/dns"
	"hairpin/cmd/hairpin/presence"
	"hairpin/cmd/hairpin/toml"
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
	exitNotAttached = 4 // not attached, another table layout, or no daemon to ask
	exitLocked      = 5
	exitSignal      = 128 // plus the number of the signal, as shells do
)

var (
	// errDiffers only sets the exit code of diff, which has already printed the difference.
	errDiffers = errors.New("configuration and running state differ")
	// errProblems only sets the exit code of doctor, which has already printed the problems.
	errProblems  = errors.New("doctor found problems")
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
		reload   reloadError
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &reload):
		return max(exitInvalid, reload.code)
	case errors.As(err, &ended):
		return exitSignal + int(ended.Signal)
	case errors.Is(err, change.ErrPending):
		return exitInvalid
	case errors.Is(err, change.ErrNothingPending), errors.Is(err, change.ErrNoGeneration):
		return exitNotFound
	case errors.Is(err, loader.ErrNotLoaded), errors.Is(err, loader.ErrSchema), errors.Is(err, control.ErrNoDaemon):
		return exitNotAttached
	case errors.Is(err, loader.ErrLocked), errors.Is(err, presence.ErrRunning):
		return exitLocked
	case errors.Is(err, loader.ErrPermission), errors.Is(err, fs.ErrPermission):
		return exitRefused
	case errors.Is(err, errProblems):
		return exitInvalid
	case errors.Is(err, errDiffers), errors.As(err, &notFound):
		return exitNotFound
	case errors.As(err, &usage), errors.As(err, &wrong), errors.As(err, &problem), errors.As(err, &path):
		return exitInvalid
	}
	return exitRefused
}

// finish flushes stdout, prints err and returns the exit code.
func (a *app) finish(err error) int {
	if checkColor(a.color) == nil {
		a.setColor(a.color) // a usage error comes before the command has done this
	}
	if flushed := a.out.Flush(); flushed != nil && err == nil {
		err = fmt.Errorf("write output: %w", flushed)
	}
	if err != nil && !errors.Is(err, errDiffers) && !errors.Is(err, errProblems) {
		a.report(err)
	}
	return exitCode(err)
}

func (a *app) report(err error) {
	excerpts := toml.Excerpts(err)
	for line := range strings.Lines(strings.TrimSpace(err.Error())) {
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			continue
		}
		a.reportLine(shortenLine(line))
		if len(excerpts) > 0 && strings.HasSuffix(line, excerpts[0].Message) {
			// Several problems of one place have one excerpt, after the last of them.
			if e := excerpts[0]; len(excerpts) == 1 || !samePlace(e, excerpts[1]) {
				fmt.Fprint(a.stderr, renderExcerpt(e, a.styledErr))
			}
			excerpts = excerpts[1:]
		}
	}
	if errors.Is(err, loader.ErrNotLoaded) && !errors.Is(err, maps.ErrEmpty) {
		hint := `start the daemon (systemctl start hairpin), or run "hairpin attach"`
		if private := loader.CheckMount(a.dir); errors.Is(private, loader.ErrPrivateMount) {
			_, why, _ := strings.Cut(private.Error(), ": ")
			hint = "hairpin may run where this command cannot see it: " + why
		}
		a.reportLine(hint)
	}
	var verifier *ebpf.VerifierError
	switch {
	case !errors.As(err, &verifier):
	case a.verbose:
		fmt.Fprintf(a.stderr, "%+v\n", verifier)
	default:
		a.reportLine("-v prints the whole log of the verifier")
	}
}

// reportLine prints one line of an error.
func (a *app) reportLine(line string) {
	fmt.Fprintln(a.stderr, a.styledErr.paint(styleRed, "hairpin:"), printable(line))
}

// shortenLine cuts the middle out of a long line: an argument may be a megabyte long.
func shortenLine(line string) string {
	const limit = 2000
	if len(line) <= limit {
		return line
	}
	return line[:limit/2] + " ... " + line[len(line)-limit/2:]
}
