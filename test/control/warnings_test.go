// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// tellsWhen waits until a daemon has logged something so many times.
func tellsWhen(t *testing.T, hp *lab.Hairpin, text string, times int) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if got := strings.Count(hp.Log(), text); got != times {
			return fmt.Errorf("%q is told %d times, want %d:\n%s", text, got, times, hp.Log())
		}
		return nil
	})
}

// say runs a command that has to succeed, and returns all that it wrote.
func say(t *testing.T, hp *lab.Hairpin, args ...string) string {
	t.Helper()
	r, err := hp.Try(args...)
	if err != nil || r.Code != 0 {
		t.Fatalf("hairpin %s: exit code %d, %v\n%s", strings.Join(args, " "), r.Code, err, r.Stderr)
	}
	return r.Stdout + r.Stderr
}

// TestInstalledFileSaysWhatToDo: as it is installed it names no interface, so that hairpin runs and does nothing.
func TestInstalledFileSaysWhatToDo(t *testing.T) {
	text, err := os.ReadFile("../../cmd/hairpin/dist/hairpin.toml")
	if err != nil {
		t.Fatal(err)
	}
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, string(text))
	want := "no interfaces are configured; set wan and lan in " + hp.File + ", then systemctl reload hairpin"
	for _, command := range []string{"attach", "status", "apply"} {
		if said := say(t, hp, command); !strings.Contains(said, "warning: "+want) {
			t.Errorf("%s: %s\nlacks %q", command, said, want)
		}
	}
	hp.Start()
	tellsWhen(t, hp, want, 1)
	if said := say(t, hp, "status"); !strings.Contains(said, want) {
		t.Errorf("status with the daemon: %s\nlacks %q", said, want)
	}

	// What it asks for is all there is to do.
	hp.Write(strings.NewReplacer("wan = [] ", `wan = ["wan0"]`, "lan = [] ", `lan = ["lan0"]`).Replace(string(text)))
	hp.Reload()
	if said := say(t, hp, "status"); strings.Contains(said, "no interfaces") || strings.Count(said, "attached") < 2 {
		t.Errorf("status after the reload: %s", said)
	}
	tellsWhen(t, hp, want, 1)
}

// TestForwardingOffIsTold: a kernel that does not forward has no next hops for what hairpin translates, so
// "attached" alone would be a lie.
func TestForwardingOffIsTold(t *testing.T) {
	n := lab.NewNetwork6(t)
	n.Router.Sysctl("net/ipv4/ip_forward", "0")
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	const four, six = "IPv4 forwarding is off; run sysctl -w net.ipv4.ip_forward=1", "IPv6 forwarding is off; run sysctl -w net.ipv6.conf.all.forwarding=1"
	for _, command := range []string{"attach", "status", "apply"} {
		if said := say(t, hp, command); !strings.Contains(said, "warning: "+four) || strings.Contains(said, "IPv6") {
			t.Errorf("%s: %s\nlacks %q, or speaks of IPv6", command, said, four)
		}
	}
	hp.Start()
	tellsWhen(t, hp, "level=WARN msg=\""+four, 1)
	n.Router.Sysctl("net/ipv4/ip_forward", "1")
	tellsWhen(t, hp, "the kernel forwards packets now", 1)
	n.Router.Sysctl("net/ipv4/ip_forward", "0")
	tellsWhen(t, hp, "level=WARN msg=\""+four, 2)

	n.Router.Sysctl("net/ipv6/conf/all/forwarding", "0")
	hp.Write(home.Config("tc", home.Forwards+home.Forwards6))
	hp.Reload()
	tellsWhen(t, hp, "level=WARN msg=\""+six, 1)
	tellsWhen(t, hp, "level=WARN msg=\""+four, 2)
}

// TestForeignExternalAddressIsTold: a forward may listen at an address that another router sends here. Mostly such an
// address is a mistake, so each command that takes the forward warns.
func TestForeignExternalAddressIsTold(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards+`
[[forward]]
name = "far"
protocol = ["tcp"]
external = "192.0.2.9"
port = "81"
to = "192.168.1.20:8080"
`))
	const far = `warning: forward "far": no interface has the external address 192.0.2.9`
	for _, command := range []string{"check", "attach", "apply", "status", "apply --dry-run", "diff"} {
		if said := say(t, hp, strings.Fields(command)...); strings.Count(said, "no interface has") != 1 || !strings.Contains(said, far) {
			t.Errorf("%s: %s\nlacks %q", command, said, far)
		}
	}
	if said := say(t, hp, "forward", "add", "near", "tcp", lab.External+":82", "to", "192.168.1.20:8080"); strings.Contains(said, "no interface has") {
		t.Errorf("forward add at the router's own address: %s", said)
	}
	if said := say(t, hp, "forward", "add", "off", "tcp", "192.0.2.10:82", "to", "192.168.1.20:8080"); !strings.Contains(said, "no interface has the external address 192.0.2.10") {
		t.Errorf("forward add at a foreign address: %s", said)
	}
	n.Router.Address("wan0", "192.0.2.9/32", "192.0.2.10/32")
	if said := say(t, hp, "status"); strings.Contains(said, "no interface has") {
		t.Errorf("status after the addresses were added: %s", said)
	}
}

// TestLostAddressIsTold: without the daemon nobody ends the connections of an address that stays away, so status says so.
func TestLostAddressIsTold(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", "[timeouts]\naddress_grace = \"1h\"\n"+home.Forwards))
	const away = "warning: address " + lab.External + " is away; without the daemon its connections end with the next \"hairpin attach\""
	told := func(when string, want bool) {
		t.Helper()
		if said := say(t, hp, "status"); strings.Contains(said, away) != want {
			t.Errorf("status %s: %s\nsays %q: %v", when, said, away, !want)
		}
	}
	say(t, hp, "attach")
	told("while nothing is lost", false)
	n.Router.Unaddress("wan0", lab.External+"/24")
	say(t, hp, "apply")
	told("when the address is away", true)
	hp.Start()
	told("while the daemon follows it", false)
	hp.Stop()
	n.Router.Address("wan0", lab.External+"/24")
	say(t, hp, "attach")
	told("when the address is back", false)
}
