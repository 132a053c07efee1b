// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"hairpin/test/build"
)

//go:embed init
var initScript string

// programs are this machine's programs that init and the tests call. A name without a slash is looked up in PATH. A name with a
// slash may have wildcards.
var programs = []string{
	"busybox", "modprobe", "ip", "ss", "tc", "nft", "wg", "wg-quick", "bash", "ethtool", "ping", "traceroute", "tracepath", "curl", "dig",
	"dnsmasq", "tshark", "pppd", "pppoe", "pppoe-server", "/usr/lib/pppd/*/*pppoe.so",
}

// inGuest is the guest's directory with hairpin, the tests and the list of runs.
const inGuest = "tests"

// buildRoot makes the root file system of every guest of an architecture, without the modules and the list of runs. It has what these
// runs need.
func buildRoot(ctx context.Context, work string, a *arch, runs []testRun) (archive string, err error) {
	root := filepath.Join(work, "root")
	if err := layOut(root); err != nil {
		return "", err
	}
	if a.packages == nil {
		for _, pattern := range programs {
			if err := copyPrograms(ctx, root, pattern); err != nil {
				return "", fmt.Errorf("copy %s: %w", pattern, err)
			}
		}
	}
	if err := buildTests(ctx, filepath.Join(root, inGuest), a, runs); err != nil {
		return "", err
	}
	if hasRun(runs, upgradeRun) {
		if err := buildVariants(filepath.Join(work, "variants"), filepath.Join(root, inGuest)); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "init"), []byte(initScript), 0o755); err != nil {
		return "", err
	}
	archive = filepath.Join(work, "root.cpio")
	return archive, pack(ctx, root, archive)
}

// layOut makes the directories, the links into /usr as in Debian, and a few small files.
func layOut(root string) error {
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "run", "etc/ppp", "var", inGuest, "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "../run", "usr/bin/sh": "busybox",
		"usr/bin/readlink": "busybox", "usr/bin/stat": "busybox", "usr/bin/sysctl": "busybox", "usr/bin/sort": "busybox", // for wg-quick
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/:/bin/sh\n", "etc/group": "root:x:0:\n", "etc/hosts": "127.0.0.1 localhost\n", "etc/ppp/options": "",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// copyPrograms copies the programs that match the pattern, with the libraries that they load.
func copyPrograms(ctx context.Context, root, pattern string) error {
	var found []string
	if strings.Contains(pattern, "/") {
		found, _ = filepath.Glob(pattern)
	} else if name, err := exec.LookPath(pattern); err == nil {
		found = []string{name}
	}
	if len(found) == 0 {
		return fmt.Errorf("not found; run sudo make deps-kernels")
	}
	for _, name := range found {
		if err := copyInto(root, name); err != nil {
			return err
		}
		// ldd fails for a static program, which needs no libraries.
		libraries, _ := exec.CommandContext(ctx, "ldd", name).Output()
		for _, word := range strings.Fields(string(libraries)) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			if err := copyInto(root, word); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyInto copies a file to its own path below root. It follows symbolic links.
func copyInto(root, name string) error {
	to := filepath.Join(root, name)
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	content, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// buildTests builds hairpin and the tests of these runs as static binaries.
func buildTests(ctx context.Context, dir string, a *arch, runs []testRun) error {
	tests := []string{"test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", dir}
	for _, r := range runs {
		if name := "hairpin/test/" + strings.TrimSuffix(r.binary, ".test"); !slices.Contains(tests, name) {
			tests = append(tests, name)
		}
	}
	for _, args := range [][]string{{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir, "hairpin/cmd/hairpin"}, tests} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+a.name)
		if _, err := collect(cmd); err != nil {
			return err
		}
	}
	return nil
}

// buildVariants builds the other builds of hairpin in a directory of their own, and moves them to where hairpin is.
func buildVariants(dir, to string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, v := range build.Variants {
		path, err := v.In(dir)
		if err != nil {
			return err
		}
		if err := os.Rename(path, filepath.Join(to, v.Name)); err != nil {
			return err
		}
	}
	return nil
}

// pack makes an archive of a directory, in the format that the kernel unpacks at boot.
func pack(ctx context.Context, dir, archive string) error {
	var names strings.Builder
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			name, err = filepath.Rel(dir, name)
			names.WriteString(name + "\n")
		}
		return err
	})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "cpio", "--create", "--format=newc", "--quiet", "--owner=0:0", "--file="+archive)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(names.String())
	_, err = collect(cmd)
	return err
}

// join writes archives one after another into one file. The kernel unpacks all of them.
func join(file string, archives ...string) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	for _, archive := range archives {
		in, err := os.Open(archive)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		in.Close()
		if err != nil {
			return err
		}
	}
	return out.Close()
}
