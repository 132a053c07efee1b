// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// Conntrack says whether the programs ask the kernel's connection tracking before a forward takes a packet, or why they do not.
type Conntrack uint32

// The values are pinned: a later version must not change them.
const (
	// ConntrackUnknown says that the programs are of a version that cannot ask.
	ConntrackUnknown Conntrack = iota
	ConntrackAsked
	// ConntrackAbsent says that the kernel has no connection tracking, or has not loaded the module.
	ConntrackAbsent
	// ConntrackNoTypes says that the kernel does not describe the functions that programs call (BTF).
	ConntrackNoTypes
	// ConntrackDenied says that the process that loaded the programs lacked a privilege.
	ConntrackDenied
	// ConntrackRefused says that the kernel takes the programs only if they do not ask.
	ConntrackRefused
	// ConntrackLate says that the programs could ask now, and could not when they were loaded.
	ConntrackLate
)

// String is "asked", or why it is not.
func (c Conntrack) String() string {
	switch c {
	case ConntrackAsked:
		return "asked"
	case ConntrackAbsent:
		return "the module nf_conntrack is not loaded"
	case ConntrackNoTypes:
		return "the kernel has no BTF of nf_conntrack"
	case ConntrackDenied:
		return "CAP_SYS_ADMIN is missing"
	case ConntrackRefused:
		return "the kernel refuses programs that ask"
	case ConntrackLate:
		return "nf_conntrack was loaded after the programs"
	}
	return "the programs are of another version"
}

// fit is what the programs were made to suit when they were loaded. It is pinned beside the programs, as an array of one entry, and
// swaps with them.
type fit struct {
	Object    uint64 // bpf.Fingerprint of the version that loaded them
	Conntrack Conntrack
	Tracks    uint32 // 1: connections were tracked in this network namespace
	First     uint16 // net.ipv4.ip_local_port_range
	Last      uint16
	_         uint32
}

const fitPin = "fit"

// The range of ports that Linux has by default.
const defaultEphemeralFirst, defaultEphemeralLast = 32768, 60999

// currentFit looks at the kernel, and at the network namespace of the calling thread.
func currentFit() fit {
	f := fit{Object: bpf.Fingerprint(), Conntrack: FindConntrack("/sys")}
	f.First, f.Last = EphemeralPorts()
	if tracksConnections() {
		f.Tracks = 1
	}
	if f.Conntrack == ConntrackAsked && !mayAskConntrack("/sys") {
		f.Conntrack = ConntrackDenied
	}
	return f
}

// FindConntrack says whether programs of a process with all privileges could ask: ConntrackAsked, ConntrackAbsent or
// ConntrackNoTypes. sys is where sysfs is mounted.
func FindConntrack(sys string) Conntrack {
	// nf_conntrack has parameters, so it has a directory here as a part of the kernel, too. Only a module has a state.
	switch {
	case !pathExists(filepath.Join(sys, "module/nf_conntrack")):
		return ConntrackAbsent
	case pathExists(filepath.Join(sys, "module/nf_conntrack/initstate")) && !pathExists(filepath.Join(sys, "kernel/btf/nf_conntrack")),
		!pathExists(filepath.Join(sys, "kernel/btf/vmlinux")):
		return ConntrackNoTypes
	}
	return ConntrackAsked
}

// mayAskConntrack reports whether this thread may look the functions up. The kernel gives descriptors of a module's types
// to CAP_SYS_ADMIN alone (BPF_BTF_GET_FD_BY_ID); its own types need none.
func mayAskConntrack(sys string) bool {
	return !pathExists(filepath.Join(sys, "kernel/btf/nf_conntrack")) || hasCapability(unix.CAP_SYS_ADMIN)
}

func pathExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// tracksConnections reports whether conntrack knows a connection in this network namespace. A namespace without a rule that needs
// conntrack tracks none, though the module is loaded.
func tracksConnections() bool {
	data, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	count, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return err == nil && count > 0
}

// EphemeralPorts are the ports that the kernel gives to sockets that ask for none.
func EphemeralPorts() (first, last uint16) {
	data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return defaultEphemeralFirst, defaultEphemeralLast
	}
	if n, err := fmt.Sscan(string(data), &first, &last); n != 2 || err != nil {
		return defaultEphemeralFirst, defaultEphemeralLast
	}
	return first, last
}

// conntrackFunctions are what the programs call of the kernel.
var conntrackFunctions = map[string]bool{"bpf_skb_ct_lookup": true, "bpf_xdp_ct_lookup": true, "bpf_ct_release": true}

// suit makes spec what f says. Without conntrack the calls go, too: the library would look for functions that the kernel does not
// have, and would leave calls that no kernel takes.
func (f fit) suit(spec *ebpf.CollectionSpec) error {
	for name, value := range map[string]any{
		bpf.HairpinVarConntrackAsked:  f.Conntrack == ConntrackAsked,
		bpf.HairpinVarConntrackTracks: f.Conntrack == ConntrackAsked && f.Tracks != 0,
		bpf.HairpinVarEphemeralFirst:  f.First,
		bpf.HairpinVarEphemeralLast:   f.Last,
	} {
		variable, there := spec.Variables[name]
		if !there {
			continue // an object of another version
		}
		if err := variable.Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	if f.Conntrack == ConntrackAsked {
		return nil
	}
	for _, program := range spec.Programs {
		for i := range program.Instructions {
			ins := &program.Instructions[i]
			if ins.IsKfuncCall() && conntrackFunctions[ins.Reference()] {
				*ins = asm.Mov.Imm(asm.R0, 0).WithSymbol(ins.Symbol()).WithSource(ins.Source())
			}
		}
	}
	return nil
}

// Suit makes the programs of spec suit this kernel and the network namespace of the calling thread, as Load does.
func Suit(spec *ebpf.CollectionSpec) error { return currentFit().suit(spec) }

// load loads the programs of spec over these maps. Programs that ask conntrack may be refused: by a kernel whose functions
// have changed, or for want of a just-in-time compiler. So are they if the module goes between the look and the load. Then
// programs are loaded that do not ask. After any other failure, such as a lack of memory, nothing is loaded: the next try may succeed.
func (f *fit) load(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) (map[string]*ebpf.Program, error) {
	if f.Conntrack == ConntrackAsked {
		asking := spec.Copy()
		err := f.suit(asking)
		if err == nil {
			err = fault("load programs that ask")
		}
		if err == nil {
			var programs map[string]*ebpf.Program
			// Without the verifier's log: nobody reads it, and the kernel would check the programs again to write it.
			options := ebpf.CollectionOptions{MapReplacements: maps, Programs: ebpf.ProgramOptions{LogDisabled: true}}
			if programs, err = newPrograms(asking, options); err == nil {
				return programs, nil
			}
		}
		if !refusesToAsk(err) {
			return nil, err
		}
		f.Conntrack = ConntrackRefused
	}
	if err := f.suit(spec); err != nil {
		return nil, err
	}
	return newPrograms(spec, ebpf.CollectionOptions{MapReplacements: maps})
}

// refusesToAsk reports whether programs were refused because they ask, so that they would be refused again. Such errors are:
//   - EACCES, EINVAL, E2BIG: the verifier's verdict;
//   - ENOTSUPP: programs cannot call functions of this kernel;
//   - ENOENT: a function is not there.
//
// The library has no type for its error that a function has other arguments.
func refusesToAsk(err error) bool {
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return false
	}
	if of, ok := err.(interface{ Unwrap() []error }); ok { // of several programs
		return !slices.ContainsFunc(of.Unwrap(), func(err error) bool { return !refusesToAsk(err) })
	}
	var number unix.Errno
	if errors.Is(err, ebpf.ErrNotSupported) {
		return true
	}
	if !errors.As(err, &number) {
		return err != nil && strings.Contains(err.Error(), "kfunc ")
	}
	const notSupported = 524 // ENOTSUPP of include/linux/errno.h
	return slices.Contains([]unix.Errno{unix.EACCES, unix.EINVAL, unix.E2BIG, unix.ENOENT, notSupported}, number)
}

// pin pins f beside the programs in dir.
func (f fit) pin(dir string) error {
	if err := fault("pin " + fitPin); err != nil {
		return err
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "hairpin_fit", Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: f}},
	})
	if err != nil {
		return fmt.Errorf("make map %s: %w", fitPin, err)
	}
	defer m.Close()
	if err := m.Pin(filepath.Join(dir, fitPin)); err != nil {
		return fmt.Errorf("pin map %s: %w", fitPin, err)
	}
	return nil
}

// fit reads what the pinned programs suit. Programs of a version that pinned nothing have the zero value.
func (p pins) fit() (f fit, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.programs(), fitPin), nil)
	if errors.Is(err, os.ErrNotExist) {
		return fit{}, nil
	}
	if err != nil {
		return fit{}, fmt.Errorf("open map %s: %w", fitPin, err)
	}
	defer m.Close()
	if err := m.Lookup(uint32(0), &f); err != nil {
		return fit{}, fmt.Errorf("read map %s: %w", fitPin, err)
	}
	return f, nil
}

// improves reports whether programs for now would do better than those that were loaded for f. Programs that ask are never given
// up, and those that were refused would be refused again. That nothing is tracked for a moment says nothing. The programs of another
// version are left alone: they may be newer.
func (f fit) improves(now fit) bool {
	if f.Object != now.Object {
		return false
	}
	asks := f.Conntrack == ConntrackAsked
	begins := now.Conntrack == ConntrackAsked && !asks && f.Conntrack != ConntrackRefused
	tracks := asks && now.Tracks > f.Tracks
	moved := now.First != f.First || now.Last != f.Last
	return begins || (tracks || moved) && (!asks || now.Conntrack == ConntrackAsked)
}

// Renew loads the programs anew if the kernel has changed in what they have to suit: if conntrack has appeared or has begun to
// track, or if the ephemeral ports are others. It reports whether it did. The caller holds the Lock. An open Datapath keeps the
// programs that it was opened with; it attaches the new ones.
//
// The module may appear while programs are being loaded:
//  1. a writer looks: there is no module;
//  2. the module appears;
//  3. the writer loads programs that do not ask, and pins with them that there was none;
//  4. the next Renew finds the module, and that the pinned programs were loaded without.
//
// It cannot go while programs ask: they hold it.
func Renew(opts Options) (bool, error) {
	have, err := pins(opts.dir()).fit()
	if err != nil || !have.improves(currentFit()) {
		return false, explain(err)
	}
	d, err := adopt(Options{Dir: opts.Dir, NoTCX: opts.NoTCX})
	if err != nil {
		return false, explain(err)
	}
	if err := d.Upgrade(); err != nil {
		return false, errors.Join(err, d.Close())
	}
	return true, d.Close()
}

// CompareUpgrade reports what Upgrade would do now. useful: the pinned programs are of another version, or no longer suit the kernel.
// loses: the pinned programs ask conntrack, and this process may not load programs that ask.
func (d *Datapath) CompareUpgrade() (useful, loses bool, err error) {
	have, err := pins(d.dir).fit()
	if err != nil {
		return false, false, explain(err)
	}
	now := currentFit()
	return have.Object != now.Object || have.improves(now), have.loses(now), nil
}

func (f fit) loses(now fit) bool {
	return f.Conntrack == ConntrackAsked && now.Conntrack == ConntrackDenied
}

// Conntrack says whether the pinned programs ask the kernel's connection tracking, or why they do not.
func (d *Datapath) Conntrack() (Conntrack, error) {
	f, err := pins(d.dir).fit()
	if err != nil {
		return ConntrackUnknown, explain(err)
	}
	if f.Conntrack != ConntrackAbsent {
		return f.Conntrack, nil
	}
	if now := FindConntrack("/sys"); now != ConntrackAsked {
		return now, nil
	}
	return ConntrackLate, nil
}

// Outdated says what has changed since the programs were loaded, so that Renew would load them anew; "" is nothing. Programs that
// could ask conntrack now are no part of it: Conntrack says ConntrackLate.
func (d *Datapath) Outdated() (string, error) {
	f, err := pins(d.dir).fit()
	if err != nil {
		return "", explain(err)
	}
	return f.outdated(currentFit()), nil
}

func (f fit) outdated(now fit) string {
	switch {
	case !f.improves(now) || f.Conntrack != ConntrackAsked && now.Conntrack == ConntrackAsked:
		return ""
	case now.Tracks > f.Tracks:
		return "the kernel tracks connections now, and tracked none when the programs were loaded"
	}
	return fmt.Sprintf("net.ipv4.ip_local_port_range is %d-%d now, and was %d-%d when the programs were loaded", now.First, now.Last, f.First, f.Last)
}
