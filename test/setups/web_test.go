// SPDX-License-Identifier: Apache-2.0

package setups

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// serveWeb serves HTTP on an address of a host until the test ends. The answer says which server it is, and which client it sees.
func serveWeb(t *testing.T, h *lab.Host, address, name string) {
	t.Helper()
	var listener net.Listener
	if err := h.Do(func() (err error) {
		listener, err = net.Listen(map[bool]string{false: "tcp4", true: "tcp6"}[strings.HasPrefix(address, "[")], address)
		return err
	}); err != nil {
		t.Fatalf("%s: listen on %s: %v", h.Name, address, err)
	}
	t.Cleanup(func() { listener.Close() })
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			client = err.Error()
		}
		fmt.Fprint(w, saysTo(name, client))
	}))
}

// saysTo is the answer of the server with this name to a client.
func saysTo(name, client string) string { return name + " sees " + client }

// answer is what the server at an address says to a host.
func answer(h *lab.Host, address string) (string, error) {
	return answerWithin(h, address, lab.Patience)
}

// answerWithin is answer with another time limit.
func answerWithin(h *lab.Host, address string, limit time.Duration) (string, error) {
	client := home.HTTPClient(h)
	client.Timeout = limit
	defer client.CloseIdleConnections()
	response, err := client.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// wantAnswer checks what the server at an address says to a host.
func wantAnswer(t *testing.T, h *lab.Host, address, want string) {
	t.Helper()
	if got, err := answer(h, address); err != nil || got != want {
		t.Errorf("%s asks %s: %q, %v, want %q", h.Name, address, got, err, want)
	}
}
