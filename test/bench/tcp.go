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
		case nameHairTC:
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

// requests measures TCP connections with one request each: connect, request, response, close.
func (b *bench) requests() {
	seconds := b.rounds(3, 1)
	homes := b.homes(nameDirect, nameNftables, nameHairTC)
	var tasks []task
	for _, h := range homes {
		h.serveHTTP()
		tasks = append(tasks, task{h.name, func() float64 { return h.wrk(seconds) }})
	}
	b.interleave(1, tasks)
	rates := b.named(taskRequests, "1/s", homes, b.interleave(b.rounds(8, 2), tasks))
	b.report.add(atLeast("TCP connect-request-response-close, hairpin TC, against nftables", "x", 1.15,
		measure.SpreadOf(measure.Ratios(rates[nameHairTC], rates[nameNftables])),
		fmt.Sprintf("%.0f/s, %s %.0f/s, direct %.0f/s", measure.SpreadOf(rates[nameHairTC]).Median, nameNftables,
			measure.SpreadOf(rates[nameNftables]).Median, measure.SpreadOf(rates[nameDirect]).Median)))
}

// named adds the values to the report, and returns them by the name of their home.
func (b *bench) named(what, unit string, homes []*home, values [][]float64) map[string][]float64 {
	out := make(map[string][]float64)
	for i, h := range homes {
		out[h.name] = values[i]
		b.report.sample(what, h.name, unit, values[i])
	}
	return out
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

// bulk measures the rate of one TCP connection, with the default offloads (GSO packets stay whole).
func (b *bench) bulk() {
	seconds := b.rounds(2, 1)
	homes := b.homes(nameDirect, nameNftables, nameHairTC)
	var tasks []task
	for _, h := range homes {
		h.net.Server.Start(pinned(serverCPU, "iperf3", "-s")...)
		h.listens("5201")
		tasks = append(tasks, task{h.name, func() float64 { return h.iperf(seconds) }})
	}
	b.interleave(1, tasks)
	rates := b.named(taskBulk, "Gbit/s", homes, b.interleave(b.rounds(10, 2), tasks))
	ours := rates[nameHairTC]
	for _, than := range []struct {
		name     string
		required float64
	}{{nameNftables, 1.0}, {nameDirect, 0.95}} {
		theirs := rates[than.name]
		b.report.add(atLeast("TCP bulk, hairpin TC, against "+than.name, "x", than.required, measure.SpreadOf(measure.Ratios(ours, theirs)),
			fmt.Sprintf("%.1f Gbit/s, %s %.1f Gbit/s", measure.SpreadOf(ours).Median, than.name, measure.SpreadOf(theirs).Median)))
	}
}

// iperf returns the received rate in Gbit/s.
func (h *home) iperf(seconds int) (rate float64) {
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
		r, err := h.net.Client.Try(pinned(clientCPU, "iperf3", "-J", "-c", host, "-p", port, "-t", strconv.Itoa(seconds))...)
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
	homes := b.homes(nameDirect, nameNftables, nameHairTC)
	var tasks []task
	halves, tails := make([][]float64, len(homes)), make([][]float64, len(homes))
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for i, h := range homes {
		c := h.pingPong(b.rounds(10000, 4000))
		tasks = append(tasks, task{h.name, func() float64 {
			sorted := c()
			halves[i] = append(halves[i], measure.Quantile(sorted, 0.5))
			tails[i] = append(tails[i], measure.Quantile(sorted, 0.99))
			return 0
		}})
	}
	b.interleave(b.rounds(15, 5), tasks)
	for _, q := range []struct {
		name   string
		values [][]float64
	}{{"p50", halves}, {"p99", tails}} {
		times := b.named("TCP request and response, "+q.name, "us", homes, q.values)
		b.report.add(atMost("latency "+q.name+", TCP request-response, hairpin TC, against nftables", "x", 1,
			measure.SpreadOf(measure.Ratios(times[nameHairTC], times[nameNftables])),
			fmt.Sprintf("%.1f us, %s %.1f us, direct %.1f us", measure.SpreadOf(times[nameHairTC]).Median, nameNftables,
				measure.SpreadOf(times[nameNftables]).Median, measure.SpreadOf(times[nameDirect]).Median)))
	}
}

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
