// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"hairpin/test/lab"
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
		for _, mode := range hookModes {
			passed := t.Run(fmt.Sprintf("LAN %s, WAN %s, %s", pair.lan.name, pair.wan.name, mode), func(t *testing.T) {
				found := overDevices(t, pair.lan, pair.wan, mode)
				rows = append(rows, found...)
			})
			complete = complete && passed
		}
	}
	if len(rows) != len(devicePairs)*len(hookModes)*2 || !complete {
		t.Log("not everything ran and passed: the table is not compared")
		return
	}
	report := deviceReport(rows)
	if *rewrite {
		if err := os.WriteFile(devicesFile, []byte(report), 0o644); err != nil {
			t.Fatalf("write table: %v", err)
		}
		return
	}
	recorded, err := os.ReadFile(devicesFile)
	if err != nil {
		t.Fatalf("read table: %v", err)
	}
	for _, line := range differing(string(recorded), report) {
		t.Errorf("%s is not what was found (make devices writes it anew):\n%s", devicesFile, line)
	}
}

// overDevices returns a row for each family.
func overDevices(t *testing.T, lan, wan device, mode string) (rows []deviceRow) {
	n := newDeviceNetwork(t, lan, wan)
	if mode == "xdp" {
		completeFrames(n)
	}
	services := deviceServices(t, n.Server)
	hp := lab.NewHairpin(n.Router, strings.Replace(config(mode, forwards+forwards6), `, "lan1"`, "", 1))
	hp.Start()
	hooks := hooksOf(t, hp)
	for _, s := range services {
		row := deviceRow{lan.name, wan.name, mode, hooks["lan0"] + " / " + hooks["wan0"], s.family, nil}
		for i, from := range []*lab.Host{n.Internet, n.Client, n.Router} {
			want := s.router
			if from == n.Internet {
				want = s.internet
			}
			cell := resultPass
			if err := s.serves(from, want); err != nil {
				t.Errorf("%s, %s: %v", s.family, devicePaths[i], err)
				cell = resultFail
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

// deviceService is what the server offers in one family, and whom it may take its clients for.
type deviceService struct {
	family           string
	internet, router netip.Addr
	// ask moves bytes and datagrams there and back, and returns whom the server saw.
	ask func(from *lab.Host) (sees []netip.Addr, err error)
}

const (
	deviceBytes     = 400_000
	deviceDatagrams = 100
	longestDatagram = 1400
)

func deviceServices(t *testing.T, server *lab.Host) []deviceService {
	server.ServeTCP(":8080")
	serveTCP6(t, server, "[::]:8080")
	udp, peer := server.ServeUDP(":5353"), serveUDP6(t, server, "[::]:5353")
	return []deviceService{
		{"IPv4", netip.MustParseAddr(lab.InternetSource), routerAddress, func(from *lab.Host) ([]netip.Addr, error) {
			return ask4(from, udp)
		}},
		{"IPv6", netip.MustParseAddr(internetSource6), netip.MustParseAddr(routerLAN6), func(from *lab.Host) ([]netip.Addr, error) {
			return ask6(from, peer)
		}},
	}
}

// serves wants the server to see one address and no other.
func (s deviceService) serves(from *lab.Host, want netip.Addr) error {
	sees, err := s.ask(from)
	if err != nil {
		return err
	}
	for _, addr := range sees {
		if addr != want {
			return fmt.Errorf("the server sees %v, want %v", addr, want)
		}
	}
	return nil
}

func ask4(from *lab.Host, udp *lab.Echoer) (sees []netip.Addr, err error) {
	c, err := from.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	who, err := c.Who()
	if err == nil {
		err = c.Echo(deviceBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("TCP: %w", err)
	}
	before := udp.Seen()
	d, err := from.DialUDP(lab.External+":53", "")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if _, err := lab.Exchange(d, deviceDatagrams, longestDatagram); err != nil {
		return nil, fmt.Errorf("UDP: %w", err)
	}
	sees = append(sees, who.Addr())
	for peer, tally := range udp.Seen() {
		if before[peer] != tally {
			sees = append(sees, peer.Addr())
		}
	}
	return sees, nil
}

func ask6(from *lab.Host, peer func() netip.AddrPort) (sees []netip.Addr, err error) {
	c, err := dialTCP6(from, "["+external6+"]:80", "", lab.Patience)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.echo(deviceBytes); err != nil {
		return nil, fmt.Errorf("TCP: %w", err)
	}
	d, err := dialUDP6(from, "["+external6+"]:53", "")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if _, err := lab.Exchange(d, deviceDatagrams, longestDatagram); err != nil {
		return nil, fmt.Errorf("UDP: %w", err)
	}
	return []netip.Addr{c.sees.Addr(), peer().Addr()}, nil
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

Every kind of device that this kernel has, as LAN and as WAN of a router. In each cell a client on the Internet (WAN), a
client in the LAN of the server (hairpin) or the router itself (local) has used two forwards by the external address:
bytes there and back over TCP, and datagrams over UDP, all the same when they came back, and the server saw the client
itself or the router as it should. ` + "`make devices`" + ` measures and writes this file; ` + "`make test`" + ` measures too, and fails if the
file says anything else.

`

const deviceNotes = `
- bridge: the client and the server are at different ports. tun: the client and the server are behind another router.
- tc: TC alone. xdp: XDP before it, in the driver of veth and tap, else generic. Packets of tun have no Ethernet header,
  and so no place for XDP: TC alone does it there in either mode, and says so.
- VLAN, bond, WireGuard, PPP and PPPoE are not in this kernel: ` + "`make test-kernels`" + ` has them. A frame with a VLAN tag that
  reaches the programs of the device below passes untouched (TestCorpus, rows 3 and 4; TestCorpus6).
- A physical device is to the programs what veth is: native XDP, TC behind it.
`
