// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// The daemon goes on when whoever reads its log is gone.
func TestDaemonOutlivesItsLog(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
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
	hp.Write(home.Config("tc", home.Forwards+"[[forward]]\nname = \"late\"\nprotocol = \"tcp\"\nport = 8443\nto = \"192.168.1.20\"\n"))
	for range 3 {
		hp.Reload() // writes to the log
	}
	home.ForwardNamed(t, hp, "late")
	hp.Stop()
}

// If the daemon fails, its exit code says so even if nobody reads the log: the service manager then starts it again.
func TestDaemonFailsWithoutItsLog(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), writer.Fd())
	daemon := n.Router.Start("sh", "-c", `exec "$@" >"$0" 2>&1`, path, lab.Binary(t), "-c", hp.File, "--bpffs", hp.Dir, "run")
	lab.Eventually(t, lab.Patience, func() error {
		r, err := hp.Try("status")
		if err == nil && (r.Code != 0 || !strings.Contains(r.Stdout, "daemon:      running")) {
			err = fmt.Errorf("status: %+v", r)
		}
		return err
	})
	reader.Close()
	if err := os.RemoveAll(filepath.Join(hp.Dir, "datapath")); err != nil {
		t.Fatal(err)
	}
	if code := daemon.Wait(); code != 4 {
		t.Errorf("exit code %d, want 4", code)
	}
}

// The configuration that a daemon has from standard input cannot be read again: a reload says so and changes nothing.
func TestReloadOfStandardInput(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, "")
	daemon := n.Router.StartWith(nil, home.Config("tc", home.Forwards), lab.Binary(t), "-c", "-", "--bpffs", hp.Dir, "run")
	logged := func(text string) {
		t.Helper()
		lab.Eventually(t, lab.Patience, func() error {
			if log := daemon.Stderr.String(); !strings.Contains(log, text) {
				return fmt.Errorf("no %q in the log:\n%s", text, log)
			}
			return nil
		})
	}
	logged("msg=addresses interface=lo")
	daemon.Signal(unix.SIGHUP)
	logged("cannot read the configuration again: it came from standard input")
	home.ForwardNamed(t, hp, "web")
	daemon.Signal(unix.SIGTERM)
	if code := daemon.Wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A command ends without a message if the reader of its output has gone, as other programs do.
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
