// SPDX-License-Identifier: Apache-2.0

package network

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// dropTagged has a host drop every frame with a tag that arrives at a device.
func dropTagged(t *testing.T, h *lab.Host, dev string) {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "drop_tagged", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R1, asm.R1, 20, asm.Word), // vlan_present of struct __sk_buff
			asm.Mov.Imm(asm.R0, 2),                    // TCX_DROP
			asm.JNE.Imm(asm.R1, 0, "exit"),
			asm.Mov.Imm(asm.R0, -1), // TCX_NEXT
			asm.Return().WithSymbol("exit"),
		},
	})
	if err != nil {
		t.Fatalf("load program that drops tagged frames: %v", err)
	}
	defer program.Close()
	err = h.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: h.Index(dev), Program: program, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatalf("attach program that drops tagged frames: %v", err)
	}
}

// TestPriorityTags: hosts that begin to send priority tags (VLAN 0, any priority) keep their connections and open new
// ones, and no tag leaves the router.
func TestPriorityTags(t *testing.T) {
	const voice = 5 << 13 // priority 5
	for _, mode := range []string{"tc", "auto", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			for _, address := range []string{"", "[::]"} {
				n.Server.ServeTCP(address + ":8080")
				n.Server.ServeUDP(address + ":5353")
			}
			home.Start(t, n, mode, home.Forwards+home.Forwards6)
			hosts := []*lab.Host{n.Internet, n.Client, n.Guest}
			open := standings(t, hosts...)
			for _, h := range append(hosts, n.Server) {
				dropTagged(t, h, "eth0")
			}
			for _, h := range append(hosts, n.Server) {
				tagFrames(t, h, "eth0", voice)
			}
			stand(t, open, lab.Patience)
			standings(t, hosts...)
		})
	}
}
