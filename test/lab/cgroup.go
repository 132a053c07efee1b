// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
)

// MemoryCgroup is a memory cgroup of its own, of version 1 or 2. It limits the memory of the processes in it.
type MemoryCgroup struct {
	tb          testing.TB
	dir         string
	used, limit string // files
}

// NewMemoryCgroup makes a memory cgroup. It is removed when the test ends; no process may be in it then.
func NewMemoryCgroup(tb testing.TB) *MemoryCgroup {
	tb.Helper()
	NeedRoot(tb)
	c, err := newMemoryCgroup()
	if err != nil {
		tb.Fatalf("make memory cgroup: %v", err)
	}
	c.tb = tb
	tb.Cleanup(func() {
		// A process that has just ended is still in the cgroup for a moment.
		Eventually(tb, Patience, func() error { return os.Remove(c.dir) })
	})
	return c
}

func newMemoryCgroup() (*MemoryCgroup, error) {
	root, second, err := memoryRoot()
	if err != nil {
		return nil, err
	}
	c := &MemoryCgroup{used: "memory.usage_in_bytes", limit: "memory.limit_in_bytes"}
	if second {
		c.used, c.limit = "memory.current", "memory.max"
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
			return nil, err
		}
	}
	c.dir, err = os.MkdirTemp(root, "hairpin-lab-")
	return c, err
}

// memoryRoot returns the root of the hierarchy with the memory controller, and whether it is of version 2.
func memoryRoot() (root string, second bool, err error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return "", false, err
	}
	for _, m := range mounts {
		if m.FSType == "cgroup" && strings.Contains(","+m.VFSOptions+",", ",memory,") {
			return m.Mountpoint, false, nil
		}
	}
	for _, m := range mounts {
		controllers, err := os.ReadFile(filepath.Join(m.Mountpoint, "cgroup.controllers"))
		if m.FSType == "cgroup2" && err == nil && strings.Contains(string(controllers), "memory") {
			return m.Mountpoint, true, nil
		}
	}
	return "", false, errors.New("no cgroup hierarchy has the memory controller")
}

// Adopt moves a process into the cgroup. Memory that the process already has may count for its old cgroup.
func (c *MemoryCgroup) Adopt(pid int) {
	c.tb.Helper()
	c.write("cgroup.procs", strconv.Itoa(pid))
}

// Squeeze sets the limit to this number of bytes more than the processes use now.
func (c *MemoryCgroup) Squeeze(more int) {
	c.tb.Helper()
	c.Limit(c.Used() + more)
}

// Limit sets the limit in bytes.
func (c *MemoryCgroup) Limit(most int) {
	c.tb.Helper()
	c.write(c.limit, strconv.Itoa(most))
}

// Used returns how many bytes the processes use: their own memory, the page cache and the kernel's memory for them, such as BPF maps.
func (c *MemoryCgroup) Used() int {
	c.tb.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, c.used))
	if err != nil {
		c.tb.Fatalf("read memory of cgroup: %v", err)
	}
	used, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		c.tb.Fatalf("read memory of cgroup: %v", err)
	}
	return used
}

func (c *MemoryCgroup) write(file, text string) {
	c.tb.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, file), []byte(text), 0); err != nil {
		c.tb.Fatalf("%s of cgroup: %v", file, fmt.Errorf("write %q: %w", text, err))
	}
}
