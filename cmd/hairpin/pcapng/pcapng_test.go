// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"hairpin/cmd/hairpin/trace"
	"hairpin/maps/rule"
)

// segment returns a TCP segment; with an Ethernet header unless bare.
func segment(t *testing.T, from, to string, bare bool) trace.Frame {
	t.Helper()
	source, destination := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: source.Addr().AsSlice(), DstIP: destination.Addr().AsSlice()}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(source.Port()), DstPort: layers.TCPPort(destination.Port()), SYN: true, Window: 1000}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	all := []gopacket.SerializableLayer{ip, tcp}
	if !bare {
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
		all = append([]gopacket.SerializableLayer{&layers.Ethernet{SrcMAC: mac, DstMAC: mac, EthernetType: layers.EthernetTypeIPv4}}, all...)
	}
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return trace.Frame{Data: bytes.Clone(out.Bytes()), Length: len(out.Bytes())}
}

// TestTsharkOpensTheFile: tshark reads both sides of a connection, each with its interface and the decision, also of a device
// without Ethernet headers and of one that appears later. What XDP leaves to TC is there once.
func TestTsharkOpensTheFile(t *testing.T) {
	const client, external, router, server = "192.168.1.50:4711", "203.0.113.2:80", "192.168.1.1:61000", "192.168.1.20:8080"
	at := time.Unix(1_700_000_000, 123_456_789)
	packet := func(hook, verdict, reason, from, to string, bare bool) *trace.Packet {
		return &trace.Packet{
			Time: at, Interface: "lan0", Index: 2, Hook: hook, Protocol: rule.TCP, Verdict: verdict, Reason: reason, Forward: "web", Bare: bare,
			Arrived: segment(t, from, to, bare),
		}
	}
	sent := packet(trace.HookTC, trace.VerdictSend, "", client, external, false)
	sent.Output, sent.OutputIndex, sent.Left = "lan1", 7, segment(t, router, server, false)
	bare := packet(trace.HookTC, "drop", "denied", client, external, true)
	bare.Interface, bare.Index = "wg0", 5
	bare.Arrived.Length = 1500 // the rest was not kept

	file := filepath.Join(t.TempDir(), "x.pcapng")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(out, []Interface{{Name: "lan0", Index: 2}, {Name: "wg0", Index: 5, Bare: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*trace.Packet{packet(trace.HookXDP, trace.VerdictDefer, "mss", client, external, false), sent, bare} {
		written, err := w.Write(p)
		if err != nil || written != (p.Verdict != trace.VerdictDefer) {
			t.Errorf("%s: %v, %v", p.Verdict, written, err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	said, err := exec.Command("tshark", "-r", file, "-T", "fields", "-E", "separator=|", "-e", "frame.interface_name", "-e", "frame.time_epoch",
		"-e", "ip.src", "-e", "tcp.srcport", "-e", "ip.dst", "-e", "tcp.dstport", "-e", "tcp.checksum.status", "-e", "frame.len", "-e", "frame.comment",
		"-o", "tcp.check_checksum:TRUE").Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, said)
	}
	want := []string{
		"lan0|1700000000.123456789|192.168.1.50|4711|203.0.113.2|80|1|60|arrived: send, forward web, tc",
		"lan1|1700000000.123456789|192.168.1.1|61000|192.168.1.20|8080|1|60|left: send, forward web, tc",
		"wg0|1700000000.123456789|192.168.1.50|4711|203.0.113.2|80|1|1500|arrived: drop (denied), forward web, tc",
	}
	if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(string(said)), "\n")); diff != "" {
		t.Errorf("tshark reads (-want +got):\n%s", diff)
	}
}
