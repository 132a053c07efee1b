// SPDX-License-Identifier: Apache-2.0

// Package lab builds networks out of network namespaces for tests, runs programs and traffic
// in them, and looks at every packet that arrives.
//
// Nothing of a lab outlives the test process, however it ends: namespaces have no name and
// are held by file descriptors, mounts live in a private mount namespace, processes are
// killed with their parent. So any number of labs and of copies of the tests run side by side.
package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// isolated marks the environment of a process that is in its private mount namespace already.
const isolated = "HAIRPIN_LAB=isolated"

// Main runs the tests of a package in a mount namespace of their own and exits.
func Main(m *testing.M) {
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

// NeedRoot fails a test that lacks the privilege for namespaces and BPF: a test that
// did not run must not look like one that passed.
func NeedRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("needs root: sudo make test")
	}
}

// isolate moves the process into a new mount namespace. Namespaces belong to threads, and Go
// has several of them by now, so it starts itself anew from the thread that moved.
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

// Binary returns the path of hairpin, built from this tree the way it is shipped, once a process.
// Where there is no Go, as in test/kernels, HAIRPIN_BINARY names one that was built before.
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
		build := exec.Command("go", "build", "-o", built.path, "hairpin/cmd/hairpin")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		tb.Fatalf("build hairpin: %v", built.err)
	}
	return built.path
}
