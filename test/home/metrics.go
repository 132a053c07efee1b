// SPDX-License-Identifier: Apache-2.0

package home

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"hairpin/test/lab"
)

// Get sends a request to the metrics server from the router itself: the server listens only on 127.0.0.1.
func Get(t *testing.T, n *lab.Network, path string) *http.Response {
	t.Helper()
	response, err := TryGet(t, n, path)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// TryGet is Get, but returns an error if there is no server.
func TryGet(t *testing.T, n *lab.Network, path string) (*http.Response, error) {
	response, err := HTTPClient(n.Router).Get("http://127.0.0.1:9845" + path)
	if err == nil {
		t.Cleanup(func() { response.Body.Close() })
	}
	return response, err
}

// HTTPClient returns a client on this host. It makes a connection for each request.
func HTTPClient(h *lab.Host) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			err = h.Do(func() (err error) {
				conn, err = net.Dial(network, address)
				return err
			})
			return conn, err
		},
	}}
}

// Scrape returns the sum of all samples of a metric that have the given labels.
func Scrape(t *testing.T, n *lab.Network, metric string, labels ...string) (total float64) {
	t.Helper()
	found := false
	lines := bufio.NewScanner(Get(t, n, "/metrics").Body)
next:
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name != metric && !strings.HasPrefix(name, metric+"{") {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(name, label) {
				continue next
			}
		}
		sample, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		total, found = total+sample, true
	}
	if !found && len(labels) == 0 {
		t.Fatalf("no metric %s", metric)
	}
	return total
}
