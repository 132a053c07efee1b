// SPDX-License-Identifier: Apache-2.0

// Package packages tests what "make packages" builds.
package packages

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(suite{m}) }

// suite removes the packages after the tests.
type suite struct{ *testing.M }

// Run implements the argument of lab.Main.
func (s suite) Run() int {
	code := s.M.Run()
	if err := os.RemoveAll(built.dir); err != nil {
		fmt.Fprintln(os.Stderr, "remove packages:", err)
	}
	return code
}

const (
	version = "0.0.2~test"
	epoch   = "1700000000"
	script  = "../../cmd/hairpin/package/build.sh"
)

var formats = []string{"deb", "rpm", "apk", "ipk", "tar.gz"}

var built struct {
	sync.Once
	dir string
	err error
}

// packages returns the directory with all packages.
func packages(t *testing.T) string {
	t.Helper()
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "hairpin-packages-"); built.err == nil {
			built.err = build(built.dir, version)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// build builds packages of this version in dir; without names of packages, all.
func build(dir, version string, names ...string) error {
	command := exec.Command(script, append([]string{dir}, names...)...)
	command.Env = append(os.Environ(), "PACKAGE_VERSION="+version, "SOURCE_DATE_EPOCH="+epoch)
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build packages: %w\n%s", err, out)
	}
	return nil
}

func packageFile(t *testing.T, format, arch string) string {
	t.Helper()
	return filepath.Join(packages(t), fmt.Sprintf("hairpin_%s_%s.%s", version, arch, format))
}

// file is a file of a package.
type file struct {
	mode    fs.FileMode
	owner   string
	content []byte // nil in an rpm
}

// contents returns the files of a package by path, and for apk also its metadata.
func contents(t *testing.T, format, name string) map[string]file {
	t.Helper()
	switch format {
	case "deb":
		return untar(t, bytes.NewReader(output(t, "dpkg-deb", "--fsys-tarfile", name)))
	case "rpm":
		return rpmContents(t, name)
	case "ipk":
		outer := untar(t, unzip(t, name))
		return untar(t, unzipped(t, outer["/data.tar.gz"].content))
	default:
		return untar(t, unzip(t, name))
	}
}

func rpmContents(t *testing.T, name string) map[string]file {
	t.Helper()
	files := make(map[string]file)
	for line := range strings.Lines(string(output(t, "rpm", "-qp", "--qf", `[%{FILEMODES:octal} %{FILEUSERNAME} %{FILENAMES}\n]`, name))) {
		var mode uint32
		var owner, path string
		if _, err := fmt.Sscanf(line, "%o %s %s", &mode, &owner, &path); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if mode&0o170000 == 0o100000 {
			files[path] = file{fs.FileMode(mode & 0o7777), owner, nil}
		}
	}
	return files
}

func untar(t *testing.T, r io.Reader) map[string]file {
	t.Helper()
	files := make(map[string]file)
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		owner := "root"
		if header.Uid != 0 || header.Gid != 0 {
			owner = fmt.Sprint(header.Uid, ":", header.Gid)
		}
		files[path.Join("/", header.Name)] = file{fs.FileMode(header.Mode & 0o7777), owner, content}
	}
}

func unzip(t *testing.T, name string) io.Reader {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return unzipped(t, data)
}

func unzipped(t *testing.T, data []byte) io.Reader {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func output(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	var failed bytes.Buffer
	command := exec.Command(name, args...)
	command.Stderr = &failed
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, &failed)
	}
	return out
}

const (
	program       fs.FileMode = 0o755
	text          fs.FileMode = 0o644
	configuration             = "/etc/hairpin/hairpin.toml"
)

// expected has the files of each format, but for documentation.
func expected(format string) map[string]fs.FileMode {
	files := map[string]fs.FileMode{"/usr/bin/hairpin": program, configuration: text}
	add := func(mode fs.FileMode, paths ...string) {
		for _, path := range paths {
			files[path] = mode
		}
	}
	if format != "ipk" {
		add(text, "/usr/share/hairpin/fail2ban/action.d/hairpin.conf", "/usr/share/hairpin/containers/hairpin-containers.service")
		add(program, "/usr/share/hairpin/crowdsec/hairpin-bouncer", "/usr/share/hairpin/containers/hairpin-containers")
	}
	if format == "deb" || format == "rpm" || format == "apk" {
		add(text, "/usr/share/bash-completion/completions/hairpin", "/usr/share/fish/vendor_completions.d/hairpin.fish")
	}
	switch format {
	case "deb":
		add(text, "/usr/share/zsh/vendor-completions/_hairpin", "/usr/share/lintian/overrides/hairpin",
			"/usr/share/doc/hairpin/changelog.gz")
	case "rpm", "apk":
		add(text, "/usr/share/zsh/site-functions/_hairpin")
	}
	switch format {
	case "deb", "rpm":
		add(text, "/usr/lib/systemd/system/hairpin.service", "/usr/lib/systemd/system/hairpin-prepare.service", "/usr/share/doc/hairpin/copyright")
		for _, page := range glob("../../cmd/hairpin/doc/*.md") {
			add(text, "/usr/share/doc/hairpin/"+filepath.Base(page))
		}
	case "apk", "ipk":
		add(program, "/etc/init.d/hairpin")
	case "tar.gz":
		add(text, "/usr/lib/systemd/system/hairpin.service", "/usr/lib/systemd/system/hairpin-prepare.service")
	}
	for _, page := range []string{"man8/hairpin.8", "man5/hairpin.toml.5"} {
		switch format {
		case "deb", "rpm", "apk":
			add(text, "/usr/share/man/"+page+".gz")
		case "tar.gz":
			add(text, "/usr/share/man/"+page)
		}
	}
	return files
}

func glob(pattern string) []string {
	found, err := filepath.Glob(pattern)
	if err != nil {
		panic(err) // the pattern is a constant
	}
	return found
}

// inPackage returns a file's path in the packages of a distribution for its path in the tarball, which is below /usr/local.
func inPackage(path string) string {
	path = strings.TrimPrefix(path, "/hairpin")
	return strings.Replace(path, "/usr/local/", "/usr/", 1)
}

// metadata are files of an apk that are not installed.
var metadata = []string{"/.PKGINFO", "/.post-upgrade", "/.pre-deinstall"}

// TestContents: each package has these files and no others, with these modes, and all belong to root.
func TestContents(t *testing.T) {
	for _, format := range formats {
		for _, arch := range []string{"amd64", "arm64"} {
			t.Run(format+" "+arch, func(t *testing.T) {
				got := contents(t, format, packageFile(t, format, arch))
				modes := make(map[string]fs.FileMode)
				for path, f := range got {
					if format == "tar.gz" {
						path = inPackage(path)
					}
					if f.owner != "root" {
						t.Errorf("%s belongs to %s", path, f.owner)
					}
					modes[path] = f.mode
				}
				if format == "apk" {
					for _, name := range metadata {
						if _, there := modes[name]; !there {
							t.Errorf("%s is missing", name)
						}
						delete(modes, name)
					}
				}
				if want := expected(format); !maps.Equal(modes, want) {
					t.Errorf("got\n%s\nwant\n%s", list(modes), list(want))
				}
			})
		}
	}
}

func list(modes map[string]fs.FileMode) string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(modes)) {
		fmt.Fprintf(&b, "%o %s\n", modes[path], path)
	}
	return b.String()
}

// TestBinary: each package has a static binary of its architecture.
func TestBinary(t *testing.T) {
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for _, format := range []string{"deb", "apk", "ipk", "tar.gz"} {
		for arch, machine := range machines {
			at := "/usr/bin/hairpin"
			if format == "tar.gz" {
				at = "/hairpin/usr/local/bin/hairpin"
			}
			binary, err := elf.NewFile(bytes.NewReader(contents(t, format, packageFile(t, format, arch))[at].content))
			if err != nil {
				t.Fatalf("%s %s: %v", format, arch, err)
			}
			if binary.Machine != machine {
				t.Errorf("%s %s: the binary is for %v", format, arch, binary.Machine)
			}
			if slices.ContainsFunc(binary.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
				t.Errorf("%s %s: the binary is not static", format, arch)
			}
		}
	}
}

// TestUnitsRunTheInstalledBinary: the units and init scripts name the path of the binary in the same package.
func TestUnitsRunTheInstalledBinary(t *testing.T) {
	for format, at := range map[string]string{
		"deb": "/usr/lib/systemd/system/hairpin.service", "apk": "/etc/init.d/hairpin", "ipk": "/etc/init.d/hairpin",
		"tar.gz": "/hairpin/usr/local/lib/systemd/system/hairpin.service",
	} {
		got := string(contents(t, format, packageFile(t, format, "amd64"))[at].content)
		want, other := "/usr/bin/hairpin", "/usr/local/bin/hairpin"
		if format == "tar.gz" {
			want, other = other, want
		}
		if !strings.Contains(got, want) || strings.Contains(got, other) {
			t.Errorf("%s: %s does not run %s:\n%s", format, at, want, got)
		}
	}
}

// TestConfigurationIsKept: an upgrade keeps a changed configuration file. apk keeps all changed files below /etc without being told.
func TestConfigurationIsKept(t *testing.T) {
	if got := strings.TrimSpace(string(output(t, "dpkg-deb", "--info", packageFile(t, "deb", "amd64"), "conffiles"))); got != configuration {
		t.Errorf("deb: conffiles are %q", got)
	}
	// c is %config, n is noreplace.
	got := string(output(t, "rpm", "-qp", "--qf", `[%{FILEFLAGS:fflags} %{FILENAMES}\n]`, packageFile(t, "rpm", "amd64")))
	if !strings.Contains(got, "cn "+configuration+"\n") {
		t.Errorf("rpm: flags are\n%s", got)
	}
	if got := string(ipkControl(t, "amd64")["/conffiles"].content); strings.TrimSpace(got) != configuration {
		t.Errorf("ipk: conffiles are %q", got)
	}
}

func ipkControl(t *testing.T, arch string) map[string]file {
	t.Helper()
	outer := untar(t, unzip(t, packageFile(t, "ipk", arch)))
	return untar(t, unzipped(t, outer["/control.tar.gz"].content))
}

// TestDependencies: OpenWrt has the TC hook for programs in a package of its own. The binary is static, so nothing else is necessary.
func TestDependencies(t *testing.T) {
	if got := strings.TrimSpace(string(output(t, "dpkg-deb", "--field", packageFile(t, "deb", "amd64"), "Depends"))); got != "" {
		t.Errorf("deb depends on %q", got)
	}
	for line := range strings.Lines(string(output(t, "rpm", "-qp", "--requires", packageFile(t, "rpm", "amd64")))) {
		if !strings.HasPrefix(line, "rpmlib(") && strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "/bin/sh") {
			t.Errorf("rpm requires %q", line)
		}
	}
	for arch, name := range map[string]string{"amd64": "x86_64", "arm64": "aarch64_generic"} {
		control := string(ipkControl(t, arch)["/control"].content)
		for _, want := range []string{"Depends: kmod-sched-core, kmod-sched-bpf\n", "Architecture: " + name + "\n", "Version: " + version + "\n"} {
			if !strings.Contains(control, want) {
				t.Errorf("ipk %s: the control file lacks %q:\n%s", arch, want, control)
			}
		}
	}
	info := string(contents(t, "apk", packageFile(t, "apk", "arm64"))["/.PKGINFO"].content)
	for _, want := range []string{"depend = openrc\n", "arch = aarch64\n"} {
		if !strings.Contains(info, want) {
			t.Errorf("apk: .PKGINFO lacks %q:\n%s", want, info)
		}
	}
}

// TestScripts: every shell accepts the scripts of the packages.
func TestScripts(t *testing.T) {
	scripts := append(glob("../../cmd/hairpin/package/scripts/*"), glob("../../cmd/hairpin/package/hairpin.*")...)
	if len(scripts) < 10 {
		t.Fatalf("found only %q", scripts)
	}
	for _, name := range scripts {
		for _, shell := range [][]string{{"dash"}, {"busybox", "sh"}, {"bash", "--posix"}} {
			output(t, shell[0], slices.Concat(shell[1:], []string{"-n", name})...)
		}
	}
}

// TestReproducible: the same commit gives the same bytes.
func TestReproducible(t *testing.T) {
	first, second := packages(t), t.TempDir()
	if err := build(second, version, "deb-amd64", "rpm-amd64", "apk-amd64", "ipk-amd64", "tar-amd64"); err != nil {
		t.Fatal(err)
	}
	for _, format := range formats {
		name := fmt.Sprintf("hairpin_%s_amd64.%s", version, format)
		if sum(t, filepath.Join(first, name)) != sum(t, filepath.Join(second, name)) {
			t.Errorf("%s differs from build to build", name)
		}
	}
}

func sum(t *testing.T, name string) [sha256.Size]byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(data)
}

// TestLintian: Debian's checker finds no error.
func TestLintian(t *testing.T) {
	command := exec.Command("lintian", "--fail-on", "error", packageFile(t, "deb", "amd64"), packageFile(t, "deb", "arm64"))
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("lintian: %v\n%s", err, out)
	}
}
