// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	me       = 4711
	stranger = 4712
)

func TestWhoMayOwnAndWrite(t *testing.T) {
	for _, c := range []struct {
		name        string
		mode        fs.FileMode
		owner, self int
		want        []string // words of the error; nil if the file is accepted
	}{
		{"root's, read by root", 0o644, 0, 0, nil},
		{"root's, secret", 0o600, 0, 0, nil},
		{"root's, executable", 0o755, 0, 0, nil},
		{"root's, read by a user", 0o644, 0, me, nil},
		{"a user's own", 0o640, me, me, nil},
		{"a user's, read by root", 0o600, stranger, 0, []string{"/x", "owned by uid 4712", "must be owned by root,", "chown root /x"}},
		{"a user's, read by another", 0o600, stranger, me, []string{"owned by uid 4712", "root or uid 4711", "chown root /x"}},
		{"group-writable", 0o664, 0, 0, []string{"/x", "mode 0664", "chmod go-w /x"}},
		{"writable by others", 0o646, 0, 0, []string{"mode 0646", "chmod go-w /x"}},
		{"a user's own, group-writable", 0o664, me, me, []string{"mode 0664", "chmod go-w /x"}},
		{"written by group alone", 0o620, 0, 0, []string{"mode 0620"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := check("/x", c.mode, c.owner, c.self)
			if c.want == nil {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if err == nil {
				t.Fatal("taken")
			}
			for _, word := range c.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q lacks %q", err, word)
				}
			}
		})
	}
}

// TestRefusalNamesTheUser: the error has the owner's name if the system knows the name.
func TestRefusalNamesTheUser(t *testing.T) {
	err := check("/x", 0o600, me, 0)
	if err == nil || !strings.Contains(err.Error(), "uid 4711") {
		t.Errorf("an unknown user: %v", err)
	}
	if got := userName(0); got != "root (uid 0)" {
		t.Errorf("user 0 is %q", got)
	}
}

func TestCheckLooksAtTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
	look := func() error {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return Check(path, info)
	}
	if err := look(); err != nil {
		t.Errorf("a file of one's own: %v", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := look(); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "mode 0666") {
		t.Errorf("a file that all can write: %v", err)
	}
}
