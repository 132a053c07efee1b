// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hairpin/test/lab"
)

// installed sets up the files of make install under PREFIX, and replacements for the machine's own files.
//
// The script runs in its own mount, network and process namespaces, with an empty bpffs on /sys/fs/bpf and a /run in which
// systemd seems to run. Its systemctl records its arguments, and stops the daemon as systemd would. The test limits the time
// that the script waits, and all processes end with it.
const installed = `
export PATH=$work/fake:$PATH PREFIX=$work/usr
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /var/lib
ip link set lo up
ip link add wan0 type veth peer name wan1
ip link set wan0 up
mkdir -p $work/fake $PREFIX/bin $PREFIX/lib/systemd/system
cp $binary $PREFIX/bin/hairpin
cp $root/cmd/hairpin/dist/hairpin.service $root/cmd/hairpin/dist/hairpin-prepare.service $PREFIX/lib/systemd/system/
mkdir -p $PREFIX/share/hairpin
cp -r $root/cmd/hairpin/dist/fail2ban $root/cmd/hairpin/dist/crowdsec $PREFIX/share/hairpin/
printf 'version = 1\n[interfaces]\nwan = ["wan0"]\n[metrics]\nlisten = ""\n' > $work/hairpin.toml
cat > $work/fake/systemctl <<'END'
#!/bin/sh
echo "$*" >> $work/asked
case $1 in
show) echo $UNIT ;;
disable) kill $(cat $work/daemon); while test -e /proc/$(cat $work/daemon)/fd/0; do sleep 0.01; done ;;
esac
END
chmod +x $work/fake/systemctl
export work UNIT=$PREFIX/lib/systemd/system/hairpin.service
hairpin() { $PREFIX/bin/hairpin -c $work/hairpin.toml "$@"; }
uninstall() { make --no-print-directory -C $root uninstall "$@"; }
start() {
	$PREFIX/bin/hairpin -c $work/hairpin.toml run & echo $! > $work/daemon
	until hairpin status 2>/dev/null | grep -q 'daemon: *running' && test -S /run/hairpin/control; do kill -0 $(cat $work/daemon); sleep 0.05; done
}
gone() { for path; do test ! -e $path || { echo "$path is there"; return 1; }; done; }
`

// uninstallScript runs a script after installed, and returns what it said.
func uninstallScript(t *testing.T, script string) string {
	t.Helper()
	lab.NeedRoot(t)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lab.Patience)
	defer cancel()
	run := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-euc", installed+script)
	run.Env = append(os.Environ(), "MAKEFLAGS=", "DESTDIR=", "work="+t.TempDir(), "binary="+lab.Binary(t), "root="+root)
	run.WaitDelay = lab.Patience
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// TestUninstallLeavesNothing: make uninstall ends the daemon first, since that would attach again at once, then
// takes the programs out of the kernel, and then removes the files that are needed for it.
func TestUninstallLeavesNothing(t *testing.T) {
	said := uninstallScript(t, `
start
test -d /sys/fs/bpf/hairpin/datapath -a -e /var/lib/hairpin/generations/1.json -a -S /run/hairpin/control
uninstall
gone /var/lib/hairpin /sys/fs/bpf/hairpin $PREFIX/bin/hairpin $UNIT $PREFIX/lib/systemd/system/hairpin-prepare.service /proc/$(cat $work/daemon)/fd/0
echo asked: && cat $work/asked
uninstall # nothing to do is no error
`)
	for _, want := range []string{"disable --now hairpin.service", "detach --all", "daemon-reload"} {
		if !strings.Contains(said, want) {
			t.Errorf("lacks %q:\n%s", want, said)
		}
	}
}

// TestUninstallKeepsWhatItNeeds: as long as the programs cannot be detached, the binary that does it stays.
func TestUninstallKeepsWhatItNeeds(t *testing.T) {
	said := uninstallScript(t, `
rm -r /run/systemd # another service manager runs the daemon
start
if uninstall; then echo "it did not fail"; exit 1; fi
test -x $PREFIX/bin/hairpin -a -e $UNIT -a -d /sys/fs/bpf/hairpin/datapath
gone $work/asked
kill $(cat $work/daemon)
wait
uninstall
gone /sys/fs/bpf/hairpin $PREFIX/bin/hairpin $PREFIX/share/hairpin $UNIT
`)
	if !strings.Contains(said, "a daemon is running") {
		t.Errorf("does not say why:\n%s", said)
	}
}

// TestUninstallOfAPackage: with DESTDIR, files of that tree go and nothing of the machine does. The
// configuration stays in any case.
func TestUninstallOfAPackage(t *testing.T) {
	said := uninstallScript(t, `
start
mkdir -p $work/package/usr $work/package/etc/hairpin
cp -r $PREFIX/bin $PREFIX/lib $PREFIX/share $work/package/usr/
echo kept > $work/package/etc/hairpin/hairpin.toml
uninstall DESTDIR=$work/package PREFIX=/usr
gone $work/package/usr/bin/hairpin $work/package/usr/share/hairpin $work/package/usr/lib/systemd/system/hairpin.service $work/asked
test -x $PREFIX/bin/hairpin -a -e $UNIT -a -d /sys/fs/bpf/hairpin/datapath -a -d /var/lib/hairpin -a -e /proc/$(cat $work/daemon)/fd/0
grep -q kept $work/package/etc/hairpin/hairpin.toml
kill $(cat $work/daemon)
`)
	if !strings.Contains(said, "package/etc/hairpin stays") {
		t.Errorf("does not say that the configuration stays:\n%s", said)
	}
}
