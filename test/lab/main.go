// SPDX-License-Identifier: Apache-2.0

// Package lab builds networks of network namespaces for tests, runs programs and traffic in them, and checks the packets that
// arrive.
//
// When the test process ends, its labs disappear, even if it is killed. File descriptors hold the namespaces, which have no names.
// Mounts are in a private mount namespace. Processes are killed with their parent. So any number of labs and of test runs can
// run at the same time.
package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/build"
)

// isolated is in the environment of a process that already runs in its private mount namespace.
const isolated = "HAIRPIN_LAB=isolated"

// Main runs the tests of a package in a private mount namespace, and exits. The tests are usually a *testing.M.
func Main(m interface{ Run() int }) {
	if path := os.Getenv(stepsSocket); path != "" {
		fmt.Fprintln(os.Stderr, "run a program by steps:", stepped(path))
		os.Exit(1)
	}
	if addresses := os.Getenv(apartAddresses); addresses != "" {
		fmt.Fprintln(os.Stderr, "serve in a process of its own:", serveApart(strings.Fields(addresses)))
		os.Exit(1)
	}
	if err := isolate(); err != nil {
		fmt.Fprintln(os.Stderr, "isolate tests:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(built.dir); err != nil {
		fmt.Fprintln(os.Stderr, "remove built binary:", err)
	}
	os.Exit(code)
}

// NeedRoot fails the test if it does not run as root, which namespaces and BPF need. It does not skip the test: a skipped test
// would look like a test that passed.
func NeedRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("needs root: sudo make test")
	}
}

// isolate moves the process into a new mount namespace. A namespace belongs to a thread, and Go already has several threads. So
// one thread moves and then executes the program again.
func isolate() error {
	if os.Geteuid() != 0 || os.Getenv("HAIRPIN_LAB") != "" {
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), isolated)); err != nil {
		return fmt.Errorf("start again: %w", err)
	}
	return nil
}

var built struct {
	sync.Once
	dir, path string
	err       error
}

// Binary returns the path of the hairpin binary. It builds the binary from this tree as make build does, once in a process. If
// HAIRPIN_BINARY is set, it returns this path instead: test/kernels has no Go in the guest.
func Binary(tb testing.TB) string {
	tb.Helper()
	built.Do(func() {
		if built.path = os.Getenv("HAIRPIN_BINARY"); built.path != "" {
			return
		}
		built.dir, built.err = os.MkdirTemp("", "hairpin-test-")
		if built.err != nil {
			return
		}
		built.path = filepath.Join(built.dir, "hairpin")
		built.err = build.Hairpin(built.path)
	})
	if built.err != nil {
		tb.Fatalf("build hairpin: %v", built.err)
	}
	return built.path
}
