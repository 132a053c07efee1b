// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"hairpin/test/lab"
)

// TestXDPTxOnAVeth: XDP_TX is used on a veth only while its other end has an XDP program. The other end may be in the same network
// namespace, or in another one.
func TestXDPTxOnAVeth(t *testing.T) {
	r := newRouter(t)
	far := lab.NewHost(t, "far")
	lab.Cable(r.Host, "dmz0", far, "dmz1")
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
	})
	lab.Must(err)
	defer pass.Close()
	for _, end := range []struct {
		near, other string
		at          *lab.Host
	}{{"lan0", "lan1", r.Host}, {"dmz0", "dmz1", far}} {
		why := func() (text string) {
			l := r.listed(end.near)
			r.do("look at "+end.near, func() error { text = l.NoXDPTx(); return nil })
			return text
		}
		if got := why(); !strings.Contains(got, "other end has no XDP program") {
			t.Errorf("%s, whose other end has no program: %q", end.near, got)
		}
		var program link.Link
		lab.Must(end.at.Do(func() (err error) {
			program, err = link.AttachXDP(link.XDPOptions{Program: pass, Interface: end.at.Index(end.other)})
			return err
		}))
		if got := why(); got != "" {
			t.Errorf("%s, whose other end has a program: %q", end.near, got)
		}
		lab.Must(program.Close())
		if got := why(); got == "" {
			t.Errorf("%s: the program of the other end has gone", end.near)
		}
	}
	if nic := (Link{Name: "eth0", Physical: true}); nic.NoXDPTx() != "" {
		t.Errorf("a NIC: %q", nic.NoXDPTx())
	}
}
