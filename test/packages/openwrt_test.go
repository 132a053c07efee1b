// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakes are the programs of OpenWrt that the scripts of the ipk use. The init script notes what it is asked.
var fakes = map[string]string{
	"/sbin/uci": `#!/bin/sh
case $* in
"-q show firewall") echo "firewall.web=$SECTION" ;;
"export firewall") cat /firewall ;;
"export network") cat /network; test "$NETWORK" != incomplete ;;
*) exit 1 ;;
esac
`,
	"/etc/init.d/hairpin": "#!/bin/sh\necho \"$1\" >>/asked\n",
	"/firewall": `package firewall

config zone
	option name 'wan'
	list network 'wan'
	option masq '1'

config zone
	option name 'lan'
	list network 'lan'

config redirect 'web'
	option name 'web'
	option src 'wan'
	option src_dport '80'
	option dest 'lan'
	option dest_ip '192.168.1.20'
	option dest_port '8080'
	option proto 'tcp'
	option target 'DNAT'
`,
	"/network": `package network

config interface 'wan'
	option device 'eth1'
	option proto 'dhcp'

config interface 'lan'
	option device 'br-lan'
	option proto 'static'
	option ipaddr '192.168.1.1'
	option netmask '255.255.255.0'
`,
}

// openwrt makes a directory with the files of the ipk, busybox and the fakes.
func openwrt(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for path, f := range contents(t, "ipk", packageFile(t, "ipk", "amd64")) {
		place(t, root, path, f.content)
	}
	for path, f := range ipkControl(t, "amd64") {
		place(t, root, path, f.content)
	}
	for path, text := range fakes {
		place(t, root, path, []byte(text))
	}
	installBusybox(t, root)
	return root
}

// opkg runs a script of the ipk as opkg does, and returns what the script said and asked of the init script.
func opkg(t *testing.T, root, script string, env ...string) (said, asked string) {
	t.Helper()
	command := exec.Command("chroot", root, "/bin/sh", script)
	command.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	list, err := os.ReadFile(filepath.Join(root, "asked"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "asked")); err != nil {
		t.Fatal(err)
	}
	return string(out), strings.Join(strings.Fields(string(list)), " ")
}

// TestOpenWrtScripts: the installation starts the service, and writes the redirects of the firewall as forwards into a file that nothing
// reads. An upgrade does not end the service before it, and the removal leaves only the configuration. While an image is built, nothing
// runs.
func TestOpenWrtScripts(t *testing.T) {
	root := openwrt(t)
	imported := filepath.Join(root, "etc/hairpin/import.toml")
	check := func(step, asked, want string) {
		t.Helper()
		if asked != want {
			t.Errorf("%s: the init script was asked %q, want %q", step, asked, want)
		}
	}

	_, asked := opkg(t, root, "/postinst", "SECTION=redirect", "IPKG_INSTROOT=/image")
	check("an image", asked, "")

	_, asked = opkg(t, root, "/postinst", "SECTION=rule")
	check("without redirects", asked, "enable restart")
	if _, err := os.Stat(imported); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without redirects: %s is there, %v", imported, err)
	}

	said, asked := opkg(t, root, "/postinst", "SECTION=redirect", "NETWORK=incomplete")
	check("with an incomplete export of the network", asked, "enable restart")
	if left := glob(filepath.Join(root, "etc/hairpin/import*")); len(left) > 0 || !strings.Contains(said, "could not be translated") {
		t.Errorf("with an incomplete export of the network: /etc/hairpin has %q, and the installation says\n%s", left, said)
	}

	said, asked = opkg(t, root, "/postinst", "SECTION=redirect")
	check("installation", asked, "enable restart")
	text, err := os.ReadFile(imported)
	for _, want := range []string{`wan = ["eth1"]`, `lan = ["br-lan"]`, `to = '192.168.1.20:8080'`} {
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("the imported file lacks %s, %v:\n%s", want, err, text)
		}
	}
	if !strings.Contains(said, "/etc/hairpin/import.toml") {
		t.Errorf("the installation does not name the imported file:\n%s", said)
	}
	output(t, "chroot", root, "/usr/bin/hairpin", "--config", "/etc/hairpin/import.toml", "check")

	_, asked = opkg(t, root, "/prerm", "PKG_UPGRADE=1")
	check("before an upgrade", asked, "")
	if err := os.WriteFile(imported, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, asked = opkg(t, root, "/postinst", "SECTION=redirect", "PKG_UPGRADE=1")
	check("after an upgrade", asked, "enable restart")
	if text, err := os.ReadFile(imported); err != nil || string(text) != "mine" {
		t.Errorf("an upgrade wrote the imported file again, %v", err)
	}

	_, asked = opkg(t, root, "/prerm")
	check("removal", asked, "running stop disable")
	if left := glob(filepath.Join(root, "etc/hairpin/*")); len(left) != 1 || filepath.Base(left[0]) != "hairpin.toml" {
		t.Errorf("after the removal /etc/hairpin has %q", left)
	}
}
