// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/dns"
	"hairpin/maps"
)

const (
	// publishPoll is how often the publisher looks whether what runs was changed,
	// by whomever: one system call, and no writer has to tell.
	publishPoll = 200 * time.Millisecond
	// publishRetry is when it tries again what failed, and looks whether the files
	// still hold what they should.
	publishRetry = 5 * time.Second
	// reloadPatience is how long a command may take that tells a server of its file.
	reloadPatience = 10 * time.Second
)

// publisher keeps the files of names that the running configuration asks for,
// and tells their servers.
type publisher struct {
	generation func() (uint32, error) // of what runs
	running    func() (maps.Config, error)
	metrics    *publishMetrics
	log        *slog.Logger
	retry      time.Duration // after what failed
	patience   time.Duration // with a command

	seen     uint32    // generation that the files were made from
	due      time.Time // to look at the files
	files    []*publication
	failing  failures
	warned   []string
	reloaded chan reloadResult
	reloads  int // that run now
}

// publication is a file and what its server knows of it.
type publication struct {
	maps.DNSFile
	zone   string // path of the file of bind-rpz
	names  []dns.Name
	stale  bool // the server has not been told what the file holds
	busy   bool // it is being told
	tellAt time.Time
}

type reloadResult struct {
	*publication
	err error
}

func newPublisher(tables *maps.Tables, log *slog.Logger) *publisher {
	return &publisher{
		generation: tables.Generation,
		running:    func() (maps.Config, error) { return runningNames(tables) },
		metrics:    newPublishMetrics(),
		log:        log,
		retry:      publishRetry,
		patience:   reloadPatience,
		failing:    make(failures),
		reloaded:   make(chan reloadResult),
	}
}

// runningNames is what runs. Without files to write, nobody asks for the forwards, of which there may be very many.
func runningNames(tables *maps.Tables) (maps.Config, error) {
	cfg, err := tables.Settings()
	if err != nil || len(cfg.DNS) == 0 {
		return cfg, err
	}
	return tables.Running()
}

// follow publishes until ctx ends.
func (p *publisher) follow(ctx context.Context) {
	ticker := time.NewTicker(publishPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			// Commands end with ctx.
			for ; p.reloads > 0; p.reloads-- {
				<-p.reloaded
			}
			return
		case result := <-p.reloaded:
			p.told(result, time.Now())
		case <-ticker.C:
		}
		p.keep(time.Now())
		p.tell(ctx, time.Now())
	}
}

// keep makes the files hold what runs at a time.
func (p *publisher) keep(now time.Time) {
	generation, err := p.generation()
	if err == nil && generation != p.seen {
		if err = p.read(); err == nil {
			p.seen, p.due = generation, now
		}
	}
	p.failing.report(p.log, "read what runs", err)
	if now.Before(p.due) {
		return
	}
	p.due = now.Add(p.retry)
	for _, f := range p.files {
		p.write(f, now)
	}
}

// read takes over what runs.
func (p *publisher) read() error {
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
		f.DNSFile, f.zone, f.stale = file, cfg.DNSPath(maps.DNSBindRPZ), f.stale && file.Reload != nil
		var found []dns.Warning
		f.names, found = dns.Names(cfg.Forwards, dns.Options{Format: file.Format})
		p.files = append(p.files, f)
		p.metrics.know(file)
		for _, line := range warningLines(found) {
			if !slices.Contains(warnings, line) {
				warnings = append(warnings, line)
			}
		}
	}
	p.warn(warnings)
	return nil
}

// warn tells of the warnings that are not among those of the last time.
func (p *publisher) warn(warnings []string) {
	for _, line := range warnings {
		if !slices.Contains(p.warned, line) {
			p.log.Warn("names of forwards", "warning", line)
		}
	}
	p.warned = warnings
}

func (p *publisher) write(f *publication, now time.Time) {
	written, err := updateDNSFile(f.Path, dns.File{Format: f.Format, Zone: f.zone}, f.names, now)
	if err != nil {
		p.metrics.writeFailures.WithLabelValues(string(f.Format)).Inc()
		err = placed(f.DNSFile, maps.DNSWriteKey(f.Format), err)
	}
	p.failing.report(p.log, "write names for "+string(f.Format), err)
	if written {
		p.metrics.writes.WithLabelValues(string(f.Format)).Inc()
		p.log.Info("names written", "file", f.Path, "names", len(f.names))
		f.stale, f.tellAt = f.Reload != nil, now
	}
}

// tell runs the commands of files that have changed, beside the publisher: a
// server that is slow to hear of its own keeps no other one's waiting.
func (p *publisher) tell(ctx context.Context, now time.Time) {
	for _, f := range p.files {
		if !f.stale || f.busy || now.Before(f.tellAt) {
			continue
		}
		f.stale, f.busy = false, true
		p.reloads++
		command := f.Reload
		go func() { p.reloaded <- reloadResult{f, runCommand(ctx, p.patience, command)} }()
	}
}

func (p *publisher) told(result reloadResult, now time.Time) {
	p.reloads--
	f := result.publication
	f.busy = false
	err := result.err
	if err != nil {
		// It need not wait if the file was written again meanwhile.
		if !f.stale {
			f.stale, f.tellAt = true, now.Add(p.retry)
		}
		p.metrics.reloadFailures.WithLabelValues(string(f.Format)).Inc()
		err = placed(f.DNSFile, maps.DNSReloadKey(f.Format), err)
	} else {
		p.metrics.reloads.WithLabelValues(string(f.Format)).Inc()
	}
	p.failing.report(p.log, "tell "+string(f.Format)+" of its names", err)
}

// runCommand runs a program to its end, for as long as patience at most, and
// whatever it started with it. What it said is part of the error.
func runCommand(ctx context.Context, patience time.Duration, words []string) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	command := exec.CommandContext(limited, words[0], words[1:]...)
	said := &headBuffer{limit: 1024}
	command.Stdout, command.Stderr = said, said
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return unix.Kill(-command.Process.Pid, unix.SIGKILL) }
	command.WaitDelay = time.Second
	err := command.Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(limited.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("not done after %s", patience)
	}
	err = fmt.Errorf("%q: %w", strings.Join(words, " "), err)
	if text := strings.TrimSpace(string(said.head)); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// headBuffer keeps the beginning of what is written to it.
type headBuffer struct {
	head  []byte
	limit int
}

// Write implements io.Writer.
func (b *headBuffer) Write(data []byte) (int, error) {
	b.head = append(b.head, data[:min(len(data), b.limit-len(b.head))]...)
	return len(data), nil
}

// publishMetrics count what the publisher did, by format.
type publishMetrics struct {
	writes, writeFailures, reloads, reloadFailures *prometheus.CounterVec
}

func newPublishMetrics() *publishMetrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "hairpin", Subsystem: "dns", Name: name, Help: help}, []string{"format"})
	}
	return &publishMetrics{
		writes:         counter("writes_total", "Files of names that were written because something about them had changed."),
		writeFailures:  counter("write_failures_total", "Files of names that could not be written, counted at each try."),
		reloads:        counter("reloads_total", "Commands that told a server of its file of names."),
		reloadFailures: counter("reload_failures_total", "Commands that failed to tell a server of its file of names, counted at each try."),
	}
}

// know shows counters of a file from the start on.
func (m *publishMetrics) know(file maps.DNSFile) {
	m.writes.WithLabelValues(string(file.Format))
	m.writeFailures.WithLabelValues(string(file.Format))
	if file.Reload != nil {
		m.reloads.WithLabelValues(string(file.Format))
		m.reloadFailures.WithLabelValues(string(file.Format))
	}
}

// Describe implements prometheus.Collector.
func (m *publishMetrics) Describe(descs chan<- *prometheus.Desc) {
	for _, vec := range m.all() {
		vec.Describe(descs)
	}
}

// Collect implements prometheus.Collector.
func (m *publishMetrics) Collect(metrics chan<- prometheus.Metric) {
	for _, vec := range m.all() {
		vec.Collect(metrics)
	}
}

func (m *publishMetrics) all() []*prometheus.CounterVec {
	return []*prometheus.CounterVec{m.writes, m.writeFailures, m.reloads, m.reloadFailures}
}
