// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// publisherFake publishes a configuration in memory. The test runs its loop and its clock.
type publisherFake struct {
	*publisher
	t      *testing.T
	dir    string
	now    time.Time
	cfg    config.Config
	live   uint32
	output bytes.Buffer
}

func newPublisherFake(t *testing.T, formats ...config.DNSFormat) *publisherFake {
	t.Helper()
	p := &publisherFake{t: t, dir: t.TempDir(), now: time.Now(), live: 1}
	log := slog.New(slog.NewTextHandler(&p.output, nil))
	p.publisher = newPublisher(new(maps.Tables), log)
	p.generation = func() (uint32, error) { return p.live, nil }
	p.running = func() (config.Config, error) { return p.cfg, nil }
	p.cfg = config.Default()
	p.cfg.WAN = []string{"wan0"}
	p.host("www.example.org")
	for i, format := range formats {
		p.cfg.DNS = append(p.cfg.DNS, config.DNSFile{Format: format, Path: p.path(format), Source: fmt.Sprintf("x:%d", i+1)})
	}
	return p
}

// host adds a forward with a host to the running configuration.
func (p *publisherFake) host(name string) {
	n := len(p.cfg.Forwards) + 1
	p.cfg.Forwards = append(p.cfg.Forwards, rule.Forward{
		Name: fmt.Sprintf("f%d", n), Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: uint16(n), Last: uint16(n)},
		Target: netip.AddrFrom4([4]byte{192, 168, 1, byte(n)}), Hosts: []string{name},
	})
	p.live++
}

func (p *publisherFake) path(format config.DNSFormat) string {
	return filepath.Join(p.dir, string(format))
}

// after moves the clock on, does the work that is due, and waits for all commands.
func (p *publisherFake) after(pause time.Duration) {
	p.t.Helper()
	p.now = p.now.Add(pause)
	p.sync(p.now)
	p.startReloads(context.Background(), p.now)
	for p.reloads > 0 {
		select {
		case result := <-p.reloaded:
			p.reloadDone(result, p.now)
		case <-time.After(patience):
			p.t.Fatal("a command does not end")
		}
	}
}

func (p *publisherFake) read(format config.DNSFormat) string {
	data, err := os.ReadFile(p.path(format))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.t.Fatal(err)
	}
	return string(data)
}

func (p *publisherFake) wantHosts(format config.DNSFormat, hosts ...string) {
	p.t.Helper()
	text := p.read(format)
	for _, host := range hosts {
		if !strings.Contains(text, host) {
			p.t.Errorf("%s lacks %s:\n%s", format, host, text)
		}
	}
}

func (p *publisherFake) wantCount(metric string, want float64) {
	p.t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(p.counters)
	families, err := registry.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	name, label, _ := strings.Cut(metric, " ")
	for _, family := range families {
		for _, m := range family.Metric {
			if family.GetName() == "hairpin_dns_"+name && m.Label[0].GetValue() == label {
				if got := m.Counter.GetValue(); got != want {
					p.t.Errorf("%s is %v, want %v", metric, got, want)
				}
				return
			}
		}
	}
	p.t.Errorf("no metric %s", metric)
}

func (p *publisherFake) wantTold(text string, times int) {
	p.t.Helper()
	if n := strings.Count(p.output.String(), text); n != times {
		p.t.Errorf("%q is told %d times, want %d:\n%s", text, n, times, &p.output)
	}
}

func identity(t *testing.T, path string) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

func TestPublishFollowsWhatRuns(t *testing.T) {
	p := newPublisherFake(t, config.DNSHosts, config.DNSBindRPZ)
	p.after(0)
	p.wantHosts(config.DNSHosts, "192.168.1.1 www.example.org\n")
	p.wantHosts(config.DNSBindRPZ, "www.example.org IN A 192.168.1.1\n")

	// A change without effect on the names does not write the file again.
	before := identity(t, p.path(config.DNSHosts))
	p.live++
	p.after(time.Hour)
	if now := identity(t, p.path(config.DNSHosts)); now != before {
		t.Error("the file was written again")
	}
	p.wantCount("writes_total hosts", 1)
	p.wantCount("writes_total bind-rpz", 1)
	p.wantCount("write_failures_total bind-rpz", 0)

	p.host("mail.example.org")
	p.after(0)
	p.wantHosts(config.DNSHosts, "192.168.1.1 www.example.org\n", "192.168.1.2 mail.example.org\n")
	p.wantHosts(config.DNSBindRPZ, "mail.example.org IN A 192.168.1.2\n")

	p.cfg.Forwards = nil
	p.live++
	p.after(0)
	if text := p.read(config.DNSHosts); strings.Contains(text, "example") {
		t.Errorf("names of no forward:\n%s", text)
	}
}

// TestPublishMendsItsFiles: the publisher corrects a file that somebody else changed.
func TestPublishMendsItsFiles(t *testing.T) {
	p := newPublisherFake(t, config.DNSHosts)
	p.after(0)
	good := p.read(config.DNSHosts)
	if err := os.Remove(p.path(config.DNSHosts)); err != nil {
		t.Fatal(err)
	}
	p.after(p.retry / 2)
	if p.read(config.DNSHosts) != "" {
		t.Error("looked too soon")
	}
	p.after(p.retry)
	if p.read(config.DNSHosts) != good {
		t.Error("the file is not there again")
	}
	if err := os.WriteFile(p.path(config.DNSHosts), []byte(good+"127.0.0.1 evil.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.after(p.retry)
	if p.read(config.DNSHosts) != good {
		t.Error("the line of another stays")
	}
}

func TestPublishLeavesForeignFiles(t *testing.T) {
	p := newPublisherFake(t, config.DNSHosts, config.DNSUnbound, config.DNSDnsmasq)
	if err := errors.Join(os.WriteFile(p.path(config.DNSHosts), []byte("127.0.0.1 localhost\n"), 0o644),
		os.Symlink("/etc/hostname", p.path(config.DNSUnbound))); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p.after(p.retry)
	}
	if p.read(config.DNSHosts) != "127.0.0.1 localhost\n" {
		t.Error("a foreign file was written")
	}
	p.wantHosts(config.DNSDnsmasq, "www.example.org")
	p.wantTold("x:1: dns.write.hosts: "+p.path(config.DNSHosts)+" was not written by hairpin", 1)
	p.wantTold("x:2: dns.write.unbound: "+p.path(config.DNSUnbound)+" is a symbolic link", 1)
	p.wantCount("write_failures_total hosts", 3)
	p.wantCount("write_failures_total unbound", 3)
	p.wantCount("write_failures_total dnsmasq", 0)

	if err := os.Remove(p.path(config.DNSHosts)); err != nil {
		t.Fatal(err)
	}
	p.after(p.retry)
	p.wantHosts(config.DNSHosts, "www.example.org")
	p.wantTold("works again", 1)
}

func TestPublishWarnsOnce(t *testing.T) {
	p := newPublisherFake(t, config.DNSHosts, config.DNSUnbound)
	p.cfg.Forwards[0].TargetPort = 4711
	p.after(0)
	p.host("mail.example.org")
	p.after(0)
	p.wantTold("DNS carries no port", 1)
}

// script returns a reload command that counts its runs, and runs the shell text more.
func (p *publisherFake) script(format config.DNSFormat, more string) (runs func() int) {
	note := filepath.Join(p.dir, "runs-"+string(format))
	for i := range p.cfg.DNS {
		if p.cfg.DNS[i].Format == format {
			p.cfg.DNS[i].Reload = []string{"/bin/sh", "-c", `echo "$0" >> "$1"; ` + more, "a b", note}
		}
	}
	p.live++
	return func() int {
		data, _ := os.ReadFile(note)
		return strings.Count(string(data), "a b\n")
	}
}

func TestPublishTellsServers(t *testing.T) {
	p := newPublisherFake(t, config.DNSUnbound)
	runs := p.script(config.DNSUnbound, "true")
	p.after(0)
	p.after(p.retry)
	p.live++
	p.after(p.retry)
	if runs() != 1 {
		t.Errorf("%d runs for one change", runs())
	}
	p.host("mail.example.org")
	p.after(0)
	if runs() != 2 {
		t.Errorf("%d runs for two changes", runs())
	}
	p.wantCount("reloads_total unbound", 2)
	p.wantCount("reload_failures_total unbound", 0)
}

func TestPublishTellsAgain(t *testing.T) {
	p := newPublisherFake(t, config.DNSUnbound)
	broken := filepath.Join(p.dir, "broken")
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	runs := p.script(config.DNSUnbound, "test ! -e "+broken+" || { echo no control >&2; exit 3; }")
	p.after(0)
	p.after(p.retry / 2)
	if runs() != 1 {
		t.Errorf("%d runs before it is time to try again", runs())
	}
	p.after(p.retry / 2)
	p.after(p.retry)
	if runs() != 3 {
		t.Errorf("%d runs, want 3", runs())
	}
	p.wantTold("x:1: dns.reload.unbound: ", 1)
	p.wantTold("exit status 3: no control", 1)
	p.wantCount("reload_failures_total unbound", 3)
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	p.after(p.retry)
	p.after(p.retry)
	if runs() != 4 {
		t.Errorf("%d runs, want 4", runs())
	}
	p.wantTold("works again", 1)
	p.wantCount("reloads_total unbound", 1)
}

// TestPublishGivesCommandsUp: a server that does not answer does not delay the others. Its command is
// killed, with all processes that the command started.
func TestPublishGivesCommandsUp(t *testing.T) {
	p := newPublisherFake(t, config.DNSUnbound, config.DNSHosts)
	p.patience = 500 * time.Millisecond
	child := filepath.Join(p.dir, "child")
	p.script(config.DNSUnbound, "sleep 1000 & echo $! > "+child+"; wait")
	p.sync(p.now)
	p.startReloads(context.Background(), p.now)
	p.host("mail.example.org")
	p.sync(p.now)
	p.wantHosts(config.DNSHosts, "mail.example.org")
	select {
	case result := <-p.reloaded:
		p.reloadDone(result, p.now)
	case <-time.After(patience):
		t.Fatal("the command goes on")
	}
	p.wantTold("not finished after 500ms", 1)
	p.wantCount("reload_failures_total unbound", 1)
	wantGone(t, child)
	// The file was written again while the command ran.
	if f := p.files[0]; !f.stale || f.reloadAt.After(p.now) {
		t.Errorf("the server is not told at once of what came meanwhile: %+v", f)
	}
}

// wantGone waits until the process ends whose number is in the file.
func wantGone(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := "/proc/" + strings.TrimSpace(string(data)) + "/stat"
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		// A zombie has ended, too.
		if text, err := os.ReadFile(stat); err != nil || strings.Contains(string(text), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %s goes on", data)
		}
	}
}

func TestPublishEndsWithTheDaemon(t *testing.T) {
	p := newPublisherFake(t, config.DNSUnbound)
	child := filepath.Join(p.dir, "child")
	p.script(config.DNSUnbound, "echo $$ > "+child+"; exec sleep 1000")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.run(ctx)
	}()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if data, err := os.ReadFile(child); err == nil && len(data) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the command does not start")
		}
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	wantGone(t, child)
}

// TestPublishWithoutTheTables: if the tables cannot be read, the files stay, and the publisher reads again
// later.
func TestPublishWithoutTheTables(t *testing.T) {
	p := newPublisherFake(t, config.DNSHosts)
	p.after(0)
	p.host("mail.example.org")
	p.running = func() (config.Config, error) { return config.Config{}, errors.New("torn") }
	p.after(0)
	p.after(0)
	p.wantHosts(config.DNSHosts, "www.example.org")
	p.wantTold("torn", 1)
	p.running = func() (config.Config, error) { return p.cfg, nil }
	p.after(0)
	p.wantHosts(config.DNSHosts, "mail.example.org")
}

// TestRunCommandOfOthers: a program that other users may write is not run, because it would run as root.
func TestRunCommandOfOthers(t *testing.T) {
	dir := t.TempDir()
	program, ran := filepath.Join(dir, "reload"), filepath.Join(dir, "ran")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n: > "+ran+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(program, 0o775); err != nil {
		t.Fatal(err)
	}
	err := runCommand(context.Background(), patience, []string{program})
	if err == nil || !strings.Contains(err.Error(), program+" can be written by others") || !strings.Contains(err.Error(), "chmod go-w "+program) {
		t.Errorf("a program that its group can write: %v", err)
	}
	if _, err := os.Lstat(ran); err == nil {
		t.Error("the program ran")
	}
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := runCommand(context.Background(), patience, []string{program}); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(ran); err != nil {
		t.Errorf("the program did not run: %v", err)
	}
}

func TestRunCommandThatIsNot(t *testing.T) {
	for _, words := range [][]string{{"no-such-program-of-hairpin"}, {"/no/such/program", "x"}} {
		if err := runCommand(context.Background(), patience, words); err == nil || !strings.Contains(err.Error(), words[0]) {
			t.Errorf("%q: %v", words, err)
		}
	}
	err := runCommand(context.Background(), patience, []string{"/bin/sh", "-c", "yes | head -c 1000000; exit 1"})
	if err == nil || len(err.Error()) > 1500 {
		t.Errorf("an error of %d bytes", len(fmt.Sprint(err)))
	}
}
