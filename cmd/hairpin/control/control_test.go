// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type answers struct{ changed chan Changed }

func (answers) Reload(context.Context) (Reload, error) {
	return Reload{Code: 3, Errors: []string{"no"}}, nil
}
func (answers) Status() Status      { return Status{Apart: "why"} }
func (a answers) Changed(c Changed) { a.changed <- c }

func TestAnswers(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "new", "control")
	if _, err := AskReload(ctx, path); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("no socket: %v", err)
	}
	// A killed daemon leaves its socket.
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	if _, err := AskReload(ctx, path); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("a socket of nobody: %v", err)
	}
	told := answers{make(chan Changed, 1)}
	s, err := Listen(path, told)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if reload, err := AskReload(ctx, path); err != nil || reload.Done || reload.Code != 3 || len(reload.Errors) != 1 {
		t.Errorf("%+v, %v", reload, err)
	}
	if status, err := AskStatus(ctx, path); err != nil || status.Apart != "why" {
		t.Errorf("%+v, %v", status, err)
	}
	want := Changed{Command: "forward del web", Login: "anna"}
	if err := TellChanged(ctx, path, want); err != nil {
		t.Error(err)
	}
	want.UID = os.Geteuid() // the kernel's word, whatever the command says
	if got := <-told.changed; got != want {
		t.Errorf("told %+v, want %+v", got, want)
	}
	if err := TellChanged(ctx, path, Changed{Command: strings.Repeat("x", maxChanged)}); err == nil {
		t.Error("a command of any length is taken")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
	if _, err := Listen("/proc/none/control", answers{}); err == nil {
		t.Error("a socket in /proc")
	}
}
