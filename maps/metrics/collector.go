// SPDX-License-Identifier: Apache-2.0

// Package metrics exports the datapath's counters to Prometheus. It reads the maps through package maps. It changes only
// one thing: wrong counts of connections in the datapath, which an audit found.
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

// Options has information for the collector that is not in the maps.
type Options struct {
	Version    string             // version of this build
	Interfaces func() []Interface // returns the current state of the configured interfaces
}

// Interface is a configured interface. It may be absent.
type Interface struct {
	Name      string
	Index     int // 0 if the interface is absent
	Role      config.Role
	Mode      string // mode of attaching; only used if attached
	Attached  bool
	Addresses []netip.Addr
}

// Collector exports the metrics of a datapath: Collect all but the metrics of forwards, WriteForwards the metrics of
// forwards. Each Collect walks the tables of connections. Concurrent calls of Collect wait for each other.
type Collector struct {
	tables  *maps.Tables
	options Options

	mu       sync.Mutex
	names    map[int]string // names of interfaces by index, also of removed interfaces
	counted  *maps.Census   // result of the last Collect; nil before the first Collect or after an error
	repaired uint64         // sum of the corrections of wrong counts, in connections
	reloaded time.Time      // when a configuration was last activated
	reloadOK float64        // 1: the last configuration was activated; 0: refused

	auditor *maps.Auditor // only Run uses it
}

// New returns a collector of the metrics of tables. The caller must also call Run.
func New(tables *maps.Tables, options Options) *Collector {
	return &Collector{tables: tables, options: options, names: map[int]string{}, auditor: maps.NewAuditor(tables)}
}

// The metrics. No label has an address or port of a client.
var (
	connections        = desc("connections", "Connections by state.", "state")
	connectionsLimit   = desc("connections_limit", "Connections that the table holds.")
	halfOpenEvicted    = desc("half_open_evicted_total", "Half-open connections that were replaced by newer connections.")
	connectionsFixed   = desc("connections_repaired_total", "Connections by which wrong counts of the datapath were corrected. It should stay 0.")
	displaced          = desc("established_displaced_total", "Established connections, not TCP, that were replaced by newer connections.")
	connectionsRefused = desc("connections_refused_total", "Openings that did not become connections, by reason.", "reason")
	packetsDropped     = desc("packets_dropped_total", "Packets dropped, by incoming interface and reason.", "interface", "reason")
	packetsPassed      = desc("packets_passed_total", "Packets of forwards left to the kernel or from XDP to TC, by incoming interface and reason.", "interface", "reason")
	icmpTranslated     = desc("icmp_errors_translated_total", "ICMP errors about packets of connections, translated and sent on.")
	icmpSent           = desc("icmp_errors_sent_total", "ICMP errors that hairpin sent for dropped packets, by incoming interface of the packet and reason.", "interface", "reason")
	fragmentsHeld      = desc("fragments_held_total", "Fragments that came before the first fragment of their datagram and were held until it arrives.")
	interfaceAttached  = desc("interface_attached", "1 if the datapath is attached to the interface, 0 if not.", "interface", "role")
	interfaceMode      = desc("interface_mode_info", "How the datapath is attached to the interface. There is no series while it is not attached.", "interface", "mode")
	externalAddress    = desc("external_address_info", "Address of a WAN interface on which forwards listen.", "interface", "address")
	reloadSuccessful   = desc("config_last_reload_successful", "1 if the last configuration that was read was activated, 0 if it was refused.")
	reloadTime         = desc("config_last_reload_success_timestamp_seconds", "When a configuration was last activated, in seconds since 1970.")
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
		interfaceAttached, interfaceMode, externalAddress, reloadSuccessful, reloadTime, buildInfo,
	} {
		descs <- d
	}
}

// Reloaded records that a configuration was activated (taken) or refused.
func (c *Collector) Reloaded(taken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reloadOK = 0
	if taken {
		c.reloadOK, c.reloaded = 1, time.Now()
	}
}

// Run audits the datapath's counts of connections until ctx ends. It audits once a minute, or more rarely if an audit
// would otherwise take more than 1 % of one CPU. Errors go to report.
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

// scrape sends the samples of one Collect.
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
			s.gauge(interfaceMode, 1, link.Name, link.Mode)
		}
		s.gauge(interfaceAttached, attached, link.Name, link.Role.String())
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
	c.counted = nil // if this count fails, WriteForwards must not use the count of an earlier scrape
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

// packets sums the datapath's counters by the name of the interface. An interface that comes back with another index
// keeps its series.
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
