// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// xdpTx returns what status says of lan0's XDP_TX.
func xdpTx(t *testing.T, hp *lab.Hairpin) (does bool, reason string) {
	t.Helper()
	var document struct {
		Status struct {
			Interfaces []struct {
				Name   string
				Reason string
				XDPTx  bool `json:"xdp_tx"`
			}
		}
	}
	if err := json.Unmarshal([]byte(hp.Run("-j", "status")), &document); err != nil {
		t.Fatal(err)
	}
	for _, i := range document.Status.Interfaces {
		if i.Name == "lan0" {
			return i.XDPTx, i.Reason
		}
	}
	t.Fatalf("status lists no lan0: %+v", document)
	return false, ""
}

var sentBack = regexp.MustCompile(`rx_queue_\d+_xdp_tx: (\d+)`)

// framesSentBack returns how many frames XDP has sent back by lan0 with XDP_TX, as the driver counts them.
func framesSentBack(t *testing.T, n *lab.Network) (frames int) {
	t.Helper()
	for _, match := range sentBack.FindAllStringSubmatch(n.Router.Run("ethtool", "-S", "lan0"), -1) {
		queue, err := strconv.Atoi(match[1])
		lab.Must(err)
		frames += queue
	}
	return frames
}

// TestXDPTxOfAVeth: xdp_tx = "on" sends hairpin traffic back with XDP_TX while the veth's other end has an XDP program. Without the program
// the other end would lose these frames: hairpin redirects, says so, and loses none. The program may come and go while hairpin runs.
func TestXDPTxOfAVeth(t *testing.T) {
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor("xdp"))
	n.Server.ServeUDP(":5353")
	n.Server.ServeTCP(":8080")
	config := strings.Replace(home.Config("xdp", home.Forwards), "[datapath]\n", "[datapath]\nxdp_tx = \"on\"\n", 1)
	hp := lab.NewHairpin(n.Router, config)
	hp.Start()
	exchange := func(when string) {
		t.Helper()
		c, err := n.Client.DialUDP(lab.External+":53", "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if sent, err := lab.Exchange(c, 2000, 100); err != nil {
			t.Errorf("%s: after %d datagrams: %v", when, sent, err)
		}
	}
	redirects := func(when string) {
		t.Helper()
		if does, reason := xdpTx(t, hp); does || !strings.Contains(reason, "other end has no XDP program") {
			t.Errorf("%s: status says %v, %q", when, does, reason)
		}
		before := framesSentBack(t, n)
		exchange(when)
		if sent := framesSentBack(t, n) - before; sent != 0 {
			t.Errorf("%s: %d frames were sent back with XDP_TX", when, sent)
		}
	}
	redirects("without a program at the other end")

	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
	})
	lab.Must(err)
	defer pass.Close()
	var program link.Link
	lab.Must(n.Switch.Do(func() (err error) {
		program, err = link.AttachXDP(link.XDPOptions{Program: pass, Interface: n.Switch.Index("port0")})
		return err
	}))
	defer program.Close()
	hp.Run("attach") // the daemon looks again every few seconds; this does so now
	if does, reason := xdpTx(t, hp); !does || reason != "" {
		t.Errorf("with a program at the other end, status says %v, %q", does, reason)
	}
	before := framesSentBack(t, n)
	exchange("with a program at the other end")
	lab.Eventually(t, lab.Patience, func() error {
		exchange("with a program at the other end")
		// Most frames: TC sends those whose next hop must be looked up.
		if sent := framesSentBack(t, n) - before; sent < 3000 {
			return fmt.Errorf("%d frames were sent back with XDP_TX", sent)
		}
		return nil
	})
	c, err := n.Client.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Upload(20_000_000); err != nil {
		t.Error(err)
	}
	if err := c.Download(20_000_000); err != nil {
		t.Error(err)
	}

	lab.Must(program.Close())
	hp.Run("attach")
	redirects("after the program has gone")
}
