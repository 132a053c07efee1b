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
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/mapstest"
	"hairpin/test/bench/measure"
	"hairpin/test/lab"
)

var scrape = scenario{
	number: 10, name: "Many scrapes, and clients of the metrics that do not read and come back",
	demanded: fmt.Sprintf("every honest scrape succeeds; the daemon's memory grows by at most %d %%, and is at most %d %% more afterwards; 0 datagrams are lost, and the program takes no longer for a packet", scrapeGrowth, scrapeRest),
	run:      scrapeOften,
}

const (
	scrapeGrowth   = 50 // %
	scrapeRest     = 10 // %
	fewForwards    = 10_000
	manyForwards   = 65_000
	scrapers       = 2 // as two Prometheus servers
	slowClients    = 100
	metricsAddress = "127.0.0.1:9845"
)

func scrapeOften(t *trial) figures {
	sizes := []int{fewForwards}
	if t.scale > short {
		sizes = append(sizes, manyForwards)
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
	config := strings.Builder{}
	for i := range forwards - 1 {
		fmt.Fprintf(&config, "[[forward]]\nname = \"forward-%d\"\nprotocol = [\"tcp\"]\nport = \"%d\"\nto = \"%s\"\n\n", i, i+1, lab.Server)
	}
	fmt.Fprintf(&config, "[[forward]]\nname = \"dns\"\nprotocol = [\"udp\"]\nport = \"%d\"\nto = \"%s:5353\"\n", flowPort, lab.Server)
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

	var returns atomic.Int64
	stop := attackMetrics(n, &returns)
	// Each slow client has come back about once: they now use all kinds of requests.
	lab.Eventually(t, lab.Patience, func() error {
		if came := returns.Load(); came < slowClients {
			return fmt.Errorf("slow clients came back %d times only", came)
		}
		return nil
	})
	each := t.count(1, 5)
	succeeded, beside := together(each)
	_, most := hp.Memory()
	stop()

	t.none(scrapers*each-succeeded, fmt.Sprintf("honest scrapes failed, %d forwards", forwards))
	if most > idle+idle*scrapeGrowth/100 {
		t.Errorf("%d forwards: the daemon had %d MiB, was %d MiB when idle", forwards, most>>20, idle>>20)
	}
	// The runtime gives memory back in the background.
	var after int
	lab.Eventually(t, 2*lab.Patience, func() error {
		if after, _ = hp.Memory(); after > idle+idle*scrapeRest/100 {
			return fmt.Errorf("%d forwards: the daemon has %d MiB after the attack, had %d MiB", forwards, after>>20, idle>>20)
		}
		return nil
	})
	cost := ""
	if t.scale > short && forwards == fewForwards {
		cost = t.costBeside(n, hp.Dir, func() { together(1) })
	}
	return fmt.Sprintf("%d forwards: %d of %d scrapes in at most %v (%v without attack) beside %d slow clients that came back %d times; %d MiB idle, at most %d MiB, %d MiB afterwards%s",
		forwards, succeeded, scrapers*each, beside, alone, slowClients, returns.Load(), idle>>20, most>>20, after>>20, cost)
}

// attackMetrics has slow clients come, until stop is called.
func attackMetrics(n *lab.Network, returns *atomic.Int64) (stop func()) {
	end := make(chan struct{})
	var attack sync.WaitGroup
	for i := range slowClients {
		attack.Go(func() { slowClient(n, i, end, returns) })
	}
	return func() {
		close(end)
		attack.Wait()
	}
}

const (
	// scrapeFlow is the rate of packets, in datagrams a second. It leaves time of the processors for the scrapes.
	scrapeFlow  = 4_000
	scrapePair  = 20 // pairs of slices, as many as test/bench has
	scrapeSlice = time.Second / 2
)

// costBeside compares the time that the program takes for a packet, with and without scrapes, in slices that alternate, and returns the
// figure. Scrapes read the maps that the program writes, so this time says whether they hinder the program. The processors' time that
// scrapes take is no part of it: packets come before processes. Two slices without scrapes say what such a comparison can tell apart.
func (t *trial) costBeside(n *lab.Network, dir string, scrape func()) string {
	t.Helper()
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	program, err := ebpf.LoadPinnedProgram(filepath.Join(dir, "datapath/programs/hairpin_tc"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	runs := func() (time.Duration, uint64) {
		t.Helper()
		s, err := program.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return s.Runtime, s.RunCount
	}

	f := t.newFlow(n, scrapeFlow)
	slice := func() float64 {
		t.Helper()
		r := f.begin()
		time0, count0 := runs()
		r.wait(scrapeSlice)
		time1, count1 := runs()
		t.none(r.end().lost, "datagrams lost beside scrapes")
		if count1 == count0 {
			t.Fatal("the program did not run")
		}
		return float64(time1-time0) / float64(count1-count0)
	}
	var quiet, again, beside []float64
	for i := range scrapePair {
		first, second := slice(), slice()
		if i%2 == 1 { // what follows the attack may differ: each of the two is as often the first
			first, second = second, first
		}
		quiet, again = append(quiet, first), append(again, second)
		end := attackMetrics(n, new(atomic.Int64))
		var scraping sync.WaitGroup
		scraping.Go(scrape)
		beside = append(beside, slice())
		scraping.Wait()
		end()
		t.progress(i+1, scrapePair, "pairs of slices with and without scrapes")
	}
	ratio, same := measure.SpreadOf(measure.Ratios(beside, quiet)), measure.SpreadOf(measure.Ratios(again, quiet))
	aim := measure.Aim{Value: 1, AtMost: true}
	if aim.Judge(ratio, 2*same.Distance()) == measure.Missed {
		t.Errorf("the time of a packet beside scrapes is %.3f [%.3f, %.3f] of that without; without and without: [%.3f, %.3f]",
			ratio.Median, ratio.Low, ratio.High, same.Low, same.High)
	}
	return fmt.Sprintf("; time of a packet beside scrapes %.3f [%.3f, %.3f], A/A %.3f [%.3f, %.3f]",
		ratio.Median, ratio.Low, ratio.High, same.Median, same.Low, same.High)
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

// requests are what slow clients send before they wait, one after the other.
var requests = []string{
	"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
	"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n",
	"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ",
	"GET /api/v1/status?limit=500 HTTP/1.1\r\nHost: localhost\r\n\r\n",
	"",
}

// slowClient sends a request, does not read the answer, and comes back with the next request when it is cut off, until stop is closed. If
// one of the requests could keep its connection, all slow clients would end with this request, and take all connections.
func slowClient(n *lab.Network, first int, stop <-chan struct{}, returns *atomic.Int64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := first; ; i++ {
		conn, err := dialMetrics(n)
		if err == nil {
			conn.(*net.TCPConn).SetReadBuffer(1)
			_, err = io.WriteString(conn, requests[i%len(requests)])
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
