// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/maps/compile"
	"hairpin/maps/rule"
)

// metricFamily is a metric of forwards. It has series only for forwards that had traffic.
type metricFamily struct {
	name, help string
	kind       dto.MetricType
	labels     []string // sorted
}

const seriesHelp = " A forward appears after its first packet, and a path of it after the first packet on this path."

var (
	forwardPackets     = metricFamily{"hairpin_forward_packets_total", "Packets translated for a forward, by path and direction (in: to the target)." + seriesHelp, dto.MetricType_COUNTER, []string{"direction", "forward", "path"}}
	forwardBytes       = metricFamily{"hairpin_forward_bytes_total", "Bytes of IP packets translated for a forward, by path and direction (in: to the target)." + seriesHelp, dto.MetricType_COUNTER, []string{"direction", "forward", "path"}}
	forwardOpened      = metricFamily{"hairpin_forward_connections_total", "Connections of a forward that completed their handshake, by path." + seriesHelp, dto.MetricType_COUNTER, []string{"forward", "path"}}
	forwardConnections = metricFamily{"hairpin_forward_connections", "Connections of a forward, including half-open connections." + seriesHelp, dto.MetricType_GAUGE, []string{"forward"}}
	targetConnections  = metricFamily{"hairpin_target_connections", "Connections of each server of a forward with several, including half-open connections.", dto.MetricType_GAUGE, []string{"forward", "target"}}
)

// directions has the values of the label direction, by the second index of maps.ForwardStats.
var directions = [...]string{"in", "out"}

// WriteForwards writes the metrics of forwards in the text format of Prometheus. The number of connections is the number
// that the last Collect counted. There may be a million series. A Prometheus registry would hold all in memory;
// WriteForwards streams them, and its memory does not grow with their number. It reads the counters again for each
// metric. After an error the text in w is incomplete.
func (c *Collector) WriteForwards(w io.Writer) error {
	counted, err := c.lastCount()
	if err != nil {
		return err
	}
	wanted, err := c.tables.Roster()
	if err != nil {
		return err
	}
	reader, err := c.tables.NewStatsReader()
	if err != nil {
		return err
	}
	f := forwardWriter{
		reader: reader, wanted: wanted, counted: counted, paths: rule.PathNames(),
		active: make([]bool, len(wanted.Names)), out: newFamilyWriter(w),
	}
	for _, step := range []func() error{f.bytes, f.connections, f.targets, f.opened, f.packets} {
		if err := step(); err != nil {
			return fmt.Errorf("write metrics of forwards: %w", err)
		}
	}
	return nil
}

// lastCount returns the count of the last Collect. If there is none, it counts now.
func (c *Collector) lastCount() (*maps.Census, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counted == nil {
		return c.tables.Census(rule.Selector{})
	}
	return c.counted, nil
}

// forwardWriter writes the families of forwards.
type forwardWriter struct {
	reader  *maps.StatsReader
	wanted  *compile.Roster
	counted *maps.Census
	paths   []string
	active  []bool // index: id; true: the forward had traffic when the first metric was written
	out     *familyWriter
}

func (f *forwardWriter) bytes() error {
	f.out.begin(forwardBytes)
	for number := range f.reader.Pages(f.wanted) {
		err := f.reader.Each(f.wanted, number, func(name string, id uint32, s *maps.ForwardStats) error {
			f.active[id] = true
			return f.traffic(name, s, func(t *bpf.HairpinTraffic) uint64 { return t.Bytes })
		})
		if err != nil {
			return err
		}
	}
	return f.out.flush()
}

func (f *forwardWriter) packets() error {
	return f.again(forwardPackets, func(name string, s *maps.ForwardStats) error {
		return f.traffic(name, s, func(t *bpf.HairpinTraffic) uint64 { return t.Packets })
	})
}

func (f *forwardWriter) traffic(name string, s *maps.ForwardStats, value func(*bpf.HairpinTraffic) uint64) error {
	for path, word := range f.paths {
		if !s.Used(path) {
			continue
		}
		for direction := range directions {
			if err := f.out.sample(float64(value(&s.Traffic[path][direction])), directions[direction], name, word); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *forwardWriter) opened() error {
	return f.again(forwardOpened, func(name string, s *maps.ForwardStats) error {
		for path, word := range f.paths {
			if !s.Used(path) {
				continue
			}
			if err := f.out.sample(float64(s.Established[path]), name, word); err != nil {
				return err
			}
		}
		return nil
	})
}

// again reads the counters again and writes a family for the active forwards.
func (f *forwardWriter) again(family metricFamily, write func(name string, s *maps.ForwardStats) error) error {
	f.out.begin(family)
	for number := range f.reader.Pages(f.wanted) {
		first := int(number * f.reader.Size)
		if !slices.Contains(f.active[first:min(len(f.active), first+int(f.reader.Size))], true) {
			continue
		}
		err := f.reader.Each(f.wanted, number, func(name string, id uint32, s *maps.ForwardStats) error {
			if !f.active[id] {
				return nil // all series of this forward appear in the next scrape
			}
			return write(name, s)
		})
		if err != nil {
			return err
		}
	}
	return f.out.flush()
}

func (f *forwardWriter) connections() error {
	f.out.begin(forwardConnections)
	for id, name := range f.wanted.Names {
		connections := f.counted.Of(uint32(id), f.wanted)
		if !f.active[id] && connections == 0 {
			continue
		}
		if err := f.out.sample(float64(connections), name); err != nil {
			return err
		}
	}
	return f.out.flush()
}

func (f *forwardWriter) targets() error {
	f.out.begin(targetConnections)
	for id, name := range f.wanted.Names {
		if !f.active[id] && f.counted.Of(uint32(id), f.wanted) == 0 {
			continue
		}
		for _, server := range f.wanted.Servers(uint32(id)) {
			if err := f.out.sample(float64(f.counted.OfServer(uint32(id), server, f.wanted)), name, server.Text); err != nil {
				return err
			}
		}
	}
	return f.out.flush()
}

// familyWriter writes metric families in pieces of many samples. It allocates its memory once and reuses it for each
// piece.
type familyWriter struct {
	out    io.Writer
	family dto.MetricFamily
	series []series
	filled int
	begun  bool
	text   bytes.Buffer
}

// series has the memory for one sample: dto.Metric and the values that it points to.
type series struct {
	metric  dto.Metric
	counter dto.Counter
	gauge   dto.Gauge
	value   float64
	pairs   [3]dto.LabelPair
	words   [3]string
}

func newFamilyWriter(out io.Writer) *familyWriter {
	const piece = 512
	w := &familyWriter{out: out, series: make([]series, piece)}
	w.family.Metric = make([]*dto.Metric, piece)
	for i := range w.series {
		s := &w.series[i]
		s.counter.Value, s.gauge.Value = &s.value, &s.value
		s.metric.Label = make([]*dto.LabelPair, len(s.pairs))
		for j := range s.pairs {
			s.pairs[j].Value, s.metric.Label[j] = &s.words[j], &s.pairs[j]
		}
		w.family.Metric[i] = &s.metric
	}
	return w
}

// begin starts a family. A family without samples is not written.
func (w *familyWriter) begin(f metricFamily) {
	w.begun, w.filled = false, 0
	w.family.Name, w.family.Help, w.family.Type = &f.name, &f.help, &f.kind
	for i := range w.series {
		s := &w.series[i]
		s.metric.Label, s.metric.Counter, s.metric.Gauge = s.metric.Label[:len(f.labels)], nil, nil
		if f.kind == dto.MetricType_COUNTER {
			s.metric.Counter = &s.counter
		} else {
			s.metric.Gauge = &s.gauge
		}
		for j := range f.labels {
			s.pairs[j].Name = &f.labels[j]
		}
	}
}

// sample adds one sample to the family; labels has the values of its labels.
func (w *familyWriter) sample(value float64, labels ...string) error {
	s := &w.series[w.filled]
	s.value = value
	copy(s.words[:], labels)
	if w.filled++; w.filled < len(w.series) {
		return nil
	}
	return w.flush()
}

// flush writes the samples that were added since the last flush. The encoder writes a header for each piece, so flush
// removes the header of every piece after the first.
func (w *familyWriter) flush() error {
	if w.filled == 0 {
		return nil
	}
	all := w.family.Metric
	w.family.Metric = all[:w.filled]
	w.text.Reset()
	_, err := expfmt.MetricFamilyToText(&w.text, &w.family)
	w.family.Metric, w.filled = all, 0
	if err != nil {
		return err
	}
	text := w.text.Bytes()
	if w.begun {
		_, text, _ = bytes.Cut(text, []byte{'\n'})
	}
	w.begun, w.family.Help = true, nil
	_, err = w.out.Write(text)
	return err
}
