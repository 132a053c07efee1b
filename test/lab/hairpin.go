// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Hairpin is hairpin on a router: the built binary, with its own configuration file and pin directory.
type Hairpin struct {
	File string // path of the configuration file
	Dir  string // pin directory

	tb     testing.TB
	host   *Host
	under  []string // the command that starts the binary
	binary string
	states *states
	daemon *Process
}

// DeviceMode returns the value of datapath.mode for a test's mode. "xdp" becomes "xdp-untagged", because the lab's cables are veths;
// no test sends tagged frames over them.
func DeviceMode(mode string) string {
	if mode == "xdp" {
		return "xdp-untagged"
	}
	return mode
}

// NewHairpin prepares hairpin on a host, and starts nothing. When the test ends, all files and programs of hairpin are
// removed.
func NewHairpin(h *Host, config string) *Hairpin {
	h.tb.Helper()
	// Not tb.TempDir(): its path may be too long for a socket, whose path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "hairpin-lab-")
	h.must("make directory", err)
	hp := &Hairpin{
		File: filepath.Join(dir, "hairpin.toml"), Dir: filepath.Join(dir, "pins"),
		tb: h.tb, host: h, binary: Binary(h.tb),
	}
	hp.states, err = listenStates(hp.socket())
	h.must("listen for readiness", err)
	h.tb.Cleanup(func() {
		hp.states.conn.Close()
		for unix.Unmount(hp.Dir, unix.MNT_DETACH) == nil {
		}
		if err := os.RemoveAll(dir); err != nil {
			h.tb.Errorf("remove lab directory: %v", err)
		}
	})
	hp.Write(config)
	return hp
}

// For returns hp for use in a subtest: its failures are then the subtest's.
func (hp *Hairpin) For(tb testing.TB) *Hairpin {
	other := *hp
	other.tb, other.host = tb, hp.host.For(tb)
	return &other
}

// With returns hp with another binary, which has the same files and pins.
func (hp *Hairpin) With(binary string) *Hairpin {
	other := *hp
	other.binary = binary
	return &other
}

// Under returns hp for commands and a daemon that this command starts, such as setpriv.
func (hp *Hairpin) Under(command ...string) *Hairpin {
	other := *hp
	other.under = command
	return &other
}

// Write replaces the configuration file.
func (hp *Hairpin) Write(config string) {
	hp.tb.Helper()
	hp.host.must("write configuration", os.WriteFile(hp.File, []byte(config), 0o600))
}

// Start starts the daemon and returns when the daemon is ready.
func (hp *Hairpin) Start() {
	hp.tb.Helper()
	hp.start(hp.args("run"))
}

// StartWithLog is Start, but the daemon's output goes to a file, which may be a named pipe.
func (hp *Hairpin) StartWithLog(path string) {
	hp.tb.Helper()
	hp.start(append([]string{"sh", "-c", `exec "$@" >"$0" 2>&1`, path}, hp.args("run")...))
}

// StartIn is Start, but the daemon is in a cgroup from its first instruction on, so all its memory counts there.
func (hp *Hairpin) StartIn(c *MemoryCgroup) {
	hp.tb.Helper()
	hp.start(append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(c.dir, "cgroup.procs")}, hp.args("run")...))
}

func (hp *Hairpin) start(args []string) {
	hp.tb.Helper()
	from := hp.states.count()
	hp.daemon = hp.host.StartWith([]string{"NOTIFY_SOCKET=" + hp.socket()}, "", args...)
	hp.await(from, "READY=1")
}

// Reload makes the daemon read its file again, and returns when the daemon has done so.
func (hp *Hairpin) Reload() {
	hp.tb.Helper()
	from := hp.states.count()
	hp.daemon.Signal(unix.SIGHUP)
	hp.await(hp.await(from, "RELOADING=1"), "READY=1")
}

// Stop ends the daemon by SIGTERM, as systemd does. The exit code must be 0.
func (hp *Hairpin) Stop() {
	hp.tb.Helper()
	hp.daemon.Signal(unix.SIGTERM)
	if code := hp.daemon.Wait(); code != 0 {
		hp.tb.Errorf("daemon: exit code %d on SIGTERM, want 0", code)
	}
}

// Kill ends the daemon by SIGKILL.
func (hp *Hairpin) Kill() {
	hp.tb.Helper()
	hp.daemon.Signal(syscall.SIGKILL)
	hp.daemon.Wait()
}

// Signal sends a signal to the daemon.
func (hp *Hairpin) Signal(signal syscall.Signal) { hp.daemon.Signal(signal) }

// Gone waits until the daemon has ended.
func (hp *Hairpin) Gone() {
	hp.tb.Helper()
	hp.daemon.Wait()
}

// Pid returns the daemon's process id.
func (hp *Hairpin) Pid() int { return hp.daemon.Pid() }

// Log returns the daemon's output so far.
func (hp *Hairpin) Log() string { return hp.daemon.Stdout.String() + hp.daemon.Stderr.String() }

// Try runs a command of the CLI. It may be called from any goroutine.
func (hp *Hairpin) Try(args ...string) (Result, error) {
	return hp.host.Try(hp.args(args...)...)
}

// Steps is Try, but decide is asked about each step of the command.
func (hp *Hairpin) Steps(decide func(Step) Fate, args ...string) (Result, int, error) {
	return hp.host.Steps(decide, hp.args(args...)...)
}

// KillAfter is Try, but the command is killed after a time. It may be called from any goroutine.
func (hp *Hairpin) KillAfter(limit time.Duration, args ...string) (Result, error) {
	return hp.host.KillAfter(limit, hp.args(args...)...)
}

// Run runs a command of the CLI and returns its standard output. The command must succeed.
func (hp *Hairpin) Run(args ...string) string {
	hp.tb.Helper()
	return hp.host.Run(hp.args(args...)...)
}

// Spawn starts a command of the CLI that runs until it is ended.
func (hp *Hairpin) Spawn(args ...string) *Process {
	hp.tb.Helper()
	return hp.host.Start(hp.args(args...)...)
}

// RunInput is Run with a text on standard input.
func (hp *Hairpin) RunInput(stdin string, args ...string) string {
	hp.tb.Helper()
	return hp.host.RunInput(stdin, hp.args(args...)...)
}

// TryInput runs a command of the CLI with this standard input, whatever its exit code is.
func (hp *Hairpin) TryInput(stdin string, args ...string) Result {
	hp.tb.Helper()
	r, err := hp.host.TryInput(stdin, hp.args(args...)...)
	if err != nil {
		hp.tb.Fatal(err)
	}
	return r
}

// Fail runs a command of the CLI and returns its standard error. The exit code must be code.
func (hp *Hairpin) Fail(code int, args ...string) string {
	hp.tb.Helper()
	r, err := hp.Try(args...)
	if err != nil {
		hp.tb.Fatal(err)
	}
	if r.Code != code {
		hp.tb.Fatalf("hairpin %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	return r.Stderr
}

// Memory returns the daemon's resident memory and its highest value so far, in bytes.
func (hp *Hairpin) Memory() (now, most int) {
	hp.tb.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", hp.daemon.Pid()))
	hp.host.must("read the daemon's memory", err)
	for line := range strings.Lines(string(status)) {
		kilobytes := 0
		switch name, value, _ := strings.Cut(line, ":"); name {
		case "VmRSS":
			fmt.Sscan(value, &kilobytes)
			now = kilobytes << 10
		case "VmHWM":
			fmt.Sscan(value, &kilobytes)
			most = kilobytes << 10
		}
	}
	return now, most
}

// ForgetPeak makes Memory return the highest value from now on.
func (hp *Hairpin) ForgetPeak() {
	hp.tb.Helper()
	hp.host.must("forget the daemon's highest memory", os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", hp.daemon.Pid()), []byte("5"), 0))
}

func (hp *Hairpin) args(args ...string) []string {
	return slices.Concat(hp.under, []string{hp.binary, "-c", hp.File, "--bpffs", hp.Dir}, args)
}

func (hp *Hairpin) socket() string { return filepath.Join(filepath.Dir(hp.File), "notify") }

// await waits until the running daemon sends a state by sd_notify(3). It ignores the messages before index from, and returns the
// index after the message.
func (hp *Hairpin) await(from int, state string) int {
	hp.tb.Helper()
	next := 0
	Eventually(hp.tb, Patience, func() error {
		select {
		case <-hp.daemon.Done():
			hp.tb.Fatalf("daemon: ended before %s\n%s", state, hp.Log())
		default:
		}
		if next = hp.states.after(from, state); next == 0 {
			return fmt.Errorf("daemon: no %s\n%s", state, hp.Log())
		}
		return nil
	})
	return next
}

// states has the sd_notify(3) messages of the daemon.
type states struct {
	conn *net.UnixConn
	mu   sync.Mutex
	all  []string
}

func listenStates(socket string) (*states, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	s := &states{conn: conn}
	go s.read()
	return s, nil
}

// read reads every message at once: the socket's queue is short, and a full queue would block the daemon.
func (s *states) read() {
	message := make([]byte, 4096)
	for {
		n, err := s.conn.Read(message)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.all = append(s.all, string(message[:n]))
		s.mu.Unlock()
	}
}

func (s *states) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// after returns the index after the first message with a state, from index from on; 0: there is no such message.
func (s *states) after(from int, state string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, message := range s.all[from:] {
		if strings.Contains(message, state) {
			return from + i + 1
		}
	}
	return 0
}
