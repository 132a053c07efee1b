// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type healthFake struct{ healthy, ready error }

func (h *healthFake) Healthy() error { return h.healthy }
func (h *healthFake) Ready() error   { return h.ready }

const patience = 10 * time.Second

// tightLimits are short enough to be met in a test.
var tightLimits = serverLimits{
	header: 200 * time.Millisecond, read: patience, write: patience,
	idle: 200 * time.Millisecond, stop: 100 * time.Millisecond,
	headerBytes: 4 << 10, bodyBytes: 1 << 10, connections: 2, scrapes: 1,
}

func serveTest(t *testing.T, health health, collectors ...prometheus.Collector) *metricsServer {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors...)
	s, err := startMetrics("127.0.0.1:0", metricsHandler(registry, health, tightLimits, log), tightLimits, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func dial(t *testing.T, s *metricsServer) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestMetricsPages(t *testing.T) {
	health := &healthFake{}
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "hairpin_test"})
	s := serveTest(t, health, gauge)
	for _, c := range []struct {
		method, path   string
		healthy, ready error
		code           int
		body           string
	}{
		{"GET", "/metrics", nil, nil, 200, "hairpin_test 0"},
		{"GET", "/-/healthy", nil, errors.New("starting"), 200, "ok"},
		{"GET", "/-/ready", nil, errors.New("starting"), 503, "starting"},
		{"GET", "/-/ready", nil, nil, 200, "ok"},
		{"GET", "/-/healthy", errors.New("stuck"), nil, 503, "stuck"},
		{"POST", "/metrics", nil, nil, 405, ""},
		{"GET", "/", nil, nil, 404, ""},
		{"GET", "/debug/pprof/", nil, nil, 404, ""},
	} {
		t.Run(c.method+c.path, func(t *testing.T) {
			health.healthy, health.ready = c.healthy, c.ready
			request, err := http.NewRequest(c.method, "http://"+s.address()+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, _ := io.ReadAll(response.Body)
			if response.StatusCode != c.code || !strings.Contains(string(body), c.body) {
				t.Errorf("%s: %q, want %d and %q", response.Status, body, c.code, c.body)
			}
		})
	}
	http.DefaultClient.CloseIdleConnections()
}

// A client that stalls at any point of a request, or stays after one, is cut off.
func TestMetricsClientThatStalls(t *testing.T) {
	for name, sent := range map[string]string{
		"before the request": "",
		"in the header":      "GET /metrics HTTP/1.1\r\nHost: x\r\n",
		"after a request":    "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, serveTest(t, &healthFake{}))
			if _, err := io.WriteString(conn, sent); err != nil {
				t.Fatal(err)
			}
			// Sooner than the limit for a whole request.
			conn.SetReadDeadline(time.Now().Add(tightLimits.read / 2))
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Errorf("not cut off: %v", err)
			}
		})
	}
}

func TestMetricsHugeHeader(t *testing.T) {
	conn := dial(t, serveTest(t, &healthFake{}))
	fmt.Fprintf(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	answer, _ := io.ReadAll(conn)
	if !strings.Contains(string(answer), "431") {
		t.Errorf("answer %.60q, want 431", answer)
	}
}

// More connections than there may be wait; they are served once others have gone.
func TestMetricsConnectionLimit(t *testing.T) {
	limits := tightLimits
	limits.header, limits.read, limits.idle = patience, patience, patience
	log := slog.New(slog.DiscardHandler)
	s, err := startMetrics("127.0.0.1:0", metricsHandler(prometheus.NewRegistry(), &healthFake{}, limits, log), limits, log)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const request = "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
	answered := func(conn net.Conn, within time.Duration) error {
		conn.SetReadDeadline(time.Now().Add(within))
		_, err := conn.Read(make([]byte, 1024))
		return err
	}
	var open []net.Conn
	for range limits.connections {
		conn := dial(t, s)
		io.WriteString(conn, request)
		if err := answered(conn, patience); err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	extra := dial(t, s)
	io.WriteString(extra, request)
	if answered(extra, 100*time.Millisecond) == nil {
		t.Error("one more than the limit was served")
	}
	open[0].Close()
	if err := answered(extra, patience); err != nil {
		t.Errorf("not served though another one left: %v", err)
	}
}

type slowCollector struct{ entered, leave chan struct{} }

func (c slowCollector) Describe(chan<- *prometheus.Desc) {}
func (c slowCollector) Collect(chan<- prometheus.Metric) {
	c.entered <- struct{}{}
	<-c.leave
}

func TestMetricsScrapesAtOnce(t *testing.T) {
	slow := slowCollector{make(chan struct{}, 1), make(chan struct{})}
	s := serveTest(t, &healthFake{}, slow)
	client := http.Client{Timeout: patience / 5}
	go client.Get("http://" + s.address() + "/metrics")
	<-slow.entered
	response, err := client.Get("http://" + s.address() + "/metrics")
	close(slow.leave)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("second scrape: %s, want 503", response.Status)
	}
}

// An address that no interface has yet can be listened at: the router boots.
func TestMetricsAddressToCome(t *testing.T) {
	s, err := startMetrics("192.0.2.77:0", http.NotFoundHandler(), tightLimits, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := startMetrics("127.0.0.1:http-no", http.NotFoundHandler(), tightLimits, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a port that does not exist was taken")
	}
}
