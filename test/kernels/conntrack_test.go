// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

const conntrackConfig = `version = 1
[interfaces]
wan = ["wan0"]
lan = ["lan0", "lan1"]
[datapath]
mode = %q
[[forward]]
name = "wide"
protocol = ["tcp", "udp"]
port = "50000-60000"
to = "192.168.1.20"
`

const masquerading = `
table inet masquerading {
	chain postrouting {
		type nat hook postrouting priority 100
		oifname "wan0" masquerade
	}
}
`

const conntrackModule = "/sys/module/nf_conntrack"

// TestConntrackModule: where nf_conntrack is a module, programs ask it whether it was loaded before them or after them, with the
// daemon and without; and not without CAP_SYS_ADMIN. It has to be the first test on a kernel: nobody unloads the module.
func TestConntrackModule(t *testing.T) {
	if _, err := os.Stat(conntrackModule); err == nil {
		lacking(t, "nf_conntrack is there already, or is no module of this kernel")
	}
	n := lab.NewNetwork(t)
	n.Internet.ServeTCP(lab.InternetSource + ":7000")
	n.Internet.ServeUDP(lab.InternetSource + ":7000")
	n.Server.ServeUDP(":50010")
	hp := lab.NewHairpin(n.Router, fmt.Sprintf(conntrackConfig, "tc"))

	// The module comes after the programs.
	hp.Run("attach")
	risk := `forward "wide": the router and masqueraded clients use the same ports`
	statusSays(t, hp, "conntrack:   not asked: the module nf_conntrack is not loaded", risk)
	for _, command := range [][]string{{"check"}, {"apply"}, {"forward", "add", "wide-too", "udp", "40000-49999", "to", "192.168.1.20"}} {
		r, err := hp.Try(command...)
		if err != nil || r.Code != 0 || !strings.Contains(r.Stderr, `the router and masqueraded clients use the same ports`) {
			t.Errorf("%v names no forward at risk: exit code %d, %v\n%s", command, r.Code, err, r.Stderr)
		}
	}
	n.Router.RunInput(masquerading, "nft", "-f", "-")
	if _, err := os.Stat(conntrackModule + "/initstate"); err != nil {
		t.Fatalf("nf_conntrack is no module, and the table needs none: %v", err)
	}
	statusSays(t, hp, "conntrack:   not asked: nf_conntrack was loaded after the programs", `run "hairpin upgrade"`, risk)
	hp.Start()
	answered(t, n, hp, "tc, after, with the daemon", 50020)
	hp.Stop()
	hp.Run("detach", "--all")

	// And before.
	for i, mode := range []string{"tc", "xdp"} {
		hp.Write(fmt.Sprintf(conntrackConfig, lab.DeviceMode(mode)))
		hp.Run("attach")
		answered(t, n, hp, mode+", before, without the daemon", 50030+i)
		withoutAdmin(t, n.Router, hp, "upgrade")
		statusSays(t, hp, "conntrack:   not asked: CAP_SYS_ADMIN is missing", risk)
		forwarded(t, n)
		hp.Run("upgrade")
		answered(t, n, hp, mode+", upgraded", 50040+i)
		hp.Run("detach", "--all")
	}
}

func statusSays(t *testing.T, hp *lab.Hairpin, want ...string) {
	t.Helper()
	said := hp.Run("status")
	for _, text := range want {
		if !strings.Contains(said, text) {
			t.Errorf("status lacks %q:\n%s", text, said)
		}
	}
}

// answered waits until conntrack is asked; then connected and unconnected sockets get their answers, and the forward its packets.
func answered(t *testing.T, n *lab.Network, hp *lab.Hairpin, what string, port int) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if said := hp.Run("status"); !strings.Contains(said, "conntrack:   asked\n") {
			return fmt.Errorf("%s: status says\n%s", what, said)
		}
		return nil
	})
	c, err := n.Client.DialTCP(lab.InternetSource+":7000", fmt.Sprintf("%s:%d", lab.Client, port), lab.Patience)
	if err != nil {
		t.Fatalf("%s: a client's connection from a forwarded port: %v", what, err)
	}
	defer c.Close()
	if err := c.Echo(10_000); err != nil {
		t.Errorf("%s: a client's connection from a forwarded port: %v", what, err)
	}
	asks(t, n.Router, what, port)
	forwarded(t, n)
}

// asks sends from an unconnected socket.
func asks(t *testing.T, from *lab.Host, what string, port int) {
	t.Helper()
	err := from.Do(func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.WriteToUDPAddrPort([]byte("question"), netip.MustParseAddrPort(lab.InternetSource+":7000")); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(lab.Patience))
		answer := make([]byte, 100)
		got, err := c.Read(answer)
		if err == nil && !bytes.Equal(answer[:got], []byte("question")) {
			err = fmt.Errorf("the answer is %q", answer[:got])
		}
		return err
	})
	if err != nil {
		t.Errorf("%s: %s asks from a forwarded port: %v", what, from.Name, err)
	}
}

func forwarded(t *testing.T, n *lab.Network) {
	t.Helper()
	d, err := n.Internet.DialUDP(lab.External+":50010", "")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := lab.Exchange(d, 5, 1000); err != nil {
		t.Errorf("the forward: %v", err)
	}
}

// withoutAdmin runs a command of hairpin as root without CAP_SYS_ADMIN. The command replaces the programs. Then it fails: the kernel
// gives descriptors of inner maps, which hold the running configuration, to CAP_SYS_ADMIN alone.
func withoutAdmin(t *testing.T, on *lab.Host, hp *lab.Hairpin, args ...string) {
	t.Helper()
	done := make(chan error)
	go func() {
		// Never unlocked: the thread has lost a privilege for good, and ends with this function.
		runtime.LockOSThread()
		done <- on.Do(func() error {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
				return err
			}
			out, err := exec.Command(lab.Binary(t), append([]string{"-c", hp.File, "--bpffs", hp.Dir}, args...)...).CombinedOutput()
			if err != nil && !strings.Contains(string(out), "open running configuration: operation not permitted") {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}()
	if err := <-done; err != nil {
		t.Errorf("hairpin %v without CAP_SYS_ADMIN: %v", args, err)
	}
}
