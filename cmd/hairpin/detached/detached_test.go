// SPDX-License-Identifier: Apache-2.0

package detached

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test's program is also the process that Start starts: its arguments say what it does.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "detached" {
		os.Exit(beDetached(os.Args[2]))
	}
	os.Exit(m.Run())
}

// beDetached writes the session of this process into a file, and stays until the file is gone.
func beDetached(path string) int {
	if path == "fails" {
		return 1
	}
	session, err := unix.Getsid(0)
	if err == nil {
		err = os.WriteFile(path+".new", []byte(fmt.Sprint(session, os.Getpid())), 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = Ready()
	}
	if err != nil {
		return 1
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); err != nil {
			return 0
		}
	}
	return 1
}

func TestProcessHasASessionOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	// A program that makes a scope runs the words after "--".
	scope := filepath.Join(dir, "scope")
	if err := os.WriteFile(scope, []byte("#!/bin/sh\necho \"$@\" > "+dir+"/words\nwhile [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{"no scope": {}, "scope": {Scope: scope}, "scope that fails": {Scope: "/bin/false"}} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "session")
			o.Args = []string{"detached", path}
			if err := Start(o); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(path) // it is there, because the process is ready
			if err != nil {
				t.Fatal(err)
			}
			session, pid, _ := strings.Cut(string(text), " ")
			own, err := unix.Getsid(0)
			if err != nil || session == strconv.Itoa(own) || session != pid {
				t.Errorf("session %s of process %s, this one has session %d, %v", session, pid, own, err)
			}
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		})
	}
	if words, err := os.ReadFile(dir + "/words"); err != nil || !strings.HasPrefix(string(words), "--scope --quiet --collect -- ") {
		t.Errorf("%q, %v", words, err)
	}
}

func TestProcessThatFails(t *testing.T) {
	if err := Start(Options{Args: []string{"detached", "fails"}}); err == nil || !strings.Contains(err.Error(), "did not begin its work") {
		t.Error(err)
	}
	if err := start([]string{"/does/not/exist"}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
