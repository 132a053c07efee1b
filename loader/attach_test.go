// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestAttachModes(t *testing.T) {
	cases := []struct {
		mode  Mode
		noTCX bool
		xdp   string
	}{
		{ModeTC, false, ""},
		{ModeTC, true, ""},
		{ModeXDPUntagged, false, XDPNative},
		{ModeXDPUntagged, true, XDPNative},
		// A veth is a software device, so auto means TC alone.
		{ModeAuto, false, ""},
		{ModeAuto, true, ""},
	}
	for _, c := range cases {
		name := string(c.mode) + " tcx"
		if c.noTCX {
			name = string(c.mode) + " clsact"
		}
		t.Run(name, func(t *testing.T) {
			r := newRouter(t)
			before := r.hooks("wan0")
			d := r.load(Options{NoTCX: c.noTCX})
			a := r.attach(d, "wan0", c.mode)
			want := Attachment{Interface: "wan0", Index: r.Index("wan0"), XDP: c.xdp, TC: TCX}
			if c.noTCX {
				want.TC = TCClsact
			}
			if a != want {
				t.Errorf("attached %+v, want %+v", a, want)
			}
			if list := r.attachments(d); !reflect.DeepEqual(list, []Attachment{want}) {
				t.Errorf("attachments %+v, want %+v", list, want)
			}
			running := r.hooks("wan0")
			runs(t, d, running, want)

			// A second call changes nothing.
			r.attach(d, "wan0", c.mode)
			r.want("attached twice", "wan0", running)

			r.detach(d, "wan0")
			r.want("detached", "wan0", before)
			if list := r.attachments(d); len(list) > 0 {
				t.Errorf("attachments after detach: %+v", list)
			}
			r.detach(d, "wan0") // a second Detach is no error
		})
	}
}

func (r *router) detach(d *Datapath, dev string) {
	r.t.Helper()
	index := r.Index(dev)
	r.do("detach", func() error { return d.Detach(index) })
}

// runs compares the attachment with the programs that the kernel lists.
func runs(t *testing.T, d *Datapath, h hooks, want Attachment) {
	t.Helper()
	tc := mustProgramID(t, d.Objects().HairpinTc)
	if got := slices.Contains(h.TCX, tc); got != (want.TC == TCX) {
		t.Errorf("TCX programs %v, ours is %d", h.TCX, tc)
	}
	if got := len(h.Filters) > 0; got != (want.TC == TCClsact) {
		t.Errorf("filters %q", h.Filters)
	}
	xdp := uint32(0)
	if want.XDP != "" {
		xdp = uint32(mustProgramID(t, d.Objects().HairpinXdp))
	}
	if h.XDP != xdp || xdp != 0 && h.XDPMode != nl.XDP_ATTACHED_DRV {
		t.Errorf("XDP program %d in mode %d, want %d in the driver", h.XDP, h.XDPMode, xdp)
	}
}

// TestAttachChangesMode: Attach changes the mode, and the kind of TC hook, of an attached interface.
func TestAttachChangesMode(t *testing.T) {
	r := newRouter(t)
	before := r.hooks("wan0")
	tcx := r.load(Options{})
	clsact := r.load(Options{NoTCX: true})
	steps := []struct {
		d    *Datapath
		mode Mode
		want Attachment
	}{
		{tcx, ModeXDPUntagged, Attachment{XDP: XDPNative, TC: TCX}},
		{tcx, ModeTC, Attachment{TC: TCX}},
		{clsact, ModeXDPUntagged, Attachment{XDP: XDPNative, TC: TCClsact}},
		{tcx, ModeAuto, Attachment{TC: TCX}},
	}
	for _, s := range steps {
		s.want.Interface, s.want.Index = "wan0", r.Index("wan0")
		if a := r.attach(s.d, "wan0", s.mode); a != s.want {
			t.Errorf("attached %+v, want %+v", a, s.want)
		}
		runs(t, s.d, r.hooks("wan0"), s.want)
		if list := r.attachments(s.d); !reflect.DeepEqual(list, []Attachment{s.want}) {
			t.Errorf("attachments %+v, want %+v", list, s.want)
		}
	}
	r.remove()
	r.want("removed", "wan0", before)
}

func TestAttachRefusals(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{})
	cases := []struct {
		dev  string
		mode Mode
		is   error
		says string
	}{
		{"ppp9", ModeAuto, ErrNoInterface, "ppp9"},
		{"", ModeAuto, ErrNoInterface, "1 to 15"},
		{strings.Repeat("x", 16), ModeAuto, ErrNoInterface, "1 to 15"},
		{"wan0", "fast", nil, `"fast"`},
	}
	for _, c := range cases {
		_, err := r.tryAttach(d, c.dev, c.mode)
		wantError(t, err, nil, c.says)
		if c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%q: error %v, want %v", c.dev, err, c.is)
		}
	}
	if list := r.attachments(d); len(list) > 0 {
		t.Errorf("attached %+v", list)
	}
}

// TestLoopbackHasTCAlone: packets on lo have partial checksums, and XDP cannot redirect them to another
// device.
func TestLoopbackHasTCAlone(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{})
	r.attach(d, "lo", ModeXDPUntagged)
	for _, a := range r.attachments(d) {
		if a.Interface != "lo" || a.XDP != "" || a.TC == "" {
			t.Errorf("attached %+v", a)
		}
	}
}

// TestAttachToBarePackets: on a tun device TC works alone in every mode. A tap device has the same driver,
// but frames.
func TestAttachToBarePackets(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{})
	r.tuntap("tun0", netlink.TUNTAP_MODE_TUN)
	r.tuntap("tap0", netlink.TUNTAP_MODE_TAP)
	for _, mode := range []Mode{ModeAuto, ModeXDPUntagged, ModeTC} {
		if a := r.attach(d, "tun0", mode); a.TC != TCX || a.XDP != "" {
			t.Errorf("mode %s on tun: %+v, want TC alone", mode, a)
		}
		if a := r.attach(d, "tap0", mode); a.TC != TCX {
			t.Errorf("mode %s on tap: %+v", mode, a)
		}
	}
}

func (r *router) tuntap(name string, mode netlink.TuntapMode) {
	r.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	r.do("add "+name, func() error {
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: mode, Flags: netlink.TUNTAP_DEFAULTS})
	})
}

// probe returns the error of Probe for an interface.
func (r *router) probe(d *Datapath, dev string, mode Mode) error {
	return r.Do(func() error { return d.Probe(dev, Hooks{Mode: mode}) })
}

// TestForeignXDP: Attach refuses an interface with an XDP program of another owner and changes nothing;
// mode tc works.
func TestForeignXDP(t *testing.T) {
	r := newRouter(t)
	program := foreign(t, ebpf.XDP, 2) // XDP_PASS
	r.do("attach foreign program", func() error {
		l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: r.Index("wan0")})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	before := r.hooks("wan0")
	d := r.load(Options{})
	wantError(t, r.probe(d, "wan0", ModeXDPUntagged), nil, "wan0", "XDP program", "mode tc")
	if err := r.probe(d, "wan0", ModeTC); err != nil {
		t.Errorf("probe for mode tc: %v", err)
	}
	_, err := r.tryAttach(d, "wan0", ModeXDPUntagged)
	wantError(t, err, nil, "wan0", "XDP program", "mode tc")
	r.want("refused", "wan0", before)
	if pins := r.links(); len(pins) > 0 {
		t.Errorf("pinned %q", pins)
	}

	r.attach(d, "wan0", ModeTC)
	r.remove()
	r.want("removed", "wan0", before)
}

// links returns the names of the pinned links.
func (r *router) links() (names []string) {
	r.t.Helper()
	for _, path := range r.pinned() {
		if name, found := strings.CutPrefix(path, "datapath/links/"); found {
			names = append(names, name)
		}
	}
	return names
}

// TestForeignTCSurvives: Detach and Remove keep programs, filters and qdiscs of others.
func TestForeignTCSurvives(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		name := "tcx"
		if noTCX {
			name = "clsact"
		}
		t.Run(name, func(t *testing.T) {
			r := newRouter(t)
			theirs := foreignTC(t, r, "wan0")
			before := r.hooks("wan0")
			if len(before.TCX) != 1 || len(before.Filters) != 2 {
				t.Fatalf("foreign programs: %+v", before)
			}
			d := r.load(Options{NoTCX: noTCX})
			r.attach(d, "wan0", ModeTC)
			running := r.hooks("wan0")
			if !noTCX && (len(running.TCX) != 2 || running.TCX[1] != theirs) {
				t.Errorf("TCX programs %v, want ours in front of %d", running.TCX, theirs)
			}
			if noTCX && len(running.Filters) != 3 {
				t.Errorf("filters %q, want ours and 2", running.Filters)
			}
			r.detach(d, "wan0")
			r.want("detached", "wan0", before)
			r.attach(d, "wan0", ModeXDPUntagged)
			r.remove()
			r.want("removed", "wan0", before)
		})
	}
}

// foreignTC attaches TC programs of another owner: TCX programs, and filters in both directions.
func foreignTC(t *testing.T, r *router, dev string) ebpf.ProgramID {
	t.Helper()
	program := foreign(t, ebpf.SchedCLS, -1) // TCX_NEXT, TC_ACT_UNSPEC
	r.do("attach foreign programs", func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: r.Index(dev), Program: program, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		if err := netlink.QdiscAdd(clsact(r.Index(dev))); err != nil {
			return err
		}
		return errors.Join(
			netlink.FilterAdd(foreignFilter(r.Index(dev), netlink.HANDLE_MIN_INGRESS, 1, program)),
			netlink.FilterAdd(foreignFilter(r.Index(dev), netlink.HANDLE_MIN_EGRESS, 2, program)))
	})
	return mustProgramID(t, program)
}

func clsact(index int) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
}

func foreignFilter(index int, parent uint32, priority uint16, program *ebpf.Program) netlink.Filter {
	return &netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: priority},
		Fd:           program.FD(),
		Name:         "foreign",
		DirectAction: true,
	}
}

// TestSharedQdiscStays: hairpin made the qdisc, but another filter uses it now, so it stays.
func TestSharedQdiscStays(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{NoTCX: true})
	r.attach(d, "wan0", ModeTC)
	program := foreign(t, ebpf.SchedCLS, -1)
	r.do("add filter", func() error {
		return netlink.FilterAdd(foreignFilter(r.Index("wan0"), netlink.HANDLE_MIN_EGRESS, 1, program))
	})
	r.remove()
	after := r.hooks("wan0")
	if !slices.Contains(after.Qdiscs, "clsact") || len(after.Filters) != 1 || !strings.Contains(after.Filters[0], "foreign") {
		t.Errorf("left %+v, want the qdisc with the foreign filter", after)
	}
}

// TestTakenPriorityIsRefused: hairpin does not replace a filter of another owner that has its priority.
func TestTakenPriorityIsRefused(t *testing.T) {
	r := newRouter(t)
	program := foreign(t, ebpf.SchedCLS, -1)
	r.do("add filter", func() error {
		index := r.Index("wan0")
		return errors.Join(netlink.QdiscAdd(clsact(index)),
			netlink.FilterAdd(foreignFilter(index, netlink.HANDLE_MIN_INGRESS, 2, program)))
	})
	before := r.hooks("wan0")
	d := r.load(Options{NoTCX: true})
	wantError(t, r.probe(d, "wan0", ModeTC), nil, "wan0", "priority 2")
	_, err := r.tryAttach(d, "wan0", ModeTC)
	wantError(t, err, nil, "wan0", "priority 2")
	r.want("refused", "wan0", before)
	if pins := r.links(); len(pins) > 0 {
		t.Errorf("pinned %q", pins)
	}
}

// TestDeadLink: an interface that was deleted and made again is attached again, with a new index or the old
// index.
func TestDeadLink(t *testing.T) {
	for _, c := range []struct {
		name  string
		noTCX bool
		same  bool
	}{
		{"tcx", false, false}, {"tcx, same index", false, true},
		{"clsact", true, false}, {"clsact, same index", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRouter(t)
			d := r.load(Options{NoTCX: c.noTCX})
			first := r.attach(d, "wan0", ModeXDPUntagged)
			r.Unplug("wan0")
			if list := r.attachments(d); len(list) > 0 {
				t.Errorf("attachments of a deleted interface: %+v", list)
			}
			if _, err := r.tryAttach(d, "wan0", ModeXDPUntagged); !errors.Is(err, ErrNoInterface) {
				t.Errorf("error %v, want ErrNoInterface", err)
			}
			if err := r.upgrade(d); err != nil {
				t.Errorf("upgrade with a dead link: %v", err)
			}

			attrs := netlink.NewLinkAttrs()
			attrs.Name = "wan0"
			if c.same {
				attrs.Index = first.Index
			}
			r.do("make it again", func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wan1"})
			})
			before := r.hooks("wan0")
			if (r.Index("wan0") == first.Index) != c.same {
				t.Fatalf("index %d, was %d", r.Index("wan0"), first.Index)
			}
			if list := r.attachments(d); len(list) > 0 {
				t.Errorf("attachments of a new interface: %+v", list)
			}
			again := r.load(Options{NoTCX: c.noTCX})
			want := first
			want.Index = r.Index("wan0")
			if a := r.attach(again, "wan0", ModeXDPUntagged); a != want {
				t.Errorf("attached %+v, want %+v", a, want)
			}
			runs(t, again, r.hooks("wan0"), want)
			r.remove()
			r.want("removed", "wan0", before)
			nothingLeft(t, r.dir)
		})
	}
}

// TestDetachDeadLink: Detach works for a deleted interface, and the next Attach removes pins of dead links.
func TestDetachDeadLink(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{})
	wan := r.attach(d, "wan0", ModeXDPUntagged)
	lan := r.attach(d, "lan0", ModeXDPUntagged)
	r.Unplug("wan0")
	r.do("detach", func() error { return d.Detach(wan.Index) })
	if pins := r.links(); len(pins) != 2 {
		t.Errorf("pinned %q, want two of lan0", pins)
	}
	r.Unplug("lan0")
	r.do("make wan0", func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "wan0"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wan1"})
	})
	if r.Index("wan0") == lan.Index {
		t.Fatal("the index was used again")
	}
	r.attach(d, "wan0", ModeTC)
	if pins := r.links(); len(pins) != 1 {
		t.Errorf("pinned %q, want that of wan0", pins)
	}
}

// TestAttachFaults: after a failed Attach the interface is as it was, whether hairpin was attached before
// or not.
func TestAttachFaults(t *testing.T) {
	for name, first := range map[string]struct{ attached, noTCX, toClsact bool }{
		"bare tcx":      {},
		"bare clsact":   {noTCX: true, toClsact: true},
		"tcx to clsact": {attached: true, toClsact: true},
		"clsact to tcx": {attached: true, noTCX: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRouter(t)
			bare := r.hooks("wan0")
			if first.attached {
				r.attach(r.load(Options{NoTCX: first.noTCX}), "wan0", ModeTC)
			}
			d := r.load(Options{NoTCX: first.toClsact})
			before, links := r.hooks("wan0"), r.links()
			eachFault(t,
				func() error { _, err := r.tryAttach(d, "wan0", ModeXDPUntagged); return err },
				func(step string) {
					r.want(step+" failed", "wan0", before)
					if now := r.links(); !reflect.DeepEqual(now, links) {
						t.Errorf("%s failed: pinned %q, were %q", step, now, links)
					}
				})
			r.remove()
			r.want("removed", "wan0", bare)
		})
	}
}

// TestStaleDatapath: a Datapath whose pins are gone, or belong to a new datapath, changes nothing.
func TestStaleDatapath(t *testing.T) {
	r := newRouter(t)
	before := r.hooks("wan0")
	d := r.load(Options{})
	stale := func(when string) {
		t.Helper()
		if _, err := r.tryAttach(d, "wan0", ModeTC); !errors.Is(err, ErrNotLoaded) {
			t.Errorf("%s: attach: error %v, want ErrNotLoaded", when, err)
		}
		if err := r.Do(func() error { return d.Detach(r.Index("wan0")) }); !errors.Is(err, ErrNotLoaded) {
			t.Errorf("%s: detach: error %v, want ErrNotLoaded", when, err)
		}
		if err := r.upgrade(d); !errors.Is(err, ErrNotLoaded) {
			t.Errorf("%s: upgrade: error %v, want ErrNotLoaded", when, err)
		}
		r.want(when, "wan0", before)
	}
	r.remove()
	stale("removed")
	r.load(Options{})
	stale("made anew")
}
