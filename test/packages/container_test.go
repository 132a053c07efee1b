// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

const recipe = "../../cmd/hairpin/package/Containerfile"

// image makes the root directory that the Containerfile describes, and returns it with the command of its containers.
func image(t *testing.T) (root string, command []string) {
	t.Helper()
	text, err := os.ReadFile(recipe)
	if err != nil {
		t.Fatal(err)
	}
	root = t.TempDir()
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		switch words[0] {
		case "FROM":
			if words[1] != "scratch" {
				t.Fatalf("the image is made from %s", words[1])
			}
		case "ARG":
		case "COPY":
			source := strings.Replace(words[1], "bin/packages/${ARCH}", filepath.Join(packages(t), "amd64"), 1)
			if !filepath.IsAbs(source) {
				source = filepath.Join("../..", source)
			}
			data, err := os.ReadFile(source)
			to := filepath.Join(root, words[2])
			if err = errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, data, 0o755), os.Chmod(to, 0o755)); err != nil {
				t.Fatal(err)
			}
		case "ENTRYPOINT", "CMD":
			for _, word := range words[1:] {
				command = append(command, strings.Trim(word, `[]",`))
			}
		default:
			t.Fatalf("the test does not know %q", words[0])
		}
	}
	return root, command
}

// usualCapabilities are those that systemd-nspawn gives without being told, but for CAP_NET_ADMIN.
const usualCapabilities = "CAP_AUDIT_CONTROL,CAP_AUDIT_WRITE,CAP_CHOWN,CAP_DAC_OVERRIDE,CAP_DAC_READ_SEARCH,CAP_FOWNER,CAP_FSETID," +
	"CAP_IPC_OWNER,CAP_KILL,CAP_LEASE,CAP_LINUX_IMMUTABLE,CAP_MKNOD,CAP_NET_BIND_SERVICE,CAP_NET_BROADCAST,CAP_NET_RAW,CAP_SETFCAP," +
	"CAP_SETGID,CAP_SETPCAP,CAP_SETUID,CAP_SYS_ADMIN,CAP_SYS_BOOT,CAP_SYS_CHROOT,CAP_SYS_NICE,CAP_SYS_PTRACE,CAP_SYS_RESOURCE," +
	"CAP_SYS_TTY_CONFIG"

// wantCapabilities checks the capabilities of the only process in a container.
func wantCapabilities(t *testing.T, container *lab.Process, want uint64) {
	t.Helper()
	pid := strings.TrimSpace(string(output(t, "pgrep", "--parent", strconv.Itoa(container.Pid()), "hairpin")))
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if bits, is := strings.CutPrefix(line, "CapEff:"); is {
			if got, err := strconv.ParseUint(strings.TrimSpace(bits), 16, 64); err != nil || got != want {
				t.Errorf("the daemon has the capabilities %#x, want %#x, %v", got, want, err)
			}
			return
		}
	}
	t.Error("no capabilities in the status")
}

// TestContainer runs what the Containerfile describes in a container with the three capabilities and the network of the router. The
// bpffs outlives the container, so forwards and connections do, too.
func TestContainer(t *testing.T) {
	root, command := image(t)
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	parent, configurations := t.TempDir(), t.TempDir() // parent is the /sys/fs/bpf of the host
	bpffs := filepath.Join(parent, "hairpin")
	if err := errors.Join(os.Mkdir(bpffs, 0o700), unix.Mount("hairpin", bpffs, "bpf", 0, "mode=0700")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(bpffs, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(configurations, "hairpin.toml"), []byte(home.Config("tc", home.Forwards)), 0o644); err != nil {
		t.Fatal(err)
	}
	// systemd-nspawn wants a directory that looks like a system. It makes no mount points in it, as engines for containers do.
	if err := os.WriteFile(filepath.Join(root, "etc/os-release"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"dev", "proc", "run", "sys", "tmp", "var/lib/hairpin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	start := func(args ...string) *lab.Process {
		return n.Router.StartWith([]string{"SYSTEMD_NSPAWN_API_VFS_WRITABLE=1"}, "", append([]string{"systemd-nspawn", "--quiet", "--directory=" + root, "--read-only", "--register=no", "--keep-unit",
			"--machine=" + "hairpin-test-" + strconv.Itoa(os.Getpid()), "--console=pipe", "--network-namespace-path=/proc/self/ns/net",
			"--drop-capability=" + usualCapabilities, "--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON", "--no-new-privileges=yes", "--system-call-filter=bpf",
			"--bind=" + parent + ":/sys/fs/bpf", "--bind-ro=" + configurations + ":/etc/hairpin", "--resolv-conf=off", "--timezone=off", "--tmpfs=/var/lib/hairpin"},
			args...)...)
	}
	daemon := start(command...)
	var waiting *lab.Conn
	lab.Eventually(t, 2*lab.Patience, func() error {
		select {
		case <-daemon.Done():
			t.Fatalf("the container ended\n%s%s", daemon.Stdout, daemon.Stderr)
		default:
		}
		c, err := n.Client.DialTCP(lab.External+":80", "", lab.Patience)
		if err == nil {
			waiting = c
		}
		return err
	})
	t.Cleanup(func() { waiting.Close() })
	if err := waiting.Echo(1000); err != nil {
		t.Fatal(err)
	}
	wantCapabilities(t, daemon, 1<<unix.CAP_BPF|1<<unix.CAP_NET_ADMIN|1<<unix.CAP_PERFMON)
	daemon.Signal(unix.SIGTERM)
	daemon.Signal(unix.SIGTERM)
	daemon.Wait()
	if err := waiting.Echo(1000); err != nil {
		t.Errorf("after the container ended: %v", err)
	}
	again := start(command...)
	lab.Eventually(t, 2*lab.Patience, func() error {
		if !strings.Contains(again.Stdout.String()+again.Stderr.String(), "kept the running configuration") {
			return errors.New("the new container has not taken over\n" + again.Stdout.String() + again.Stderr.String())
		}
		return waiting.Echo(1000)
	})
	again.Signal(unix.SIGTERM)
	again.Signal(unix.SIGTERM)
	again.Wait()
}
