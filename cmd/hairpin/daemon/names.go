// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hairpin/cmd/hairpin/dns"
	"hairpin/maps"
	"hairpin/maps/config"
)

const (
	// publishPoll is the time between two reads of the generation of the running configuration. A read is
	// one system call. With it, commands that change the configuration need not notify the publisher.
	publishPoll = 200 * time.Millisecond
	// publishRetry is the time between two checks of the content of the files, and the wait after a
	// failure.
	publishRetry = 5 * time.Second
	// reloadPatience is the longest run time of a reload command.
	reloadPatience = 10 * time.Second
)

// publisher writes the DNS files of the running configuration, and runs the reload commands of the name
// servers.
type publisher struct {
	generation func() (uint32, error) // of the running configuration
	running    func() (config.Config, error)
	counters   *publishCounters
	log        *slog.Logger
	retry      time.Duration // wait after a failure
	patience   time.Duration // longest run time of a reload command

	written  uint32    // generation that the files were made from
	due      time.Time // time of the next check of the files
	files    []*publication
	failing  failures
	warned   []string
	reloaded chan reloadResult
	reloads  int // number of reload commands that run now
}

// publication is a DNS file with the state of its reload.
type publication struct {
	config.DNSFile
	zone      string // path of the bind-rpz file
	names     []dns.Name
	stale     bool // the file has changed, and the server has not read it yet
	reloading bool // the reload command runs
	reloadAt  time.Time
}

type reloadResult struct {
	*publication
	err error
}

func newPublisher(tables *maps.Tables, log *slog.Logger) *publisher {
	return &publisher{
		generation: tables.Generation,
		running:    func() (config.Config, error) { return runningNames(tables) },
		counters:   newPublishCounters(),
		log:        log,
		retry:      publishRetry,
		patience:   reloadPatience,
		failing:    make(failures),
		reloaded:   make(chan reloadResult),
	}
}

// runningNames returns the running configuration. It reads the forwards, of which there may be very many,
// only if there are files to write.
func runningNames(tables *maps.Tables) (config.Config, error) {
	cfg, err := tables.Settings()
	if err != nil || len(cfg.DNS) == 0 {
		return cfg, err
	}
	return tables.Running()
}

// run publishes until ctx ends.
func (p *publisher) run(ctx context.Context) {
	ticker := time.NewTicker(publishPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			// runCommand kills the commands when ctx ends.
			for ; p.reloads > 0; p.reloads-- {
				<-p.reloaded
			}
			return
		case result := <-p.reloaded:
			p.reloadDone(result, time.Now())
		case <-ticker.C:
		}
		p.sync(time.Now())
		p.startReloads(ctx, time.Now())
	}
}

// sync makes the files match the running configuration; now is the present time.
func (p *publisher) sync(now time.Time) {
	generation, err := p.generation()
	if err == nil && generation != p.written {
		if err = p.readRunning(); err == nil {
			p.written, p.due = generation, now
		}
	}
	p.failing.report(p.log, "read the running configuration", err)
	if now.Before(p.due) {
		return
	}
	p.due = now.Add(p.retry)
	for _, f := range p.files {
		p.write(f, now)
	}
}

// readRunning makes the publications match the running configuration.
func (p *publisher) readRunning() error {
	cfg, err := p.running()
	if err != nil {
		return err
	}
	before := p.files
	p.files = nil
	var warnings []string
	for _, file := range cfg.DNS {
		f := new(publication)
		for _, old := range before {
			if old.Format == file.Format && old.Path == file.Path {
				f = old
			}
		}
		f.DNSFile, f.zone, f.stale = file, cfg.DNSPath(config.DNSBindRPZ), f.stale && file.Reload != nil
		var found []dns.Warning
		f.names, found = dns.Names(cfg.Forwards, dns.Options{Format: file.Format})
		p.files = append(p.files, f)
		p.counters.initCounters(file)
		for _, line := range dns.Lines(found) {
			if !slices.Contains(warnings, line) {
				warnings = append(warnings, line)
			}
		}
	}
	p.warn(warnings)
	return nil
}

// warn logs the warnings that were not in the last call.
func (p *publisher) warn(warnings []string) {
	for _, line := range warnings {
		if !slices.Contains(p.warned, line) {
			p.log.Warn("split DNS", "warning", line)
		}
	}
	p.warned = warnings
}

func (p *publisher) write(f *publication, now time.Time) {
	written, err := dns.File{Format: f.Format, Zone: f.zone}.Write(f.Path, f.names, now)
	if err != nil {
		p.counters.writeFailures.WithLabelValues(string(f.Format)).Inc()
		err = atKey(f.DNSFile, config.DNSWriteKey(f.Format), err)
	}
	p.failing.report(p.log, "write the names for "+string(f.Format), err)
	if written {
		p.counters.writes.WithLabelValues(string(f.Format)).Inc()
		p.log.Info("names written", "file", f.Path, "names", len(f.names))
		f.stale, f.reloadAt = f.Reload != nil, now
	}
}

// startReloads starts the reload commands of changed files. Each runs in its own goroutine, so that a slow
// server does not delay the other servers.
func (p *publisher) startReloads(ctx context.Context, now time.Time) {
	for _, f := range p.files {
		if !f.stale || f.reloading || now.Before(f.reloadAt) {
			continue
		}
		f.stale, f.reloading = false, true
		p.reloads++
		command := f.Reload
		go func() { p.reloaded <- reloadResult{f, runCommand(ctx, p.patience, command)} }()
	}
}

func (p *publisher) reloadDone(result reloadResult, now time.Time) {
	p.reloads--
	f := result.publication
	f.reloading = false
	err := result.err
	if err != nil {
		// If the file was written again while the command ran, the next command starts at once.
		if !f.stale {
			f.stale, f.reloadAt = true, now.Add(p.retry)
		}
		p.counters.reloadFailures.WithLabelValues(string(f.Format)).Inc()
		err = atKey(f.DNSFile, config.DNSReloadKey(f.Format), err)
	} else {
		p.counters.reloads.WithLabelValues(string(f.Format)).Inc()
	}
	p.failing.report(p.log, "run the reload command for "+string(f.Format), err)
}

// atKey adds the key of the configuration, and its place, to an error about a DNS file.
func atKey(file config.DNSFile, key string, err error) error {
	if file.Source == "" {
		return fmt.Errorf("%s: %w", key, err)
	}
	return fmt.Errorf("%s: %s: %w", file.Source, key, err)
}

// CheckNames checks the DNS files and reload programs of cfg, and writes nothing. The error is about paths
// that the daemon always refuses. The warnings are about problems that may not exist when and where the
// daemon runs.
func CheckNames(cfg config.Config) (warnings []string, err error) {
	var errs []error
	for _, file := range cfg.DNS {
		if file.Reload != nil {
			if err := checkProgram(file.Reload[0]); err != nil {
				warnings = append(warnings, atKey(file, config.DNSReloadKey(file.Format), err).Error())
			}
		}
		err := dns.CheckPath(file.Path)
		if err == nil {
			continue
		}
		err = atKey(file, config.DNSWriteKey(file.Format), err)
		if refused := (*dns.PathError)(nil); errors.As(err, &refused) {
			errs = append(errs, err)
		} else {
			warnings = append(warnings, err.Error())
		}
	}
	return warnings, errors.Join(errs...)
}

// publishCounters are the publisher's counters, by format.
type publishCounters struct {
	writes, writeFailures, reloads, reloadFailures *prometheus.CounterVec
}

func newPublishCounters() *publishCounters {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "hairpin", Subsystem: "dns", Name: name, Help: help}, []string{"format"})
	}
	return &publishCounters{
		writes:         counter("writes_total", "Files for name servers that were written because their content changed."),
		writeFailures:  counter("write_failures_total", "Failures to write a file for a name server, counted at each try."),
		reloads:        counter("reloads_total", "Reload commands of name servers that succeeded."),
		reloadFailures: counter("reload_failures_total", "Reload commands of name servers that failed, counted at each try."),
	}
}

// initCounters creates the counters of a file, so that they show 0 before the first event.
func (c *publishCounters) initCounters(file config.DNSFile) {
	c.writes.WithLabelValues(string(file.Format))
	c.writeFailures.WithLabelValues(string(file.Format))
	if file.Reload != nil {
		c.reloads.WithLabelValues(string(file.Format))
		c.reloadFailures.WithLabelValues(string(file.Format))
	}
}

// Describe implements prometheus.Collector.
func (c *publishCounters) Describe(descs chan<- *prometheus.Desc) {
	for _, vec := range c.all() {
		vec.Describe(descs)
	}
}

// Collect implements prometheus.Collector.
func (c *publishCounters) Collect(samples chan<- prometheus.Metric) {
	for _, vec := range c.all() {
		vec.Collect(samples)
	}
}

func (c *publishCounters) all() []*prometheus.CounterVec {
	return []*prometheus.CounterVec{c.writes, c.writeFailures, c.reloads, c.reloadFailures}
}
