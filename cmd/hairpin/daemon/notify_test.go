// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func managerSocket(t *testing.T) (*net.UnixConn, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, path
}

func TestNotifyManager(t *testing.T) {
	manager, path := managerSocket(t)
	if err := errors.Join(notifyManager("", "READY=1"), notifyManager(path, "READY=1\nSTATUS=reloaded")); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 100)
	n, err := manager.Read(message)
	if err != nil || string(message[:n]) != "READY=1\nSTATUS=reloaded" {
		t.Errorf("got %q, %v", message[:n], err)
	}
	if notifyManager(path+"-gone", "READY=1") == nil {
		t.Error("a socket that is not there was reached")
	}
}

// TestNotifyManagerThatDoesNotRead: a service manager that does not read its socket does not stop the
// daemon.
func TestNotifyManagerThatDoesNotRead(t *testing.T) {
	_, path := managerSocket(t)
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		err := notifyManager(path, "WATCHDOG=1")
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Error("the queue never got full")
}
