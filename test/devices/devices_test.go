// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
	"hairpin/test/record"
)

const devicesFile = "DEVICES.md"

// devicePairs are the kinds of a router's LAN and WAN: each kind as both, and kinds of either sort mixed.
var devicePairs = []struct{ lan, wan device }{
	{vethDevice, vethDevice},
	{bridgeDevice, bridgeDevice},
	{macvlanDevice, macvlanDevice},
	{tapDevice, tapDevice},
	{tunDevice, tunDevice},
	{vxlanDevice, vxlanDevice},
	{bridgeDevice, tunDevice},
	{bridgeDevice, macvlanDevice},
	{vethDevice, vxlanDevice},
	{tunDevice, vethDevice},
	{vxlanDevice, tapDevice},
	{macvlanDevice, bridgeDevice},
}

// devicePaths are the columns of the table.
var devicePaths = []string{"WAN", "hairpin", "local"}

// deviceRow is a line of the table.
type deviceRow struct {
	lan, wan, mode, hooks, family string
	cells                         []string // by devicePaths
}

// TestDevices serves both families by every path over devices of every kind, and keeps a table of it.
func TestDevices(t *testing.T) {
	var rows []deviceRow
	complete := true
	for _, pair := range devicePairs {
		for _, mode := range home.Modes {
			passed := t.Run(fmt.Sprintf("LAN %s, WAN %s, %s", pair.lan.name, pair.wan.name, mode), func(t *testing.T) {
				found := overDevices(t, pair.lan, pair.wan, mode)
				rows = append(rows, found...)
			})
			complete = complete && passed
		}
	}
	if len(rows) != len(devicePairs)*len(home.Modes)*2 || !complete {
		t.Log("not everything ran and passed: the table is not compared")
		return
	}
	report := deviceReport(rows)
	record.Keep(t, devicesFile, "make devices", report)
}

// overDevices returns a row for each family.
func overDevices(t *testing.T, lan, wan device, mode string) (rows []deviceRow) {
	n := newDeviceNetwork(t, lan, wan)
	if mode == "xdp" {
		n.CompleteFrames()
	}
	services := home.Offers(n.Server)
	hp := lab.NewHairpin(n.Router, strings.Replace(home.Config(mode, home.Forwards+home.Forwards6), `, "lan1"`, "", 1))
	hp.Start()
	hooks := hooksOf(t, hp)
	for _, s := range services {
		row := deviceRow{lan.name, wan.name, mode, hooks["lan0"] + " / " + hooks["wan0"], s.Family, nil}
		for i, from := range []*lab.Host{n.Internet, n.Client, n.Router} {
			want := s.Router
			if from == n.Internet {
				want = s.Internet
			}
			cell := record.Pass
			if err := s.Serves(from, want); err != nil {
				t.Errorf("%s, %s: %v", s.Family, devicePaths[i], err)
				cell = record.Fail
			}
			row.cells = append(row.cells, cell)
		}
		rows = append(rows, row)
	}
	return rows
}

// hooksOf tells what hairpin says of where its programs are, in words that are the same on every kernel.
func hooksOf(t *testing.T, hp *lab.Hairpin) map[string]string {
	t.Helper()
	var d struct {
		Status struct{ Interfaces []struct{ Name, Mode string } }
	}
	if err := json.Unmarshal([]byte(hp.Run("--json", "status")), &d); err != nil {
		t.Fatal(err)
	}
	hooks := make(map[string]string)
	for _, i := range d.Status.Interfaces {
		hooks[i.Name] = strings.NewReplacer("tcx", "tc", "clsact", "tc", "xdp-generic+", "generic xdp + ", "xdp+", "xdp + ").Replace(i.Mode)
	}
	return hooks
}

// deviceReport is the text of DEVICES.md.
func deviceReport(rows []deviceRow) string {
	var text strings.Builder
	text.WriteString(devicePreface)
	fmt.Fprintf(&text, "| LAN | WAN | mode | programs on LAN / WAN | family | %s |\n|---|---|---|---|---|---|---|---|\n", strings.Join(devicePaths, " | "))
	for _, r := range rows {
		fmt.Fprintf(&text, "| %s | %s | %s | %s | %s | %s |\n", r.lan, r.wan, r.mode, r.hooks, r.family, strings.Join(r.cells, " | "))
	}
	text.WriteString(deviceNotes)
	return text.String()
}

const devicePreface = `# Devices

Each row has a kind of device as LAN and a kind of device as WAN of a router; all kinds of the machine's kernel are there. The
last three columns are clients: a client on the Internet (WAN), a client in the server's LAN (hairpin), the router itself
(local). The client uses two forwards by the external address: it sends bytes over TCP and datagrams over UDP, and the server
sends them back. "pass": all came back unchanged, and the server saw the expected source address. ` + "`make devices`" + ` measures and writes
this file. ` + "`make test`" + ` measures too, and fails if a result differs from this file.

`

const deviceNotes = `
- bridge: the client and the server are at different ports. tun: the client and the server are behind another router.
- Mode tc: only the TC program. Mode xdp: the XDP program before TC; native on veth and tap, generic on other devices. Packets of
  tun have no Ethernet header, so only TC runs on tun, in both modes.
- The kernel of this table has no VLAN, bond, WireGuard, PPP and PPPoE; ` + "`make test-kernels`" + ` tests them. If a frame with a VLAN tag
  reaches the programs of the device below the VLAN, the frame passes untouched (TestCorpus, rows 3 and 4; TestCorpus6).
- For the programs a physical device is like veth: native XDP, then TC. ` + "`make test-kernels`" + ` tests virtio-net devices of a virtual machine:
  [KERNELS.md](../KERNELS.md).
`
