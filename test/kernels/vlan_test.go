// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"

	"hairpin/test/lab"
)

// When a VLAN device appears on top of a veth, the daemon detaches XDP there, even with mode xdp-untagged. Tagged packets belong to the
// VLAN device, and do not reach a forward of the veth.
func TestVLANOnTop(t *testing.T) {
	kind{name: "VLAN", link: "vlan"}.need(t)
	n := lab.NewNetwork(t)
	n.SetOffloads(lab.AllOffGRO)
	server := n.Server.ServeUDP(lab.Server + ":8080")
	hp := lab.NewHairpin(n.Router, fmt.Sprintf(deviceConfig, lab.DeviceMode("xdp")))
	hp.Start()
	state := func() (mode, reason string) {
		var document struct {
			Status struct {
				Interfaces []struct{ Name, Mode, Reason string }
			}
		}
		if err := json.Unmarshal([]byte(hp.Run("--json", "status")), &document); err != nil {
			t.Fatal(err)
		}
		wan := document.Status.Interfaces[0]
		return wan.Mode, wan.Reason
	}
	if mode, reason := state(); !strings.HasPrefix(mode, "xdp+") || reason != "" {
		t.Fatalf("wan0: mode %q, reason %q, want XDP", mode, reason)
	}
	total := func() (datagrams int) {
		for _, tally := range server.Seen() {
			datagrams += int(tally.Datagrams)
		}
		return datagrams
	}
	exchange := func(c *net.UDPConn, text string) {
		t.Helper()
		before := total()
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, lab.Patience, func() error {
			if total() == before {
				return fmt.Errorf("the server did not get the datagram %s", text)
			}
			return nil
		})
	}
	untagged, err := n.Internet.DialUDP(lab.External+":80", lab.InternetSource+":40000")
	if err != nil {
		t.Fatal(err)
	}
	defer untagged.Close()
	exchange(untagged, "without a tag")

	n.Router.Run("ip", "link", "add", "wan0.5", "link", "wan0", "type", "vlan", "id", "5")
	lab.Eventually(t, lab.Patience, func() error {
		mode, reason := state()
		if strings.Contains(mode, "xdp") || !strings.Contains(reason, "wan0.5") {
			return fmt.Errorf("wan0: mode %q, reason %q, want TC alone and the VLAN device named", mode, reason)
		}
		return nil
	})
	n.Router.Up("wan0.5")

	n.Internet.Run("ip", "link", "add", "eth0.5", "link", "eth0", "type", "vlan", "id", "5")
	n.Internet.Up("eth0.5")
	n.Internet.Route("eth0.5", lab.External+"/32", "", lab.InternetSource)
	n.Internet.Run("ip", "neigh", "add", lab.External, "lladdr", n.Router.HardwareAddr("wan0").String(), "dev", "eth0.5")
	arrived := n.Router.Watch("wan0.5", nil)
	before := total()
	tagged, err := n.Internet.DialUDP(lab.External+":80", lab.InternetSource+":40001")
	if err != nil {
		t.Fatal(err)
	}
	defer tagged.Close()
	if _, err := tagged.Write([]byte("with a tag")); err != nil {
		t.Fatal(err)
	}
	if _, err := arrived.Next(lab.Patience); err != nil {
		t.Errorf("the VLAN device: %v", err)
	}
	if got := total(); got != before {
		t.Errorf("the server got %d datagrams by a VLAN that forwards nothing", got-before)
	}
	n.Internet.Run("ip", "link", "del", "eth0.5")
	exchange(untagged, "without a tag again")
}

// TestDoctorSeesVLANOnTop: without the daemon, XDP stays on a veth when a VLAN device appears there. Doctor says so, until the command
// that it prints has run.
func TestDoctorSeesVLANOnTop(t *testing.T) {
	kind{name: "VLAN", link: "vlan"}.need(t)
	n := lab.NewNetwork(t)
	n.SetOffloads(lab.AllOffGRO)
	hp := lab.NewHairpin(n.Router, fmt.Sprintf(deviceConfig, lab.DeviceMode("xdp")))
	hp.Run("attach")
	told := func() bool {
		t.Helper()
		r, err := hp.Try("-j", "doctor")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(r.Stdout, `"level":"problem","check":"interfaces","code":"vlan-tags-unseen","interface":"wan0"`) &&
			strings.Contains(r.Stdout, `"cure":"hairpin attach"`)
	}
	if told() {
		t.Error("told before there is a VLAN")
	}
	n.Router.Run("ip", "link", "add", "link", "wan0", "name", "wan0.7", "type", "vlan", "id", "7")
	if !told() {
		t.Errorf("not told:\n%s", hp.Run("status"))
	}
	hp.Run("attach")
	if told() {
		t.Error("told after the attach")
	}
}
