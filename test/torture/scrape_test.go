// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/mapstest"
	"hairpin/test/lab"
)

var scrape = scenario{
	number: 10, name: "Many scrapes, and clients of the metrics that do not read and come back",
	demanded: fmt.Sprintf("every honest scrape succeeds; the daemon's memory stays below %d times that of idle, and is given back", scrapeGrowth),
	run:      scrapeOften,
}

const (
	scrapeGrowth   = 2
	scrapers       = 2 // as two Prometheus servers
	slowClients    = 100
	metricsAddress = "127.0.0.1:9845"
)

func scrapeOften(t *trial) figures {
	sizes := []int{10_000}
	if t.scale != short {
		sizes = append(sizes, 65_000)
	}
	var said []string
	for i, forwards := range sizes {
		said = append(said, t.scrapeMany(forwards))
		t.progress(i+1, len(sizes), "numbers of forwards")
	}
	return figures{measured: strings.Join(said, "; "), nftables: "no metrics"}
}

// scrapeMany scrapes a daemon of this many forwards, all of which have had traffic, and returns the figure.
func (t *trial) scrapeMany(forwards int) string {
	t.Helper()
	n := lab.NewNetwork(t)
	var config strings.Builder
	for i := range forwards {
		fmt.Fprintf(&config, "[[forward]]\nname = \"forward-%d\"\nprotocol = [\"tcp\"]\nport = \"%d\"\nto = \"%s\"\n\n", i, i+1, lab.Server)
	}
	hp := t.start(n, "tc", config.String())
	t.countTraffic(hp.Dir)
	client := http.Client{Timeout: lab.Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return dialMetrics(n) },
	}}
	// Scrapes at the same time, from here on at the end, too: then the daemon has what it needs for them.
	together := func(each int) (succeeded int, slowest time.Duration) {
		var count, longest atomic.Int64
		lab.Together(scrapers, func(int) {
			for range each {
				began := time.Now()
				if err := scrapeOnce(&client, forwards); err != nil {
					t.Logf("%d forwards: %v", forwards, err)
					continue
				}
				count.Add(1)
				for took := int64(time.Since(began)); ; {
					if before := longest.Load(); took <= before || longest.CompareAndSwap(before, took) {
						break
					}
				}
			}
		})
		return int(count.Load()), time.Duration(longest.Load()).Round(10 * time.Millisecond)
	}
	_, alone := together(1)
	idle, _ := hp.Memory()
	hp.ForgetPeak()

	stop := make(chan struct{})
	var attack sync.WaitGroup
	var returns atomic.Int64
	for i := range slowClients {
		attack.Go(func() { slowClient(n, requests[i%len(requests)], stop, &returns) })
	}
	each := t.count(2, 10)
	succeeded, beside := together(each)
	_, most := hp.Memory()
	close(stop)
	attack.Wait()

	t.none(scrapers*each-succeeded, fmt.Sprintf("honest scrapes failed, %d forwards", forwards))
	if limit := scrapeGrowth * idle; most > limit {
		t.Errorf("%d forwards: the daemon had %d MiB, was %d MiB when idle", forwards, most>>20, idle>>20)
	}
	// The runtime gives memory back in the background.
	var after int
	lab.Eventually(t, 2*lab.Patience, func() error {
		if after, _ = hp.Memory(); after > idle*5/4 {
			return fmt.Errorf("%d forwards: the daemon has %d MiB after the attack, had %d MiB", forwards, after>>20, idle>>20)
		}
		return nil
	})
	return fmt.Sprintf("%d forwards: %d of %d scrapes in at most %v (%v without attack) beside %d slow clients that came back %d times; %d MiB idle, at most %d MiB, %d MiB afterwards",
		forwards, succeeded, scrapers*each, beside, alone, slowClients, returns.Load(), idle>>20, most>>20, after>>20)
}

// countTraffic sets the counters of all forwards, so that each has its series in the metrics.
func (t *trial) countTraffic(dir string) {
	t.Helper()
	pages, err := ebpf.LoadPinnedMap(filepath.Join(dir, "datapath/maps", bpf.HairpinMapForwardStats), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	var counters bpf.HairpinForwardStats
	for path := range counters.Traffic {
		for direction := range counters.Traffic[path] {
			counters.Traffic[path][direction].Packets, counters.Traffic[path][direction].Bytes = 1_000_000, 1_000_000_000
		}
	}
	mapstest.FillStats(t, &bpf.HairpinObjects{HairpinMaps: bpf.HairpinMaps{ForwardStats: pages}}, counters)
}

// dialMetrics connects to the metrics server from the router itself.
func dialMetrics(n *lab.Network) (conn net.Conn, err error) {
	err = n.Router.Do(func() (err error) {
		conn, err = net.Dial("tcp", metricsAddress)
		return err
	})
	return conn, err
}

// scrapeOnce reads the whole page.
func scrapeOnce(client *http.Client, forwards int) error {
	response, err := client.Get("http://" + metricsAddress + "/metrics")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	size, err := io.Copy(io.Discard, response.Body)
	if err == nil && size < int64(forwards) {
		err = fmt.Errorf("the page has only %d bytes", size)
	}
	return err
}

// requests are what slow clients send before they wait.
var requests = []string{
	"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n",
	"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ",
	"",
}

// slowClient sends a request, does not read the answer, and comes back when it is cut off, until stop is closed.
func slowClient(n *lab.Network, request string, stop <-chan struct{}, returns *atomic.Int64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := dialMetrics(n)
		if err == nil {
			conn.(*net.TCPConn).SetReadBuffer(1)
			_, err = io.WriteString(conn, request)
		}
		for err == nil {
			select {
			case <-stop:
				conn.Close()
				return
			case <-tick.C:
			}
			_, err = io.WriteString(conn, "x") // fails if the server has cut it off
		}
		if conn != nil {
			conn.Close()
		}
		returns.Add(1)
		select {
		case <-stop:
			return
		default:
		}
	}
}
