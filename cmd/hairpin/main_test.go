// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/presence"
	"hairpin/loader"
	"hairpin/maps/rule"
)

// TestMain sets the umask of administrators. With another umask, other users could write the tests' files,
// and hairpin would refuse the files.
func TestMain(m *testing.M) {
	unix.Umask(0o022)
	testscript.Main(m, map[string]func(){"hairpin": main})
}

func TestScripts(t *testing.T) {
	dist, err := filepath.Abs("dist")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("ESC", "\x1b")
			env.Setenv("DIST", dist)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"json":    validJSON,
			"longarg": longArgument,
		},
	})
}

// exits runs hairpin without a datapath and checks the exit code: "exits 1 forward add".
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: exits CODE ARG..")
	}
	var failed *exec.ExitError
	code := exitDone
	if err := ts.Exec("hairpin", append([]string{"-c", "hairpin.toml", "--bpffs", "none"}, args[1:]...)...); errors.As(err, &failed) {
		code = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("hairpin %q: exit code %d, want %s", args[1:], code, args[0])
	}
}

// validJSON checks that the last output is one JSON document with a schema and a key.
func validJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: json KEY")
	}
	var document map[string]json.RawMessage
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &document))
	if string(document["schema"]) != "1" || document[args[0]] == nil || len(document) != 2 {
		ts.Fatalf("not a document of schema 1 with %q alone: %v", args[0], document)
	}
}

// longArgument gives "forward add" a megabyte as each argument, and wants a short error.
func longArgument(ts *testscript.TestScript, neg bool, args []string) {
	long := strings.Repeat("9", 1<<20)
	good := []string{"forward", "add", "web", "tcp", "80", "to", "192.168.1.20"}
	for i := 1; i < len(good); i++ {
		words := append([]string{}, good...)
		words[i] = long
		for _, words := range [][]string{words, append(append([]string{}, good...), "from", long)} {
			var stdout, stderr bytes.Buffer
			code := run(context.Background(), env{stdout: &stdout, stderr: &stderr, getenv: ts.Getenv},
				append([]string{"--bpffs", ts.MkAbs("none")}, words...))
			if code != exitInvalid && i > 1 {
				ts.Fatalf("argument %d: exit code %d, want %d: %s", i, code, exitInvalid, &stderr)
			}
			if code == exitDone || stderr.Len() > 4096 {
				ts.Fatalf("argument %d: exit code %d, %d bytes of message", i, code, stderr.Len())
			}
		}
	}
}

func TestExitCodes(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("attach: %w", err) }
	for _, c := range []struct {
		name string
		err  error
		want int
	}{
		{"done", nil, 0},
		{"usage", usageError{errors.New("what?")}, 1},
		{"invalid configuration", wrap(invalid(errors.New("line 3"))), 1},
		{"a problem that maps found", errors.Join(&rule.Problem{Index: -1, Message: "no"}), 1},
		{"kernel too old", wrap(loader.ErrKernel), 2},
		{"no permission", wrap(loader.ErrPermission), 2},
		{"anything the kernel says", wrap(errors.New("invalid argument")), 2},
		{"not found", notFoundError{kind: "forward", name: "x"}, 3},
		{"diff not empty", errDiffers, 3},
		{"not loaded", wrap(loader.ErrNotLoaded), 4},
		{"another schema", wrap(loader.ErrSchema), 4},
		{"locked", wrap(loader.ErrLocked), 5},
		{"a second daemon", wrap(presence.ErrRunning), 5},
		{"a signal", wrap(errors.Join(signalError{unix.SIGTERM}, loader.ErrLocked)), 143},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := exitCode(c.err); got != c.want {
				t.Errorf("exit code %d of %v, want %d", got, c.err, c.want)
			}
		})
	}
}

// TestVerifierLog: -v prints the whole log of the verifier; without -v the error only mentions -v.
func TestVerifierLog(t *testing.T) {
	failure := fmt.Errorf("load: %w", &ebpf.VerifierError{Cause: errors.New("EACCES"), Log: []string{"first line", "second line", "last line"}})
	for _, verbose := range []bool{false, true} {
		var stdout, stderr bytes.Buffer
		a := newApp(env{stdout: &stdout, stderr: &stderr})
		a.verbose = verbose
		if code := a.finish(failure); code != exitRefused {
			t.Errorf("exit code %d, want %d", code, exitRefused)
		}
		if got := strings.Contains(stderr.String(), "second line"); got != verbose {
			t.Errorf("verbose %v: log in full is %v:\n%s", verbose, got, &stderr)
		}
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// TestOutputThatCannotBeWritten: a command fails if its output cannot be written.
func TestOutputThatCannotBeWritten(t *testing.T) {
	var stderr bytes.Buffer
	code := run(context.Background(), env{stdout: fullDisk{}, stderr: &stderr}, []string{"version"})
	if code == exitDone || !strings.Contains(stderr.String(), "no space left") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
}
