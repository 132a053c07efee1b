// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type healthFake struct{ healthy, ready error }

func (h *healthFake) Healthy() error { return h.healthy }
func (h *healthFake) Ready() error   { return h.ready }

const patience = 10 * time.Second

// tightLimits are short, so that tests can reach them.
var tightLimits = serverLimits{
	header: 200 * time.Millisecond, read: patience, write: patience,
	idle: 200 * time.Millisecond, stop: 100 * time.Millisecond,
	headerBytes: 4 << 10, bodyBytes: 1 << 10, connections: 2,
	stall: 100 * time.Millisecond, silence: 50 * time.Millisecond, sendBuffer: 4 << 10,
}

func serveTest(t *testing.T, health health, collectors ...prometheus.Collector) *metricsServer {
	t.Helper()
	return serveWithin(t, tightLimits, pageOf(collectors...), health)
}

// pageOf returns a page with the metrics of collectors and of one forward.
func pageOf(collectors ...prometheus.Collector) *metricsPage {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors...)
	return &metricsPage{gatherer: registry, log: slog.New(slog.DiscardHandler), forwards: func(w io.Writer) error {
		_, err := io.WriteString(w, "hairpin_forward_test{forward=\"web\"} 1\n")
		return err
	}}
}

func serveWithin(t *testing.T, limits serverLimits, page *metricsPage, health health) *metricsServer {
	t.Helper()
	s, err := startMetrics(place{listen: "127.0.0.1:0"}, metricsHandler(page, health, limits), limits, page.log)
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
		{"GET", "/metrics", nil, nil, 200, "# HELP hairpin_test \n# TYPE hairpin_test gauge\nhairpin_test 0\nhairpin_forward_test{forward=\"web\"} 1\n"},
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
			if kind := response.Header.Get("Content-Type"); c.path == "/metrics" && c.code == 200 && kind != "text/plain; version=0.0.4; charset=utf-8" {
				t.Errorf("it is of type %q", kind)
			}
			body, _ := io.ReadAll(response.Body)
			if response.StatusCode != c.code || !strings.Contains(string(body), c.body) {
				t.Errorf("%s: %q, want %d and %q", response.Status, body, c.code, c.body)
			}
		})
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestMetricsClientThatStalls: a client that stalls during a request, or stays connected after it, is
// disconnected.
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
			// This must happen before the limit for a whole request.
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

// TestMetricsBesideSilentClients: a scrape is answered although many clients are connected that send
// nothing, or never finish their request.
func TestMetricsBesideSilentClients(t *testing.T) {
	limits := defaultLimits
	limits.header, limits.read, limits.idle = 10*patience, 10*patience, 10*patience // so that no connection ends by a timeout
	for name, sent := range map[string]string{
		"silent":              "",
		"in the request line": "GET /met",
		"in the header":       "GET /metrics HTTP/1.1\r\nHost: x\r\n",
		"after a request":     "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := serveWithin(t, limits, pageOf(), &healthFake{})
			for range limits.connections {
				io.WriteString(dial(t, s), sent)
			}
			client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
			for range 3 {
				response, err := client.Get("http://" + s.address() + "/metrics")
				if err != nil {
					t.Fatal(err)
				}
				response.Body.Close()
				if response.StatusCode != http.StatusOK {
					t.Errorf("scrape: %s", response.Status)
				}
			}
		})
	}
}

// TestMetricsBesideChattyClients: a scrape is answered although all connections belong to clients that ask for something small before
// they count as silent, and come back when their connection ends.
func TestMetricsBesideChattyClients(t *testing.T) {
	limits := defaultLimits
	limits.silence = 10 * patience // so that no client is ever silent, however slow this machine is
	s := serveWithin(t, limits, pageOf(), &healthFake{})
	ctx, stop := context.WithCancel(t.Context())
	var attackers, connected sync.WaitGroup
	for range limits.connections {
		connected.Add(1)
		attackers.Go(func() {
			first := sync.OnceFunc(connected.Done)
			for ctx.Err() == nil {
				chatOnce(ctx, s.address(), first)
			}
			first()
		})
	}
	connected.Wait()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range 3 {
		response, err := client.Get("http://" + s.address() + "/metrics")
		if err != nil {
			t.Errorf("scrape %d: %v", i, err)
			continue
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("scrape %d: %s", i, response.Status)
		}
	}
	stop()
	attackers.Wait()
}

// chatOnce asks again and again on one connection, until the server ends it or ctx ends. It calls answered after each answer.
func chatOnce(ctx context.Context, address string, answered func()) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for reader := bufio.NewReader(conn); ; <-tick.C {
		if _, err := io.WriteString(conn, "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return
		}
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return
		}
		answered()
	}
}

// slowHealth answers /-/ready when leave is closed.
type slowHealth struct{ entered, leave chan struct{} }

func (h slowHealth) Healthy() error { return nil }
func (h slowHealth) Ready() error {
	h.entered <- struct{}{}
	<-h.leave
	return nil
}

// TestMetricsConnectionLimit: clients that are being answered stay connected when too many clients come. The next one waits for the end
// of an answer.
func TestMetricsConnectionLimit(t *testing.T) {
	limits := tightLimits
	limits.header, limits.read, limits.idle = patience, patience, patience
	slow := slowHealth{make(chan struct{}), make(chan struct{})}
	s := serveWithin(t, limits, pageOf(), slow)
	ask := func(path string) net.Conn {
		conn := dial(t, s)
		io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
		return conn
	}
	var open []net.Conn
	for range limits.connections {
		open = append(open, ask("/-/ready"))
		<-slow.entered
	}
	next := ask("/-/healthy")
	next.SetReadDeadline(time.Now().Add(limits.stop))
	if _, err := next.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more than the limit: %v, want it to wait", err)
	}
	next.SetReadDeadline(time.Now().Add(patience))
	close(slow.leave)
	for _, conn := range append(open, next) {
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Errorf("an answer: %v", err)
		}
	}
}

// TestMetricsBesideStalledClients: a scrape succeeds although more clients than the server has connections for ask for the page, do not
// read it, and come back when they are cut off.
func TestMetricsBesideStalledClients(t *testing.T) {
	const stalled = 40
	limits := defaultLimits
	limits.connections, limits.write, limits.stall = stalled/2, 10*patience, 20*time.Millisecond
	page := pageOf()
	page.forwards = func(w io.Writer) error {
		line := []byte(strings.Repeat("hairpin_forward_test 1\n", 1000))
		for range 200 {
			if _, err := w.Write(line); err != nil {
				return err
			}
		}
		return nil
	}
	besideStalledClients(t, serveWithin(t, limits, page, &healthFake{}), stalled, "/metrics", "/metrics")
}

// besideStalledClients asks for each of the paths, while clients ask for another path, do not read the answer, and come back when they are
// cut off.
func besideStalledClients(t *testing.T, s *metricsServer, stalled int, stalledPath string, paths ...string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var attackers sync.WaitGroup
	for range stalled {
		attackers.Go(func() {
			for ctx.Err() == nil {
				stallOnce(ctx, s.address(), stalledPath)
			}
		})
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(path string) error {
		response, err := client.Get("http://" + s.address() + path)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		if err == nil && response.StatusCode != http.StatusOK {
			err = errors.New(response.Status)
		}
		return err
	}
	for i := range 3 {
		for _, path := range paths {
			// On a busy machine this client stalls, too, and is cut off; it tries again, as Prometheus does.
			until := time.Now().Add(patience)
			err := ask(path)
			for err != nil && time.Now().Before(until) {
				err = ask(path)
			}
			if err != nil {
				t.Errorf("%s, time %d: %v", path, i, err)
			}
		}
	}
	stop()
	attackers.Wait()
}

// stallOnce asks for a path and does not read the answer, until the server cuts the connection or ctx ends.
func stallOnce(ctx context.Context, address, path string) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for _, err = io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err == nil; <-tick.C {
		_, err = conn.Write([]byte("G")) // fails if the connection is cut; otherwise it begins the next request
	}
}

// TestMetricsEncodings: a client gets gzip if it takes gzip, and the same text in any case.
func TestMetricsEncodings(t *testing.T) {
	page := pageOf()
	want := strings.Repeat("hairpin_forward_test 1\n", 100_000)
	page.forwards = func(w io.Writer) error {
		_, err := io.WriteString(w, want)
		return err
	}
	s := serveWithin(t, tightLimits, page, &healthFake{})
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	for accepted, encoding := range map[string]string{
		"": "", "gzip": "gzip", "deflate, gzip;q=0.5": "gzip", "gzip;q=0": "", "identity": "", "x-gzip, ;": "",
	} {
		request, err := http.NewRequest("GET", "http://"+s.address()+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept-Encoding", accepted)
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body := io.Reader(response.Body)
		if encoding == "gzip" {
			if body, err = gzip.NewReader(body); err != nil {
				t.Errorf("%q: %v", accepted, err)
				continue
			}
		}
		text, err := io.ReadAll(body)
		response.Body.Close()
		if got := response.Header.Get("Content-Encoding"); got != encoding || string(text) != want || err != nil {
			t.Errorf("%q: encoding %q, want %q; %d bytes, want %d; %v", accepted, got, encoding, len(text), len(want), err)
		}
	}
}

// TestMetricsPageThatFails: a client gets the whole page, or an error.
func TestMetricsPageThatFails(t *testing.T) {
	page := pageOf(prometheus.NewGauge(prometheus.GaugeOpts{Name: "hairpin_test"}))
	page.forwards = func(w io.Writer) error {
		io.WriteString(w, strings.Repeat("hairpin_forward_test 1\n", 10_000))
		return errors.New("no such table")
	}
	s := serveWithin(t, tightLimits, page, &healthFake{})
	for _, compressed := range []bool{true, false} {
		client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: !compressed}}
		response, err := client.Get("http://" + s.address() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusInternalServerError || !strings.Contains(string(text), "no such table") {
			t.Errorf("compressed %v: %s, %.60q, %v; want 500 and the cause", compressed, response.Status, text, err)
		}
	}
}

// TestMetricsAddressToCome: the server can listen on an address that no interface has yet, as at boot.
func TestMetricsAddressToCome(t *testing.T) {
	s, err := startMetrics(place{listen: "192.0.2.77:0"}, http.NotFoundHandler(), tightLimits, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := startMetrics(place{listen: "127.0.0.1:http-no"}, http.NotFoundHandler(), tightLimits, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a port that does not exist was taken")
	}
}
