// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"hairpin/maps/slots"
)

// kernelFloor is LINUX_VERSION_CODE of 6.1, the oldest kernel with every feature that the datapath needs.
const kernelFloor = 6<<16 | 1<<8

// CheckKernel fails if the kernel is too old for the datapath. The error wraps ErrKernel.
func CheckKernel() error {
	code, err := features.LinuxVersionCode()
	if err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	return checkVersion(code)
}

func checkVersion(code uint32) error {
	if code >= kernelFloor {
		return nil
	}
	return fmt.Errorf("%w: this is Linux %d.%d; hairpin needs %d.%d or later",
		ErrKernel, code>>16, code>>8&0xff, kernelFloor>>16, kernelFloor>>8&0xff)
}

// needed lists the capabilities for everything except mounting. orSysAdmin: the kernel also accepts
// CAP_SYS_ADMIN.
var needed = []struct {
	name       string
	number     int
	orSysAdmin bool
}{
	{"CAP_BPF", unix.CAP_BPF, true},
	{"CAP_PERFMON", unix.CAP_PERFMON, true},
	{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, false},
}

// Explain wraps an error that comes from a missing privilege in ErrPermission, and names the privilege.
func Explain(err error) error { return explain(err) }

// explain wraps an error that comes from a missing privilege in ErrPermission, and names the privilege.
func explain(err error) error {
	if err == nil || errors.Is(err, ErrPermission) {
		return err
	}
	if errors.Is(err, slots.ErrUnpinned) { // its text says what to do
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	missing := MissingCapabilities()
	// The library asks the kernel again after a refusal, is refused again, and takes the call for one that the kernel does not have.
	hidden := errors.Is(err, ebpf.ErrNotSupported) && len(missing) > 0
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !hidden {
		return err
	}
	switch {
	case len(missing) > 0:
		return fmt.Errorf("%w: %w: needs %s; run as root", ErrPermission, err, strings.Join(missing, ", "))
	case os.Geteuid() != 0:
		return fmt.Errorf("%w: %w; run as root", ErrPermission, err)
	case isVerifierError(err):
		// The verifier returns EACCES for a program that it rejects; no privilege is missing.
		return err
	case !hasCapability(unix.CAP_SYS_ADMIN):
		return fmt.Errorf("%w: %w: needs CAP_SYS_ADMIN, or a security module, lockdown or container refuses it", ErrPermission, err)
	}
	return fmt.Errorf("%w: %w: a security module, lockdown or container refuses it", ErrPermission, err)
}

func isVerifierError(err error) bool {
	var verifier *ebpf.VerifierError
	return errors.As(err, &verifier)
}

// MissingCapabilities returns the names of the capabilities that the datapath needs and the calling thread lacks.
func MissingCapabilities() []string {
	admin := hasCapability(unix.CAP_SYS_ADMIN)
	var missing []string
	for _, c := range needed {
		if !hasCapability(c.number) && !(c.orSysAdmin && admin) {
			missing = append(missing, c.name)
		}
	}
	return missing
}

// hasCapability reports whether this thread has a capability in effect. One capget(2) call is enough;
// libcap's cap package is for changing capabilities, and brings a library to run system calls on every
// thread.
func hasCapability(number int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[number/32].Effective&(1<<(number%32)) != 0
}
