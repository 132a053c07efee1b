// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/bench/measure"
	"hairpin/test/lab"
)

// home is a LAN of hosts behind a router with one contender.
type home struct {
	site
	name string
	net  *lab.Network
}

const nameDirect = "direct"

// homes returns a home for each contender in the TCP measurements. On the direct path, packets do not go through the router.
func (b *bench) homes(names ...string) []*home {
	b.tb.Helper()
	var homes []*home
	for _, name := range names {
		n := lab.NewNetwork(b.tb)
		h := &home{site{b.tb, n.Router}, name, n}
		// br_netfilter would pass the switch's frames to iptables, which costs time.
		h.net.Switch.Sysctl("net/bridge/bridge-nf-call-iptables", "0")
		h.net.Router.Sysctl("net/ipv4/conf/all/send_redirects", "0")
		h.net.Router.Sysctl("net/ipv4/conf/lan0/send_redirects", "0")
		switch name {
		case nameNftables:
			h.nftables()
		case nameHairTC, nameSecondTC:
			h.hairpin("tc", hairpinOptions{})
		}
		homes = append(homes, h)
	}
	return homes
}

// target returns the address and port that this home's client connects to.
func (h *home) target(external, direct string) string {
	if h.name == nameDirect {
		return net.JoinHostPort(lab.Server, direct)
	}
	return net.JoinHostPort(lab.External, external)
}

// Client and server each run on one CPU.
const (
	clientCPU = 0
	serverCPU = 1
)

func pinned(cpu int, args ...string) []string {
	return append([]string{"taskset", "-c", strconv.Itoa(min(cpu, runtime.NumCPU()-1))}, args...)
}

func (h *home) listens(port string) {
	lab.Eventually(h.tb, lab.Patience, func() error {
		if h.net.Server.Run("ss", "-Hltn", "sport = :"+port) == "" {
			return errors.New("nobody listens on port " + port)
		}
		return nil
	})
}

const nginxConfig = `
daemon off;
master_process off;
user root;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen 8080 backlog=4096;
		location / { return 200 "Hello from the web server in the LAN\n"; }
	}
}
`

// serveHTTP runs nginx on the server.
func (h *home) serveHTTP() {
	h.tb.Helper()
	dir, err := os.MkdirTemp("", "hairpin-bench-")
	h.must("make directory", err)
	h.tb.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "nginx.conf")
	h.must("configure nginx", os.WriteFile(file, fmt.Appendf(nil, nginxConfig, dir), 0o644))
	h.net.Server.Start(pinned(serverCPU, "nginx", "-c", file, "-e", filepath.Join(dir, "error.log"))...)
	h.listens("8080")
}

// The A/A rows of TCP. All of these figures are wall time.
const (
	noiseRequests noise = "TCP connect-request-response-close, hairpin TC"
	noiseBulk     noise = "TCP bulk, hairpin TC"
	noiseHalf     noise = "latency p50, TCP request-response, hairpin TC"
	noiseTail     noise = "latency p99, TCP request-response, hairpin TC"
)

// Only the rate of bulk has an aim against the direct path.
var (
	tcDirect    = match{one: nameHairTC, than: nameDirect}
	tcpMatches  = []match{tcNftables, tcDirect.seldom(), sameTC}
	bulkMatches = []match{tcNftables, tcDirect, sameTC}
)

// tcpRace runs the matches of TCP, and returns the outcomes.
func (b *bench) tcpRace(what string, rounds int, homes []*home, matches []match, run func(h *home) float64) map[match]outcome {
	tasks := make(map[string]*task)
	for _, h := range homes {
		tasks[h.name] = &task{h.name, func() float64 { return run(h) }}
	}
	var list []duel
	for _, m := range matches {
		list = append(list, duel{tasks[m.one], tasks[m.than], m.rare})
	}
	one, than := b.duels(what, rounds, list)
	outcomes := make(map[match]outcome)
	for i, m := range matches {
		outcomes[m] = outcome{one[i], than[i]}
	}
	return outcomes
}

func (b *bench) tcpHomes() []*home {
	return b.homes(nameDirect, nameNftables, nameHairTC, nameSecondTC)
}

// inverse returns the ratios of a match whose values are rates: how many times as much contender one does as contender than.
func (o outcome) inverse() measure.Spread { return measure.SpreadOf(measure.Ratios(o.one, o.than)) }

// medians returns the median of hairpin and of each peer.
func medians(outcomes map[match]outcome, format string) string {
	value := func(values []float64) string { return fmt.Sprintf(format, measure.SpreadOf(values).Median) }
	direct, ok := outcomes[tcDirect]
	if !ok {
		direct = outcomes[tcDirect.seldom()]
	}
	return fmt.Sprintf("%s, %s %s, direct %s", value(outcomes[tcNftables].one), nameNftables,
		value(outcomes[tcNftables].than), value(direct.than))
}

// requests measures TCP connections with one request each: connect, request, response, close.
func (b *bench) requests() {
	homes := b.tcpHomes()
	for _, h := range homes {
		h.serveHTTP()
	}
	outcomes := b.tcpRace(taskRequests, b.rounds(22, 3), homes, tcpMatches, func(h *home) float64 { return h.wrk(1) })
	b.report.samples(taskRequests, "1/s", tcpMatches, outcomes)
	b.report.add(
		atLeast(string(noiseRequests)+", against nftables", "x", 1.15, outcomes[tcNftables].inverse(), medians(outcomes, "%.0f/s")).like(noiseRequests),
		same(noiseRequests, outcomes[sameTC].inverse(), pairOf(outcomes[sameTC], "%.0f/s")))
}

// pairOf returns the medians of a match of equal contenders.
func pairOf(o outcome, format string) string {
	return fmt.Sprintf(format+" and "+format, measure.SpreadOf(o.one).Median, measure.SpreadOf(o.than).Median)
}

var (
	wrkRate   = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkErrors = regexp.MustCompile(`Socket errors:.*|Non-2xx.*`)
)

// wrk returns the rate of requests per second. Each request uses a new connection.
func (h *home) wrk(seconds int) float64 {
	h.tb.Helper()
	out := h.net.Client.Run(pinned(clientCPU, "wrk", "-t1", "-c32", fmt.Sprintf("-d%ds", seconds),
		"-H", "Connection: close", "http://"+h.target("80", "8080")+"/")...)
	match := wrkRate.FindStringSubmatch(out)
	if match == nil || wrkErrors.MatchString(out) {
		h.tb.Fatalf("wrk, %s:\n%s", h.name, out)
	}
	rate, err := strconv.ParseFloat(match[1], 64)
	h.must("read rate of wrk", err)
	return rate
}

// bulkBytes is the length of a slice of bulk: half a second at 17 Gbit/s.
const bulkBytes = 1 << 30

// bulk measures the rate of one TCP connection, with the default offloads (GSO packets stay whole).
func (b *bench) bulk() {
	homes := b.tcpHomes()
	for _, h := range homes {
		h.net.Server.Start(pinned(serverCPU, "iperf3", "-s")...)
		h.listens("5201")
	}
	outcomes := b.tcpRace(taskBulk, b.rounds(22, 6), homes, bulkMatches, func(h *home) float64 { return h.iperf(bulkBytes) })
	b.report.samples(taskBulk, "Gbit/s", bulkMatches, outcomes)
	detail := medians(outcomes, "%.1f Gbit/s")
	b.report.add(
		atLeast(string(noiseBulk)+", against nftables", "x", 1.0, outcomes[tcNftables].inverse(), detail).like(noiseBulk),
		atLeast(string(noiseBulk)+", against direct", "x", 0.95, outcomes[tcDirect].inverse(), detail).like(noiseBulk),
		same(noiseBulk, outcomes[sameTC].inverse(), pairOf(outcomes[sameTC], "%.1f Gbit/s")))
}

// iperf returns the received rate in Gbit/s.
func (h *home) iperf(bytes int) (rate float64) {
	h.tb.Helper()
	host, port, err := net.SplitHostPort(h.target("5201", "5201"))
	h.must("find iperf3", err)
	// The iperf3 server runs one test at a time, and may not have finished the previous test.
	lab.Eventually(h.tb, lab.Patience, func() error {
		var report struct {
			Error string
			End   struct {
				Received struct {
					Rate float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		r, err := h.net.Client.Try(pinned(clientCPU, "iperf3", "-J", "-c", host, "-p", port, "-n", strconv.Itoa(bytes))...)
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
			return fmt.Errorf("%w\n%s%s", err, r.Stdout, r.Stderr)
		}
		if rate = report.End.Received.Rate / 1e9; report.Error != "" || rate == 0 {
			return fmt.Errorf("iperf3, %s: %s", h.name, report.Error)
		}
		return nil
	})
	return rate
}

// latency measures the round trip of one byte to the server and one byte back.
func (b *bench) latency() {
	homes := b.tcpHomes()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	trips := make(map[*home]func() []float64)
	for _, h := range homes {
		trips[h] = h.pingPong(b.rounds(5000, 2000))
	}
	// A slice has two results, so the tasks return the number of the slice.
	var slices []quantiles
	numbers := b.tcpRace("TCP request and response", b.rounds(24, 8), homes, tcpMatches, func(h *home) float64 {
		sorted := trips[h]()
		slices = append(slices, quantiles{measure.Quantile(sorted, 0.5), measure.Quantile(sorted, 0.99)})
		return float64(len(slices) - 1)
	})
	for _, q := range []struct {
		name  string
		noise noise
		of    func(quantiles) float64
	}{
		{"p50", noiseHalf, func(q quantiles) float64 { return q.half }},
		{"p99", noiseTail, func(q quantiles) float64 { return q.tail }},
	} {
		pick := func(numbers []float64) (values []float64) {
			for _, n := range numbers {
				values = append(values, q.of(slices[int(n)]))
			}
			return values
		}
		outcomes := make(map[match]outcome)
		for m, o := range numbers {
			outcomes[m] = outcome{pick(o.one), pick(o.than)}
		}
		b.report.samples("TCP request and response, "+q.name, "us", tcpMatches, outcomes)
		b.report.add(
			atMost(string(q.noise)+", against nftables", "x", 1, outcomes[tcNftables].inverse(), medians(outcomes, "%.1f us")).like(q.noise),
			same(q.noise, outcomes[sameTC].inverse(), pairOf(outcomes[sameTC], "%.1f us")))
	}
}

// quantiles are the median and the 99th percentile of a slice's round trips, in microseconds.
type quantiles struct{ half, tail float64 }

// pingPong connects, and returns a function that makes this many round trips and returns their sorted times in
// microseconds.
func (h *home) pingPong(times int) func() []float64 {
	h.tb.Helper()
	var l net.Listener
	h.must("listen", h.net.Server.Do(func() (err error) {
		l, err = net.Listen("tcp4", ":8080")
		return err
	}))
	var near net.Conn
	h.must("connect", h.net.Client.Do(func() (err error) {
		near, err = net.DialTimeout("tcp4", h.target("80", "8080"), lab.Patience)
		return err
	}))
	far, err := l.Accept()
	h.must("accept", err)
	client, server := h.blocking(near), h.blocking(far)
	h.tb.Cleanup(func() { l.Close(); client.Close() })
	go func() {
		defer server.Close()
		pin(serverCPU)
		answer(int(server.Fd()))
	}()
	return func() []float64 {
		took, err := ask(int(client.Fd()), times)
		h.must("request and response", err)
		return took
	}
}

// blocking returns the connection as a blocking file: the wake-ups of Go's poller cost more time than the router.
func (h *home) blocking(c net.Conn) *os.File {
	h.tb.Helper()
	f, err := c.(*net.TCPConn).File()
	h.must("take socket", err)
	h.must("close connection's other descriptor", c.Close())
	h.must("make socket block", unix.SetNonblock(int(f.Fd()), false))
	return f
}

// pin binds the goroutine and its thread to a CPU until the goroutine ends.
func pin(cpu int) {
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(min(cpu, runtime.NumCPU()-1))
	_ = unix.SchedSetaffinity(0, &one)
}

func answer(fd int) {
	one := make([]byte, 1)
	for {
		if n, err := unix.Read(fd, one); err != nil || n == 0 {
			return
		}
		if _, err := unix.Write(fd, one); err != nil {
			return
		}
	}
}

func ask(fd, times int) ([]float64, error) {
	type result struct {
		took []float64
		err  error
	}
	done := make(chan result)
	go func() {
		pin(clientCPU)
		one := make([]byte, 1)
		took := make([]float64, times)
		for i := range took {
			start := time.Now()
			_, err := unix.Write(fd, one)
			if err == nil {
				_, err = unix.Read(fd, one)
			}
			if err != nil {
				done <- result{nil, err}
				return
			}
			took[i] = float64(time.Since(start).Nanoseconds()) / 1000
		}
		slices.Sort(took)
		done <- result{took, nil}
	}()
	r := <-done
	return r.took, r.err
}
