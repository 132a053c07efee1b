// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// tagFrames gives every frame that a host sends by a device the tag of a VLAN, as a VLAN device there
// would: beside the frame, as far as the device can do that. The returned function ends it.
func tagFrames(t *testing.T, h *lab.Host, dev string, vlan int32) (end func()) {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "tag", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, 0x0081), // ETH_P_8021Q in network order
			asm.Mov.Imm(asm.R3, vlan),
			asm.FnSkbVlanPush.Call(),
			asm.Mov.Imm(asm.R0, -1), // TCX_NEXT
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatalf("load tagging program: %v", err)
	}
	defer program.Close()
	var l link.Link
	err = h.Do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: h.Index(dev), Program: program, Attach: ebpf.AttachTCXEgress})
		return err
	})
	if err != nil {
		t.Fatalf("attach tagging program: %v", err)
	}
	return func() { l.Close() }
}

// A frame of a VLAN is that VLAN's, also where its tag does not travel in it: it opens no connection, and is
// not taken for part of one, whatever mode was asked for.
func TestTagBesideAFrameIsNotOverlooked(t *testing.T) {
	for _, mode := range []string{"auto", "tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor("xdp"))
			server := n.Server.ServeUDP(":5353")
			n.Server.ServeTCP(":8080")
			hp := lab.NewHairpin(n.Router, strings.Replace(home.Config("tc", home.Forwards), `mode = "tc"`, fmt.Sprintf("mode = %q", mode), 1))
			hp.Start()

			// Now both hosts know the other's MAC address, and a connection is established.
			c, err := n.Internet.DialUDP(lab.External+":53", lab.InternetSource+":40000")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			tally := func(port uint16) lab.Tally {
				return server.Seen()[netip.AddrPortFrom(netip.MustParseAddr(lab.InternetSource), port)]
			}
			exchange := func(text string) {
				t.Helper()
				before := tally(40000).Datagrams
				if _, err := c.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
				lab.Eventually(t, lab.Patience, func() error {
					if got := tally(40000).Datagrams; got != before+1 {
						return fmt.Errorf("the server has %d datagrams, want %d", got, before+1)
					}
					return nil
				})
			}
			exchange("first")
			exchange("second")

			end := tagFrames(t, n.Internet, "eth0", 5)
			other, err := n.Internet.DialUDP(lab.External+":53", lab.InternetSource+":40001")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			for range 10 {
				if _, err := c.Write([]byte("tagged")); err != nil {
					t.Fatal(err)
				}
				if _, err := other.Write([]byte("tagged")); err != nil {
					t.Fatal(err)
				}
			}
			end()
			exchange("untagged again") // comes after all that was tagged
			if got := tally(40000).Datagrams; got != 3 {
				t.Errorf("the server has %d datagrams of the connection, want the 3 untagged ones", got)
			}
			if got := tally(40001).Datagrams; got != 0 {
				t.Errorf("the server has %d datagrams of a connection that only tagged frames opened", got)
			}
			if got := home.Show(t, hp, "conn", "show").Connections; len(got) != 1 {
				t.Errorf("connections %+v, want the one that was opened without tags", got)
			}

			var st struct {
				Status struct {
					Interfaces []struct{ Name, Mode, Reason string }
				}
			}
			if err := json.Unmarshal([]byte(hp.Run("--json", "status")), &st); err != nil {
				t.Fatal(err)
			}
			for _, i := range st.Status.Interfaces[:3] {
				if i.Mode != "tcx" || (mode == "xdp") != strings.Contains(i.Reason, "VLAN tags") {
					t.Errorf("%s: mode %q, reason %q", i.Name, i.Mode, i.Reason)
				}
			}
		})
	}
}
