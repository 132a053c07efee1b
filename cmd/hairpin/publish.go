// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/dns"
	"hairpin/cmd/hairpin/trust"
	"hairpin/maps"
)

const (
	// publishPoll is how often the publisher reads the generation of the running
	// configuration: one system call, so that writers need not notify the publisher.
	publishPoll = 200 * time.Millisecond
	// publishRetry is how often the publisher checks that the files still have the
	// right content, and how long it waits after a failure.
	publishRetry = 5 * time.Second
	// reloadPatience is how long a reload command may take.
	reloadPatience = 10 * time.Second
)

// publisher writes the files for name servers that the running configuration asks
// for, and runs their reload commands.
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

// publication is a file and whether its server has read it.
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
			// Their commands are killed when ctx ends.
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

// keep brings the files in line with the running configuration; now is the time.
func (p *publisher) keep(now time.Time) {
	generation, err := p.generation()
	if err == nil && generation != p.seen {
		if err = p.read(); err == nil {
			p.seen, p.due = generation, now
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

// read brings the publications in line with the running configuration.
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

// warn logs the warnings that are new since the last call.
func (p *publisher) warn(warnings []string) {
	for _, line := range warnings {
		if !slices.Contains(p.warned, line) {
			p.log.Warn("split DNS", "warning", line)
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
	p.failing.report(p.log, "write the names for "+string(f.Format), err)
	if written {
		p.metrics.writes.WithLabelValues(string(f.Format)).Inc()
		p.log.Info("names written", "file", f.Path, "names", len(f.names))
		f.stale, f.tellAt = f.Reload != nil, now
	}
}

// tell starts the reload commands of files that have changed. Each has a goroutine of
// its own, so that a slow server does not delay the others.
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
		// If the file was written again meanwhile, the command runs at once.
		if !f.stale {
			f.stale, f.tellAt = true, now.Add(p.retry)
		}
		p.metrics.reloadFailures.WithLabelValues(string(f.Format)).Inc()
		err = placed(f.DNSFile, maps.DNSReloadKey(f.Format), err)
	} else {
		p.metrics.reloads.WithLabelValues(string(f.Format)).Inc()
	}
	p.failing.report(p.log, "run the reload command for "+string(f.Format), err)
}

// checkProgram refuses a program that others could have written, because it runs as
// root; see trust.Check. A program that does not exist is no error here: running it
// fails with a better one. Between the check and the start somebody who can write to
// the directory could exchange the program; to run the checked descriptor instead would
// close that gap, but does not work for scripts.
func checkProgram(name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return trust.Check(path, info)
}

// runCommand runs a program until it ends, or for as long as patience. Then the program
// and all processes that it started are killed. The error has the program's output.
func runCommand(ctx context.Context, patience time.Duration, words []string) error {
	if err := checkProgram(words[0]); err != nil {
		return err
	}
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
		err = fmt.Errorf("not finished after %s", patience)
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
		writes:         counter("writes_total", "Files for name servers that were written because their content changed."),
		writeFailures:  counter("write_failures_total", "Failures to write a file for a name server, counted at each try."),
		reloads:        counter("reloads_total", "Reload commands of name servers that succeeded."),
		reloadFailures: counter("reload_failures_total", "Reload commands of name servers that failed, counted at each try."),
	}
}

// know makes the counters of a file, so that they show 0 before the first event.
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
