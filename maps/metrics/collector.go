// SPDX-License-Identifier: Apache-2.0

// Package metrics gives what a datapath has counted to Prometheus. It reads the maps through package maps, and changes nothing but the
// datapath's own counts of connections where an audit has found them wrong.
package metrics

import (
	"cmp"
	"context"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Options tell the collector what is not in the maps.
type Options struct {
	Version    string             // of this build
	Interfaces func() []Interface // the configured interfaces as they are now
}

// Interface is a configured interface, present or not.
type Interface struct {
	Name      string
	Index     int // 0 while it is absent
	Role      config.Role
	Mode      string // how the datapath is attached, or would be
	Attached  bool
	Addresses []netip.Addr
}

// Collector gives the metrics of a datapath, those of
// forwards by WriteForwards. Each Collect counts the connections anew, one at a time.
type Collector struct {
	tables  *maps.Tables
	options Options

	mu       sync.Mutex
	names    map[int]string // of interfaces by index, also of those that went
	counted  *maps.Census   // nil before the first Collect
	repaired uint64         // connections by which counts were corrected
	reloaded time.Time      // last time a configuration was taken
	reloadOK float64

	auditor *maps.Auditor // of Run alone
}

// New gives the metrics of tables. Run must be called too.
func New(tables *maps.Tables, options Options) *Collector {
	return &Collector{tables: tables, options: options, names: map[int]string{}, auditor: maps.NewAuditor(tables)}
}

// The metrics; no label carries an address or port of a client.
var (
	connections        = desc("connections", "Connections by state.", "state")
	connectionsLimit   = desc("connections_limit", "Connections that the table holds.")
	halfOpenEvicted    = desc("half_open_evicted_total", "Half-open connections that gave way to newer ones.")
	connectionsFixed   = desc("connections_repaired_total", "Connections by which the datapath's own count was wrong, and was corrected. It should stay 0.")
	displaced          = desc("established_displaced_total", "Established connections of other protocols than TCP that gave way to newer ones.")
	connectionsRefused = desc("connections_refused_total", "Openings that did not become connections, by reason.", "reason")
	packetsDropped     = desc("packets_dropped_total", "Packets dropped, by incoming interface and reason.", "interface", "reason")
	packetsPassed      = desc("packets_passed_total", "Packets of forwards left to the kernel or from XDP to TC, by incoming interface and reason.", "interface", "reason")
	icmpTranslated     = desc("icmp_errors_translated_total", "ICMP errors about packets of connections, translated and sent on.")
	icmpSent           = desc("icmp_errors_sent_total", "ICMP errors that the router made to tell why a packet was dropped, by incoming interface of the packet and reason.", "interface", "reason")
	fragmentsHeld      = desc("fragments_held_total", "Fragments that came before the first of their datagram and were kept until it arrives.")
	interfaceAttached  = desc("interface_attached", "1 if the datapath is attached to the interface, 0 if not.", "interface", "role", "mode")
	externalAddress    = desc("external_address_info", "Address that a WAN interface has and forwards listen on.", "interface", "address")
	reloadSuccessful   = desc("config_last_reload_successful", "1 if the last configuration that was read was taken, 0 if it was refused.")
	reloadTime         = desc("config_last_reload_success_timestamp_seconds", "When a configuration was taken last, in seconds since 1970.")
	buildInfo          = desc("build_info", "The running build.", "version", "goversion")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("hairpin_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		connections, connectionsLimit,
		halfOpenEvicted, displaced, connectionsFixed, connectionsRefused, packetsDropped, packetsPassed, icmpTranslated, icmpSent, fragmentsHeld,
		interfaceAttached, externalAddress, reloadSuccessful, reloadTime, buildInfo,
	} {
		descs <- d
	}
}

// Reloaded records that a configuration was taken, or refused.
func (c *Collector) Reloaded(taken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reloadOK = 0
	if taken {
		c.reloadOK, c.reloaded = 1, time.Now()
	}
}

// Run looks until ctx ends whether the datapath's own counts are right: once a minute, or as rarely as it takes to spend
// no more than a hundredth of a core's time. Errors go to report.
func (c *Collector) Run(ctx context.Context, report func(error)) {
	const pause, duty = time.Minute, 100
	for {
		start := time.Now()
		if err := c.audit(); err != nil {
			report(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(pause, duty*time.Since(start))):
		}
	}
}

func (c *Collector) audit() error {
	repaired, err := c.auditor.Step()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repaired += uint64(repaired)
	return err
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	s := scrape{metrics: metrics}
	var interfaces []Interface
	if c.options.Interfaces != nil {
		interfaces = c.options.Interfaces()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, link := range interfaces {
		if link.Index != 0 {
			c.names[link.Index] = link.Name
		}
	}
	s.gauge(buildInfo, 1, c.options.Version, runtime.Version())
	s.interfaces(interfaces)
	s.gauge(connectionsLimit, float64(c.tables.ConnectionsLimit()))
	s.reload(c)
	s.connections(c)
	s.packets(c.tables, c.names)
}

// scrape sends samples.
type scrape struct {
	metrics chan<- prometheus.Metric
}

func (s scrape) gauge(d *prometheus.Desc, value float64, labels ...string) {
	s.metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func (s scrape) counter(d *prometheus.Desc, value uint64, labels ...string) {
	s.metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
}

func (s scrape) interfaces(interfaces []Interface) {
	for _, link := range interfaces {
		attached := 0.0
		if link.Attached {
			attached = 1
		}
		s.gauge(interfaceAttached, attached, link.Name, link.Role.String(), link.Mode)
		for _, addr := range link.Addresses {
			if link.Role == config.RoleWAN && config.IsExternal(addr) {
				s.gauge(externalAddress, 1, link.Name, addr.String())
			}
		}
	}
}

func (s scrape) reload(c *Collector) {
	s.gauge(reloadSuccessful, c.reloadOK)
	if !c.reloaded.IsZero() {
		s.gauge(reloadTime, float64(c.reloaded.UnixMilli())/1000)
	}
}

func (s scrape) connections(c *Collector) {
	s.counter(connectionsFixed, c.repaired)
	if now, err := c.tables.Events(); err != nil {
		s.metrics <- prometheus.NewInvalidMetric(halfOpenEvicted, err)
	} else {
		s.counter(halfOpenEvicted, now.Evicted)
		s.counter(displaced, now.Displaced)
	}
	c.counted = nil // a count of an earlier scrape is not to stand for one that fails
	counted, err := c.tables.Census(rule.Selector{})
	if err != nil {
		s.metrics <- prometheus.NewInvalidMetric(connections, err)
		return
	}
	c.counted = counted
	s.gauge(connections, float64(counted.HalfOpen), maps.StateHalfOpen)
	s.gauge(connections, float64(counted.Established), maps.StateEstablished)
	s.gauge(connections, float64(counted.Closing), maps.StateClosing)
}

// packets sums the datapath's counters: an interface that came back with
// another number goes on under its name.
func (s scrape) packets(t *maps.Tables, interfaces map[int]string) {
	counters, err := t.Counters()
	if err != nil {
		s.metrics <- prometheus.NewInvalidMetric(packetsDropped, err)
		return
	}
	type series struct{ link, reason string }
	refused, held, translated := map[string]uint64{}, uint64(0), uint64(0)
	dropped, passed, told := map[series]uint64{}, map[series]uint64{}, map[series]uint64{}
	for _, counter := range counters {
		at := series{cmp.Or(interfaces[counter.Index], "unknown"), counter.Reason}
		switch counter.Verdict {
		case "refuse":
			refused[at.reason] += counter.Packets
			dropped[at] += counter.Packets
		case "drop":
			dropped[at] += counter.Packets
		case "pass", "defer":
			passed[at] += counter.Packets
		case "tell":
			told[at] += counter.Packets
		case "hold":
			held += counter.Packets
		case "send":
			if counter.Reason == "icmp_error" {
				translated += counter.Packets
			}
		}
	}
	s.counter(icmpTranslated, translated)
	s.counter(fragmentsHeld, held)
	for reason, packets := range refused {
		s.counter(connectionsRefused, packets, reason)
	}
	for d, all := range map[*prometheus.Desc]map[series]uint64{packetsDropped: dropped, packetsPassed: passed, icmpSent: told} {
		for at, packets := range all {
			s.counter(d, packets, at.link, at.reason)
		}
	}
}
