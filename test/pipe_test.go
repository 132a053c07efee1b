// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

// The daemon goes on when whoever reads its log is gone.
func TestDaemonOutlivesItsLog(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, config("tc", forwards))
	path := filepath.Join(t.TempDir(), "log")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	// Open for both, it waits for no writer. It reads nothing: the pipe has room for the start.
	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	hp.StartWithLog(path)
	reader.Close()
	hp.Write(config("tc", forwards+"[[forward]]\nname = \"late\"\nprotocol = \"tcp\"\nport = 8443\nto = \"192.168.1.20\"\n"))
	for range 3 {
		hp.Reload() // writes to the log
	}
	forwardNamed(t, hp, "late")
	hp.Stop()
}

// A command whose output nobody reads any more ends without a word, as others do.
func TestCommandIntoAClosedPipe(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"version"}, {"completion", "bash"}} {
		reader, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		reader.Close()
		var said strings.Builder
		command := exec.Command(lab.Binary(t), args...)
		command.Stdout, command.Stderr = writer, &said
		err = command.Run()
		writer.Close()
		state, ok := command.ProcessState.Sys().(syscall.WaitStatus)
		if !ok || !state.Signaled() || state.Signal() != unix.SIGPIPE || said.Len() > 0 {
			t.Errorf("hairpin %q: %v, said %q; want an end by SIGPIPE without a word", args, err, said.String())
		}
	}
}
