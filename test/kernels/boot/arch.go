// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
)

// arch is an architecture of guests.
type arch struct {
	name string   // the same for Go and for Debian
	qemu []string // the program, and what differs from the other architectures
	// parameters of the kernel
	parameters string
	console    string
	ports      [lanes]string // of the lanes
	// serial returns qemu's arguments for a lane's serial port, whose output goes to a file.
	serial func(lane int, file string) []string
	// packages have the programs that init and the tests call; nil: they are copied from this machine, which has this architecture.
	packages []string
}

var amd64 = &arch{
	name: "amd64",
	qemu: []string{"qemu-system-x86_64", "-cpu", "max"},
	// The processor may have to wait for longer than the kernel's tests of its timers and clocks allow.
	parameters: "no_timer_check tsc=reliable",
	console:    "ttyS0",
	ports:      [lanes]string{"ttyS1", "ttyS2"},
	serial: func(_ int, file string) []string {
		return []string{"-serial", "file:" + file}
	},
}

var arm64 = &arch{
	name: "arm64",
	// Authentication of pointers as in real processors takes most of an emulated one's time.
	qemu:    []string{"qemu-system-aarch64", "-machine", "virt", "-cpu", "max,pauth-impdef=on"},
	console: "ttyAMA0",
	ports:   [lanes]string{"ttyS0", "ttyS1"},
	serial: func(lane int, file string) []string {
		port := fmt.Sprintf("lane%d", lane)
		return []string{"-chardev", "file,id=" + port + ",path=" + file, "-device", "pci-serial,chardev=" + port}
	},
	packages: []string{"busybox-static", "kmod", "iproute2"},
}

// key tells images apart that were made with another choice of packages.
func (a *arch) key() string { return a.name + strings.Join(a.packages, " ") }

// patience switches off the kernel's warnings about processors that are slow: here they say nothing about hairpin, and a warning fails a test.
const patience = "rcupdate.rcu_cpu_stall_suppress=1 nowatchdog workqueue.cpu_intensive_thresh_us=0"

// commandLine returns the kernel's command line. The kernel puts the names of the ports into the environment of the first process.
func (a *arch) commandLine() string {
	return fmt.Sprintf("loglevel=5 panic=-1 oops=panic %s %s console=%s first_lane=%s second_lane=%s", patience, a.parameters, a.console, a.ports[0], a.ports[1])
}
