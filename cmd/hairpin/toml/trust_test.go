// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain sets the umask of administrators. With another umask, other users could write the tests' files,
// and hairpin would refuse the files.
func TestMain(m *testing.M) {
	unix.Umask(0o022)
	os.Exit(m.Run())
}

const minimal = "version = 1\ninterfaces.wan = [\"wan0\"]\n"

// trustPlace is a configuration with a drop-in, and a directory elsewhere for the targets of symbolic
// links.
type trustPlace struct {
	t                               *testing.T
	main, dropInDir, dropIn, beside string
}

func newTrustPlace(t *testing.T) *trustPlace {
	t.Helper()
	dir := t.TempDir()
	p := &trustPlace{
		t:         t,
		main:      filepath.Join(dir, "etc", "hairpin.toml"),
		dropInDir: filepath.Join(dir, "etc", DropInDir),
		beside:    filepath.Join(dir, "beside", "x.toml"),
	}
	p.dropIn = filepath.Join(p.dropInDir, "10-a.toml")
	writeFile(t, p.main, minimal)
	writeFile(t, p.dropIn, fmt.Sprintf(oneForward, "a", 1))
	writeFile(t, p.beside, fmt.Sprintf(oneForward, "b", 2))
	return p
}

func (p *trustPlace) chmod(path string, mode fs.FileMode) {
	p.t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		p.t.Fatal(err)
	}
}

func (p *trustPlace) link(target, path string) {
	p.t.Helper()
	if err := os.Symlink(target, path); err != nil {
		p.t.Fatal(err)
	}
}

// TestFilesOfOthersAreRefused: files decide what runs as root, so files that other users could have written
// are refused.
func TestFilesOfOthersAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*trustPlace) string{ // returns the path that the error names
		"configuration, group":  func(p *trustPlace) string { p.chmod(p.main, 0o664); return p.main },
		"configuration, others": func(p *trustPlace) string { p.chmod(p.main, 0o646); return p.main },
		"drop-in":               func(p *trustPlace) string { p.chmod(p.dropIn, 0o664); return p.dropIn },
		"drop-in directory":     func(p *trustPlace) string { p.chmod(p.dropInDir, 0o775); return p.dropInDir },
		"sticky directory":      func(p *trustPlace) string { p.chmod(p.dropInDir, 0o777|fs.ModeSticky); return p.dropInDir },
		"link to what others can write": func(p *trustPlace) string {
			p.chmod(p.beside, 0o666)
			path := filepath.Join(p.dropInDir, "20-b.toml")
			p.link(p.beside, path)
			return path
		},
		"link to a directory that others can write": func(p *trustPlace) string {
			if err := os.Rename(p.dropInDir, p.dropInDir+".there"); err != nil {
				p.t.Fatal(err)
			}
			p.link(p.dropInDir+".there", p.dropInDir)
			p.chmod(p.dropInDir+".there", 0o777)
			return p.dropInDir
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newTrustPlace(t)
			if _, err := Load(p.main); err != nil {
				t.Fatalf("before: %v", err)
			}
			path := spoil(p)
			_, err := Load(p.main)
			if err == nil {
				t.Fatal("taken")
			}
			for _, want := range []string{path + " can be written by others", "(mode 0", "chmod go-w " + path} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
		})
	}
}

// TestEveryFileOfOthersIsNamed: the error names all files, so that an administrator can correct them at
// once.
func TestEveryFileOfOthersIsNamed(t *testing.T) {
	p := newTrustPlace(t)
	second := filepath.Join(p.dropInDir, "20-b.toml")
	writeFile(t, second, "")
	p.chmod(p.dropIn, 0o666)
	p.chmod(second, 0o666)
	_, err := Load(p.main)
	if err == nil || !strings.Contains(err.Error(), p.dropIn) || !strings.Contains(err.Error(), second) {
		t.Errorf("error %v, want both files in it", err)
	}
}

func TestFilesThatOthersOwnAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: sudo make test")
	}
	p := newTrustPlace(t)
	for _, path := range []string{p.main, p.dropInDir, p.dropIn} {
		if err := os.Chown(path, 4711, 0); err != nil {
			t.Fatal(err)
		}
		_, err := Load(p.main)
		if err == nil || !strings.Contains(err.Error(), path+" is owned by uid 4711") || !strings.Contains(err.Error(), "chown root "+path) {
			t.Errorf("%s: %v", path, err)
		}
		if err := os.Chown(path, 0, 4711); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(p.main); err != nil {
			t.Errorf("%s, of a group that only reads: %v", path, err)
		}
	}
}

// TestLinksOfRootAreFollowed: configurations may be links, for example into a version control directory.
func TestLinksOfRootAreFollowed(t *testing.T) {
	p := newTrustPlace(t)
	p.link(p.beside, filepath.Join(p.dropInDir, "20-b.toml"))
	if err := os.Rename(p.main, p.main+".there"); err != nil {
		t.Fatal(err)
	}
	p.link(p.main+".there", p.main)
	c, err := Load(p.main)
	if err != nil || len(c.Forwards) != 2 {
		t.Errorf("%d forwards, %v", len(c.Forwards), err)
	}
	// Files that are not read are not checked.
	p.chmod(filepath.Dir(p.beside), 0o777)
	writeFile(t, filepath.Join(p.dropInDir, "README"), "")
	p.chmod(filepath.Join(p.dropInDir, "README"), 0o666)
	if _, err := Load(p.main); err != nil {
		t.Error(err)
	}
}

// TestTemporariesAreNoDropIns: the temporary file of a killed writer is never read.
func TestTemporariesAreNoDropIns(t *testing.T) {
	p := newTrustPlace(t)
	for _, name := range []string{".50-cli.toml.123", ".50-cli.toml.", ".50-cli.toml"} {
		writeFile(t, filepath.Join(p.dropInDir, name), "rubbish")
	}
	if c, err := Load(p.main); err != nil || len(c.Forwards) != 1 {
		t.Errorf("%d forwards, %v", len(c.Forwards), err)
	}
}
