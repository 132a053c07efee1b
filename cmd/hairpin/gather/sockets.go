// SPDX-License-Identifier: Apache-2.0

package gather

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/prometheus/procfs"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/maps/rule"
)

// The states of sockets in /proc/net: enum of net/tcp_states.h. A UDP socket that is not connected is in the state close.
const (
	stateClose  = 7
	stateListen = 10
)

// Sockets lists the sockets of this network namespace that take packets of anybody: TCP sockets that listen, and UDP sockets that are
// not connected. It needs no privilege.
func Sockets() ([]diagnose.Socket, error) {
	proc, err := procfs.NewFS("/proc/thread-self")
	if err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	var list []diagnose.Socket
	add := func(protocol rule.Protocol, address net.IP, port, inode uint64) {
		if addr, valid := netip.AddrFromSlice(address); valid {
			list = append(list, diagnose.Socket{Protocol: protocol, Address: addr, Port: uint16(port), Inode: inode})
		}
	}
	//lint:ignore SA1019 sock_diag needs the modules tcp_diag and udp_diag, which a look must not load and a router may lack
	for _, read := range []func() (procfs.NetTCP, error){proc.NetTCP, proc.NetTCP6} {
		sockets, err := read()
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6 has no tcp6
			return nil, fmt.Errorf("list TCP sockets: %w", err)
		}
		for _, s := range sockets {
			if s.St == stateListen {
				add(rule.TCP, s.LocalAddr, s.LocalPort, s.Inode)
			}
		}
	}
	for _, read := range []func() (procfs.NetUDP, error){proc.NetUDP, proc.NetUDP6} {
		sockets, err := read()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list UDP sockets: %w", err)
		}
		for _, s := range sockets {
			if s.St == stateClose {
				add(rule.UDP, s.LocalAddr, s.LocalPort, s.Inode)
			}
		}
	}
	return list, nil
}

// Owners returns a function that returns the program of a socket, such as "sshd (pid 812)", or "" if this user cannot see it. The
// first call looks at the descriptors of all processes.
func Owners() func(diagnose.Socket) string {
	programs := sync.OnceValue(listOwners)
	return func(s diagnose.Socket) string { return programs()[s.Inode] }
}

// listOwners returns a program for each socket, by inode.
func listOwners() map[uint64]string {
	found := map[uint64]string{}
	descriptors, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return found
	}
	names := map[string]string{} // programs by the directory of the process
	for _, path := range descriptors {
		target, err := os.Readlink(path)
		if err != nil {
			continue // the process may have ended
		}
		var inode uint64
		if n, err := fmt.Sscanf(target, "socket:[%d]", &inode); n != 1 || err != nil {
			continue
		}
		process := filepath.Dir(filepath.Dir(path))
		name, known := names[process]
		if !known {
			command, err := os.ReadFile(filepath.Join(process, "comm"))
			if err != nil {
				continue
			}
			name = fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(command)), filepath.Base(process))
			names[process] = name
		}
		found[inode] = name
	}
	return found
}
