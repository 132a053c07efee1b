// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"hairpin/cmd/hairpin/router"
	"hairpin/cmd/hairpin/statuspage"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// tablesFake has forwards without traffic. A read of the totals waits for wait.
type tablesFake struct {
	wait     <-chan struct{}
	forwards []rule.Forward
}

func (f tablesFake) Settings() (config.Config, error)                       { return config.Config{}, nil }
func (f tablesFake) CountConnections(rule.Selector) (c maps.Count, e error) { return c, e }
func (f tablesFake) Counters() ([]maps.Counter, error)                      { return nil, nil }
func (f tablesFake) ConnectionsLimit() uint32                               { return 1 }
func (f tablesFake) EachForward(visit func(*rule.Forward) bool) error {
	for i := range f.forwards {
		visit(&f.forwards[i])
	}
	return nil
}
func (f tablesFake) ForwardTotals() (map[string]maps.Totals, error) {
	if f.wait != nil {
		<-f.wait
	}
	return nil, nil
}

// servePage serves the page with everything that the daemon serves.
func servePage(t *testing.T, limits serverLimits, tables statuspage.Tables) *metricsServer {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	handler := listenerHandler(statuspage.Options{
		Tables: tables, Ports: func() []router.Port { return nil }, Apart: func() string { return "" }, Log: log,
		Fresh: statuspage.DefaultFresh, Kept: statuspage.DefaultKept, DoctorPause: statuspage.DefaultDoctorPause,
	}, metricsHandler(pageOf(), &healthFake{}, limits), limits)
	s, err := startMetrics(place{listen: "127.0.0.1:0"}, handler, limits, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var pagePaths = []string{"/", "/page.js", "/api/v1/status"}

// TestPageBesideMetrics: the listener serves the page, and everything that it served before.
func TestPageBesideMetrics(t *testing.T) {
	s := servePage(t, defaultLimits, tablesFake{})
	for path, code := range map[string]int{"/": 200, "/page.js": 200, "/page.css": 200, "/api/v1/status": 200, "/metrics": 200, "/-/healthy": 200, "/-/ready": 200,
		"/debug/pprof/": 404, "/api": 404, "/page": 404} {
		response, err := http.Get("http://" + s.address() + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != code {
			t.Errorf("%s: %s, want %d", path, response.Status, code)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestPageOfHostileClients: the paths of the page have the limits of the metrics on header, body and time, and refuse foreign hosts.
func TestPageOfHostileClients(t *testing.T) {
	for _, path := range pagePaths {
		for name, c := range map[string]struct{ request, answer string }{
			"huge header":    {"Host: localhost\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "HTTP/1.1 431 "},
			"body":           {"Host: localhost\r\nContent-Length: 2000\r\n\r\n", "HTTP/1.1 413 "},
			"endless body":   {"Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 413 "},
			"slow header":    {"Host: localhost\r\nX: ", ""},
			"foreign host":   {"Host: evil.example\r\nConnection: close\r\n\r\n", "HTTP/1.1 403 "},
			"an honest host": {"Host: localhost\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 "},
		} {
			t.Run(name+" "+path, func(t *testing.T) {
				conn := dial(t, servePage(t, tightLimits, tablesFake{}))
				fmt.Fprintf(conn, "GET %s HTTP/1.1\r\n%s", path, c.request)
				// This must happen before the limit for a whole request.
				conn.SetReadDeadline(time.Now().Add(tightLimits.read / 2))
				answer, err := io.ReadAll(conn)
				if !strings.HasPrefix(string(answer), c.answer) || c.answer == "" && (err != nil || len(answer) > 0) {
					t.Errorf("answer %.60q, %v; want %q", answer, err, c.answer)
				}
			})
		}
	}
}

// TestScrapeBesideThePage: a scrape is answered while an answer of the page takes long.
func TestScrapeBesideThePage(t *testing.T) {
	wait := make(chan struct{})
	s := servePage(t, defaultLimits, tablesFake{wait: wait})
	for range 8 {
		fmt.Fprint(dial(t, s), "GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, path := range []string{"/metrics", "/-/healthy", "/"} {
		response, err := client.Get("http://" + s.address() + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
	close(wait)
}

// TestPageBesideStalledClients: every path is answered although more clients than the server has connections for ask for the status, do not
// read it, and come back when they are cut off.
func TestPageBesideStalledClients(t *testing.T) {
	limits := defaultLimits
	limits.connections, limits.write, limits.stall = 20, 10*patience, 20*time.Millisecond
	forwards := make([]rule.Forward, 500)
	for i := range forwards {
		forwards[i] = rule.Forward{Name: fmt.Sprint("forward-", i), Comment: strings.Repeat("a long comment ", 200)}
	}
	s := servePage(t, limits, tablesFake{forwards: forwards})
	besideStalledClients(t, s, 2*limits.connections, "/api/v1/status?limit=500", "/metrics", "/", "/api/v1/status?limit=1")
}
