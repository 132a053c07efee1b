// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

func TestFindConntrack(t *testing.T) {
	const part, module = "module/nf_conntrack/parameters", "module/nf_conntrack/initstate"
	for _, test := range []struct {
		name  string
		files []string
		want  Conntrack
	}{
		{"no conntrack", []string{"kernel/btf/vmlinux"}, ConntrackAbsent},
		{"a part of the kernel", []string{part, "kernel/btf/vmlinux"}, ConntrackAsked},
		{"a part of a kernel without BTF", []string{part}, ConntrackNoTypes},
		{"a module", []string{part, module, "kernel/btf/vmlinux", "kernel/btf/nf_conntrack"}, ConntrackAsked},
		{"a module without BTF", []string{part, module, "kernel/btf/vmlinux"}, ConntrackNoTypes},
	} {
		sys := t.TempDir()
		for _, file := range test.files {
			lab.Must(os.MkdirAll(filepath.Dir(filepath.Join(sys, file)), 0o755))
			lab.Must(os.WriteFile(filepath.Join(sys, file), nil, 0o644))
		}
		if got := FindConntrack(sys); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// Programs are loaded anew only for the better, and never those of another version.
func TestFitImproves(t *testing.T) {
	fits := func(conntrack Conntrack, tracks uint32) fit {
		return fit{Object: 1, Conntrack: conntrack, Tracks: tracks, First: 32768, Last: 60999}
	}
	moved, other := fits(ConntrackAsked, 1), fits(ConntrackAbsent, 0)
	moved.First, other.Object = 20000, 2
	unasked := moved
	unasked.Conntrack = ConntrackAbsent
	for _, test := range []struct {
		name      string
		have, now fit
		want      bool
		outdated  bool // and status tells of it apart from conntrack
	}{
		{"nothing changes", fits(ConntrackAsked, 1), fits(ConntrackAsked, 1), false, false},
		{"the module appears", fits(ConntrackAbsent, 0), fits(ConntrackAsked, 0), true, false},
		{"the privilege appears", fits(ConntrackDenied, 0), fits(ConntrackAsked, 1), true, false},
		{"the privilege goes", fits(ConntrackAsked, 0), fits(ConntrackDenied, 1), false, false},
		{"the kernel has refused", fits(ConntrackRefused, 0), fits(ConntrackAsked, 1), false, false},
		{"tracking begins", fits(ConntrackAsked, 0), fits(ConntrackAsked, 1), true, true},
		{"nothing is tracked for a moment", fits(ConntrackAsked, 1), fits(ConntrackAsked, 0), false, false},
		{"other ports", fits(ConntrackAsked, 1), moved, true, true},
		{"other ports, and the privilege has gone", fits(ConntrackAsked, 1), unasked, false, false},
		{"other ports without conntrack", fits(ConntrackAbsent, 0), unasked, true, true},
		{"of another version", other, fits(ConntrackAsked, 0), false, false},
		{"of a version that pinned nothing", fit{}, fits(ConntrackAsked, 0), false, false},
	} {
		if got := test.have.improves(test.now); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
		if got := test.have.outdated(test.now); got != "" != test.outdated {
			t.Errorf("%s: told %q", test.name, got)
		}
	}
}

// Programs lose conntrack for want of a privilege alone. That conntrack is not there says nothing: programs that ask hold it.
func TestFitLoses(t *testing.T) {
	for have := ConntrackUnknown; have <= ConntrackLate; have++ {
		for now := ConntrackUnknown; now <= ConntrackLate; now++ {
			want := have == ConntrackAsked && now == ConntrackDenied
			if got := (fit{Object: 1, Conntrack: have}).loses(fit{Object: 2, Conntrack: now}); got != want {
				t.Errorf("%v, then %v: %v, want %v", have, now, got, want)
			}
		}
	}
}

// Only what would be refused again counts as refused.
func TestRefusesToAsk(t *testing.T) {
	verdict := func(errno unix.Errno) error { return fmt.Errorf("load program: %w", &ebpf.VerifierError{Cause: errno}) }
	for _, test := range []struct {
		err  error
		want bool
	}{
		{verdict(unix.EACCES), true},
		{verdict(unix.EINVAL), true},
		{verdict(unix.E2BIG), true},
		{verdict(unix.ENOENT), true},
		{verdict(524), true},
		{fmt.Errorf("kfunc: %w", ebpf.ErrNotSupported), true},
		{errors.New(`fixing up kfuncs: kfunc "bpf_ct_release": types differ`), true},
		{errors.New("anything else"), false},
		{errors.Join(verdict(unix.EACCES), verdict(unix.EINVAL)), true},
		{errors.Join(verdict(unix.EACCES), verdict(unix.ENOMEM)), false},
		{verdict(unix.ENOMEM), false},
		{verdict(unix.EINTR), false},
		{verdict(unix.EPERM), false},
		{verdict(unix.EAGAIN), false},
		{fmt.Errorf("map: %w", ebpf.ErrMapIncompatible), false},
	} {
		if got := refusesToAsk(test.err); got != test.want {
			t.Errorf("%v: %v, want %v", test.err, got, test.want)
		}
	}
}

// A lack of memory is an error, and no reason never to ask again.
func TestLoadWithoutMemory(t *testing.T) {
	lab.NeedRoot(t)
	object, err := os.ReadFile("../bpf/hairpin_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	Size(spec, connections)
	setFault(t, func(step string) error {
		if step == "load programs that ask" {
			return fmt.Errorf("%s: %w", step, unix.ENOMEM)
		}
		return nil
	})
	suited := fit{Conntrack: ConntrackAsked}
	coll, _, err := newCollection(spec, &suited)
	if err == nil {
		coll.Close()
	}
	if !errors.Is(err, unix.ENOMEM) || suited.Conntrack != ConntrackAsked {
		t.Errorf("%v, %v; want a lack of memory, and programs that ask", err, suited.Conntrack)
	}
}

// Programs load without conntrack: where the kernel has none, and where it does not have all that they call.
func TestLoadWithoutConntrack(t *testing.T) {
	lab.NeedRoot(t)
	object, err := os.ReadFile("../bpf/hairpin_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.ReplaceAll(object, []byte("bpf_ct_release"), []byte("bpf_ct_changed"))
	// A function of the kernel with a name of the same length.
	const stranger = "bpf_rcu_read_lock"
	other := bytes.ReplaceAll(object, []byte("bpf_skb_ct_lookup"), []byte(stranger))
	conntrackFunctions[stranger] = true
	defer delete(conntrackFunctions, stranger)
	for _, test := range []struct {
		name       string
		object     []byte
		find, want Conntrack
	}{
		{"not there", object, ConntrackAbsent, ConntrackAbsent},
		{"a function is missing", changed, ConntrackAsked, ConntrackRefused},
		{"a function has other arguments", other, ConntrackAsked, ConntrackRefused},
	} {
		spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(test.object))
		if err != nil {
			t.Fatal(err)
		}
		Size(spec, connections)
		suited := fit{Conntrack: test.find}
		coll, _, err := newCollection(spec, &suited)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if suited.Conntrack != test.want || len(coll.Programs) != len(spec.Programs) {
			t.Errorf("%s: %v with %d programs, want %v", test.name, suited.Conntrack, len(coll.Programs), test.want)
		}
		coll.Close()
	}
}

// TestRenew: programs are replaced where the ephemeral ports change, once, and not by a reader of what they suit.
func TestRenew(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{})
	before := r.attach(d, "wan0", ModeTC)
	if before.TC == "" {
		t.Fatal("not attached")
	}
	program := r.hooks("wan0").TCX
	renew := func() (renewed bool) {
		r.do("renew", func() (err error) {
			renewed, err = Renew(Options{Dir: r.dir})
			return err
		})
		return renewed
	}
	if renew() {
		t.Error("loaded anew without a reason")
	}
	outdated := func(want string) {
		t.Helper()
		r.do("outdated", func() error {
			got, err := d.Outdated()
			if got != want {
				t.Errorf("outdated: %q, want %q", got, want)
			}
			return err
		})
	}
	outdated("")
	r.Sysctl("net/ipv4/ip_local_port_range", "20000 20999")
	outdated("net.ipv4.ip_local_port_range is 20000-20999 now, and was 32768-60999 when the programs were loaded")
	if !renew() {
		t.Error("not loaded anew for other ephemeral ports")
	}
	outdated("")
	if renew() {
		t.Error("loaded anew twice")
	}
	if now := r.hooks("wan0").TCX; fmt.Sprint(now) == fmt.Sprint(program) {
		t.Error("wan0 has the old program")
	}
	f, err := pins(r.dir).fit()
	if err != nil || f.First != 20000 || f.Last != 20999 {
		t.Errorf("pinned %+v, %v", f, err)
	}
	// A failure leaves the old programs, and what they suit.
	r.Sysctl("net/ipv4/ip_local_port_range", "30000 30999")
	setFault(t, func(step string) error {
		if step == "pin "+fitPin {
			return errInjected
		}
		return nil
	})
	r.do("renew", func() error {
		_, err := Renew(Options{Dir: r.dir})
		wantError(t, err, errInjected)
		return nil
	})
	setFault(t, func(string) error { return nil })
	if f, err := pins(r.dir).fit(); err != nil || f.First != 20000 {
		t.Errorf("after a failure %+v, %v", f, err)
	}
	if !renew() {
		t.Error("not loaded anew after a failure")
	}
}
