// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// image is a kernel in the cache.
type image struct {
	version string // as uname -r prints it
	dir     string
}

// Names in an image's directory.
const (
	kernelFile = "vmlinuz"
	moduleRoot = "root" // directory with the modules, and with programs for another architecture
)

// keyring belongs to the package debian-archive-keyring.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// fetch returns the kernel of a suite and an architecture from the cache. If the cache has none, it downloads the kernel. It installs nothing: apt
// uses a configuration in the cache, with only this suite.
func fetch(ctx context.Context, cache, suite string, a *arch) (image, error) {
	dir := filepath.Join(cache, imageDir(suite, a))
	if img, err := open(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return img, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return image{}, err
	}
	work, err := os.MkdirTemp(cache, suite+".")
	if err != nil {
		return image{}, err
	}
	defer os.RemoveAll(work)
	fmt.Println("\nfetching the kernel of", suite, "for", a.name)
	made := filepath.Join(work, "image")
	if err := download(ctx, work, made, suite, a); err != nil {
		return image{}, fmt.Errorf("fetch from %s: %w", suite, err)
	}
	// ErrExist: another process has made the image meanwhile.
	if err := os.Rename(made, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return image{}, err
	}
	return open(dir)
}

// imageFormat has another value if images are made in another way.
const imageFormat = "decompressed "

// imageDir returns the name of a suite's directory in the cache. An image that was made with another choice of modules or packages has
// another name: it may lack some.
func imageDir(suite string, a *arch) string {
	sum := sha256.Sum256([]byte(imageFormat + guestModules.String() + a.key()))
	return fmt.Sprintf("%s-%x", suite, sum[:4])
}

func open(dir string) (image, error) {
	if _, err := os.Stat(dir); err != nil {
		return image{}, err
	}
	versions, err := filepath.Glob(filepath.Join(dir, moduleRoot, "usr/lib/modules/*"))
	if err != nil {
		return image{}, err
	}
	if len(versions) != 1 {
		return image{}, fmt.Errorf("%s has the modules of %d kernels, want one; remove the directory", dir, len(versions))
	}
	return image{version: filepath.Base(versions[0]), dir: dir}, nil
}

// download makes an image from a suite's packages.
func download(ctx context.Context, work, made, suite string, a *arch) error {
	apt, err := newApt(ctx, filepath.Join(work, "apt"), suite, a)
	if err != nil {
		return err
	}
	packages, err := apt.kernelPackages(ctx)
	if err != nil {
		return err
	}
	archives := filepath.Join(work, "archives")
	if err := os.Mkdir(archives, 0o755); err != nil {
		return err
	}
	if _, err := apt.run(ctx, archives, "apt-get", append([]string{"-q", "download"}, packages...)...); err != nil {
		return err
	}
	if err := unpackAll(ctx, archives, made, place); err != nil {
		return err
	}
	if len(a.packages) > 0 {
		programs, err := apt.downloadWhole(ctx, a.packages)
		if err != nil {
			return err
		}
		if err := unpackAll(ctx, programs, made, placeProgram); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(made, kernelFile)); err != nil {
		return fmt.Errorf("no kernel in %s: %w", strings.Join(packages, ", "), err)
	}
	img, err := open(made)
	if err != nil {
		return err
	}
	root := filepath.Join(made, moduleRoot)
	if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil {
		return err
	}
	if err := decompress(ctx, root); err != nil {
		return err
	}
	_, err = output(ctx, "depmod", "-b", root, img.version)
	return err
}

// decompress decompresses all modules. modprobe may first offer a compressed file to the kernel, which then writes an error into its log.
func decompress(ctx context.Context, root string) error {
	var files []string
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(name, ".ko.xz") {
			files = append(files, name)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		return err
	}
	_, err = output(ctx, "xz", append([]string{"--decompress", "--"}, files...)...)
	return err
}

// unpackAll extracts the files that a guest needs from all packages in a directory. place returns their paths in the image.
func unpackAll(ctx context.Context, archives, made string, place func(name string) string) error {
	files, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := unpack(ctx, file, made, place); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(file), err)
		}
	}
	return nil
}

// apt is a configuration of apt with one suite and one architecture, and the machine's own Debian mirror. In its view nothing is installed.
type apt struct {
	arch        *arch
	config, dir string
}

func newApt(ctx context.Context, dir, suite string, of *arch) (apt, error) {
	archive, err := archiveURI(ctx)
	if err != nil {
		return apt{}, err
	}
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return apt{}, err
		}
	}
	a := apt{of, filepath.Join(dir, "apt.conf"), dir}
	sources := filepath.Join(dir, "sources.list")
	line := fmt.Sprintf("deb [arch=%s target=Packages signed-by=%s] %s %s main\n", of.name, keyring, archive, suite)
	if err := os.WriteFile(sources, []byte(line), 0o644); err != nil {
		return apt{}, err
	}
	config := fmt.Sprintf(`Dir::State "%[1]s/state"; Dir::State::status "/dev/null"; Dir::Cache "%[1]s/cache";
Dir::Etc::SourceList "%[2]s"; Dir::Etc::SourceParts "/dev/null"; APT::Sandbox::User "root";
APT::Architecture "%[3]s"; APT::Architectures "%[3]s";
`, dir, sources, of.name)
	if err := os.WriteFile(a.config, []byte(config), 0o644); err != nil {
		return apt{}, err
	}
	_, err = a.run(ctx, dir, "apt-get", "-q", "update")
	return a, err
}

// archiveURI returns the URI of the machine's Debian mirror; it has every suite.
func archiveURI(ctx context.Context) (string, error) {
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)",
		"Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main")
	if err != nil {
		return "", err
	}
	uri, _, _ := strings.Cut(out, "\n")
	if uri == "" {
		return "", errors.New("apt has no Debian archive; run apt-get update, on a Debian machine")
	}
	return uri, nil
}

func (a apt) run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+a.config)
	return collect(cmd)
}

var (
	imageName = regexp.MustCompile(`\blinux-image-[0-9][^ ,]*`)
	partName  = regexp.MustCompile(`\blinux-(?:binary|modules)-[0-9][^ ,]*`)
)

// kernelPackages returns the packages of the suite's kernel. An older kernel is one package. A newer kernel is an empty package,
// which depends on the packages with the kernel and the modules.
func (a apt) kernelPackages(ctx context.Context) ([]string, error) {
	whole := "linux-image-" + a.arch.name
	meta, err := a.run(ctx, "", "apt-cache", "show", "--no-all-versions", whole)
	if err != nil {
		return nil, err
	}
	name := imageName.FindString(depends(meta))
	if name == "" {
		return nil, fmt.Errorf("%s does not depend on a linux-image package", whole)
	}
	about, err := a.run(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return nil, err
	}
	return append([]string{name}, partName.FindAllString(depends(about), -1)...), nil
}

// downloadWhole downloads packages with all that they depend on, and returns the directory with them.
func (a apt) downloadWhole(ctx context.Context, packages []string) (dir string, err error) {
	// Nothing is installed: there is no system whose state could matter.
	_, err = a.run(ctx, a.dir, "apt-get", append([]string{"-q", "-y", "--download-only", "--no-install-recommends", "install"}, packages...)...)
	return filepath.Join(a.dir, "cache/archives"), err
}

// depends returns the dependencies that a package's description lists.
func depends(about string) string {
	for line := range strings.Lines(about) {
		if list, found := strings.CutPrefix(line, "Depends: "); found {
			return strings.TrimSpace(list)
		}
	}
	return ""
}

// unpack extracts the files that a guest needs from a package.
func unpack(ctx context.Context, file, dir string, place func(name string) string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	failed := extract(out, dir, place)
	if failed != nil {
		cmd.Process.Kill()
	}
	if err := cmd.Wait(); err != nil && failed == nil {
		failed = fmt.Errorf("%w: %s", err, complaint.Bytes())
	}
	return failed
}

func extract(archive io.Reader, dir string, place func(name string) string) error {
	for in := tar.NewReader(archive); ; {
		header, err := in.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := place(header.Name)
		if name == "" || header.Typeflag != tar.TypeReg && header.Typeflag != tar.TypeSymlink {
			continue
		}
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if header.Typeflag == tar.TypeSymlink {
			err = os.Symlink(header.Linkname, name)
		} else {
			err = writeFile(name, in, header.FileInfo().Mode())
		}
		if err != nil {
			return err
		}
	}
}

func writeFile(name string, content io.Reader, mode fs.FileMode) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode.Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}

// guestModules matches the modules for networks without network cards other than virtio's, and the modules that they depend on.
var guestModules = regexp.MustCompile(
	`^kernel/(net|lib|crypto|arch/[^/]+/crypto|drivers/virtio|drivers/net/(bonding|ppp|slip|vxlan|wireguard|[^/]+$))`)

// place returns the path in an image for a file of a package; "": a guest does not need the file.
func place(name string) string {
	name = strings.TrimPrefix(path.Clean(name), "usr/")
	if strings.HasPrefix(name, "boot/vmlinuz-") {
		return kernelFile
	}
	inside, found := strings.CutPrefix(name, "lib/modules/")
	if !found {
		return ""
	}
	_, file, _ := strings.Cut(inside, "/")
	if file == kernelFile {
		return kernelFile
	}
	if !guestModules.MatchString(file) && !strings.HasPrefix(file, "modules.") {
		return ""
	}
	return path.Join(moduleRoot, "usr/lib/modules", inside)
}

// placeProgram is place for the packages with programs. Programs and libraries are needed; all are below usr, as in Debian today.
func placeProgram(name string) string {
	name = strings.TrimPrefix(path.Clean(name), "usr/")
	for _, dir := range []string{"bin/", "sbin/", "lib/"} {
		if strings.HasPrefix(name, dir) {
			return path.Join(moduleRoot, "usr", name)
		}
	}
	return ""
}

// output runs a command and returns its standard output. It is an error if the command fails.
func output(ctx context.Context, name string, args ...string) (string, error) {
	return collect(exec.CommandContext(ctx, name, args...))
}

func collect(cmd *exec.Cmd) (string, error) {
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, &complaint)
	}
	return out.String(), nil
}
