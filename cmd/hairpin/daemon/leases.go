// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/leases"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

const (
	// leasePoll is how often the daemon looks whether a lease file has changed: one system call for each file. Unlike inotify, a look sees
	// files in directories that do not exist yet, and on file systems of every kind.
	leasePoll = 500 * time.Millisecond
	// leaseSettle is the longest time for which a file is left alone that changes all the time. miniupnpd renews a mapping in two steps, and
	// the mapping is in no line between them: so a file is read when it has not changed for a leasePoll.
	leaseSettle = 5 * time.Second
	// leaseFresh is how old a file must be when it is read. A write within the same tick of the kernel's clock leaves its times as they are.
	leaseFresh = time.Second
	// leaseRetry is the time until mappings that were refused are tried again, and until the next try after a failure.
	leaseRetry = 30 * time.Second
	// leasePauses is how many times as long as the last change of the tables took the next one has to wait.
	leasePauses = 4
)

// leaseFollower keeps the forwards in line with the lease files. Only the daemon's loop uses it.
type leaseFollower struct {
	set      func(context.Context, []rule.Forward) (change.Leased, error)
	settings func() (config.Config, error)
	running  func() ([]rule.Forward, error) // the forwards that stand for mappings
	changed  func() (uint32, error)         // generation of the running configuration
	blocked  func() error                   // why forwards for LANs alone are not possible
	read     func(path string) (leases.Content, error)
	counters *leaseCounters
	daemon   *daemon

	files   map[string]*leaseFile
	order   []string // as configured
	limit   int
	due     time.Time // of the next look; zero: no files are configured
	known   bool      // the running forwards were set at generation
	at      uint32
	wanted  []rule.Forward
	refused []leases.Refusal // by Choose
	denied  []change.RefusedLease
	next    time.Time // when the next mapping is over; zero: none
	retry   time.Time // zero: there is nothing to try again
	// unread are the running mappings that may be those of files never read. Nil if every file was read.
	unread []leases.Lease
}

// leaseFile is a lease file as it was seen last.
type leaseFile struct {
	stamp   leaseStamp
	dirty   time.Time // since when it is to be read; zero: it is not
	retry   time.Time // when to read it again after a failure; zero: the last read succeeded
	read    bool      // content is that of the file, or was
	content leases.Content
}

// leaseStamp changes when a file is written, replaced, made or removed.
type leaseStamp struct {
	there               bool
	device, inode, size uint64
	modified, changed   syscall.Timespec
}

func stampOf(path string) leaseStamp {
	info, err := os.Stat(path)
	if err != nil {
		return leaseStamp{}
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return leaseStamp{}
	}
	return leaseStamp{true, stat.Dev, stat.Ino, uint64(stat.Size), stat.Mtim, stat.Ctim}
}

func (s leaseStamp) isFresh(now time.Time) bool {
	age := now.Sub(time.Unix(s.modified.Unix()))
	return s.there && age >= 0 && age < leaseFresh
}

func newLeaseFollower(d *daemon) *leaseFollower {
	return &leaseFollower{
		daemon: d, settings: d.router.Settings, running: d.router.Leases, changed: d.router.Generation, blocked: func() error { return nil }, read: leases.Read,
		counters: newLeaseCounters(), files: map[string]*leaseFile{},
		set: func(ctx context.Context, wanted []rule.Forward) (done change.Leased, err error) {
			err = d.locked(ctx, func() error {
				// settle comes first: it compares generations to find whether the change that waits was ever made.
				failed := d.settle()
				done, err = d.keeper.SetLeases(wanted)
				return errors.Join(failed, err)
			})
			return done, err
		},
	}
}

// wait returns a channel that fires when the next look is due; nil: never.
func (l *leaseFollower) wait(now time.Time) <-chan time.Time {
	if l.due.IsZero() {
		return nil
	}
	return time.After(l.due.Sub(now))
}

// configure takes the configured files. The loop calls it when the configuration may have changed.
func (l *leaseFollower) configure(now time.Time) {
	cfg, err := l.settings()
	if err != nil {
		return // others report this
	}
	if slices.Equal(cfg.Leases.Files, l.order) && cfg.Leases.Limit() == uint32(l.limit) {
		return
	}
	l.order, l.limit, l.known = slices.Clone(cfg.Leases.Files), int(cfg.Leases.Limit()), false
	for path := range l.files {
		if !slices.Contains(l.order, path) {
			delete(l.files, path)
			l.daemon.failing.report(l.daemon.log, "read the lease file "+path, nil)
		}
	}
	for _, path := range l.order {
		if l.files[path] == nil {
			l.files[path] = &leaseFile{dirty: now}
		}
	}
	l.due = now
	if len(l.order) == 0 {
		l.due = time.Time{}
		l.counters.running.Set(0) // the change that removed the files has removed the forwards
	}
}

// follow looks at the files, and changes the forwards if something has changed.
func (l *leaseFollower) follow(ctx context.Context, now time.Time) {
	l.configure(now)
	if l.due.IsZero() {
		return
	}
	l.due = now.Add(leasePoll)
	news := l.look(now) || !l.next.IsZero() && !now.Before(l.next) || !l.retry.IsZero() && !now.Before(l.retry)
	generation, err := l.changed()
	if err != nil || !news && l.known && generation == l.at {
		return
	}
	contents, err := l.contents()
	if err != nil {
		l.known = false // others report this; the next look tries again
		return
	}
	wanted, refused := leases.Choose(contents, now, l.limit)
	l.next = leases.NextEnd(contents, now)
	same := slices.EqualFunc(wanted, l.wanted, func(f, g rule.Forward) bool {
		return f.Name == g.Name && f.Target == g.Target && f.TargetPort == g.TargetPort && f.Comment == g.Comment
	})
	l.tell(refused, l.denied)
	l.refused = refused
	if same && l.known && generation == l.at && l.retry.IsZero() {
		return
	}
	l.apply(ctx, wanted, now)
}

// contents returns the contents of the files that were read. As long as a file was never read, since a start of the daemon or a change of
// the configuration, running mappings that the other files do not have may be those of this file. They come first, so that leases.max does
// not end them.
func (l *leaseFollower) contents() ([]leases.Content, error) {
	contents := make([]leases.Content, 1, len(l.order)+1)
	known := map[string]bool{}
	for _, path := range l.order {
		if f := l.files[path]; f.read {
			contents = append(contents, f.content)
			for i := range f.content.Leases {
				known[f.content.Leases[i].Name()] = true
			}
		}
	}
	if len(contents) == len(l.order)+1 {
		l.unread = nil
		return contents, nil
	}
	if l.unread == nil {
		running, err := l.running()
		if err != nil {
			return nil, err
		}
		l.unread = make([]leases.Lease, 0, len(running))
		for _, f := range running {
			if !f.Drains() {
				l.unread = append(l.unread, leases.Of(f))
			}
		}
	}
	l.unread = slices.DeleteFunc(l.unread, func(lease leases.Lease) bool { return known[lease.Name()] })
	contents[0].Leases = slices.Clone(l.unread)
	return contents, nil
}

// look reads the files that have changed, and reports whether it has read one.
func (l *leaseFollower) look(now time.Time) (news bool) {
	for _, path := range l.order {
		f := l.files[path]
		if stamp := stampOf(path); stamp != f.stamp {
			f.stamp = stamp
			if f.dirty.IsZero() {
				f.dirty = now
			}
			if f.read && now.Sub(f.dirty) < leaseSettle {
				continue // the next look reads it, if it stays as it is
			}
		}
		if f.dirty.IsZero() && (f.retry.IsZero() || now.Before(f.retry)) {
			continue
		}
		content, err := l.read(path)
		f.dirty, f.retry = time.Time{}, time.Time{}
		if f.stamp.isFresh(now) {
			f.dirty = now
		}
		l.daemon.report("read the lease file "+path, err)
		if err != nil {
			l.counters.failures.Inc()
			f.dirty, f.retry = time.Time{}, now.Add(leaseRetry) // an error that passes changes nothing of the file
			continue
		}
		if content.Bad > 0 && content.Bad != f.content.Bad {
			l.daemon.log.Warn("lines of the lease file are left out", "file", path, "lines", content.Bad, "first", content.Problems[0].String())
		}
		f.content, f.read, news = content, true, true
	}
	return news
}

// apply makes the forwards those of the mappings.
func (l *leaseFollower) apply(ctx context.Context, wanted []rule.Forward, now time.Time) {
	err := l.blocked()
	var done change.Leased
	if err == nil {
		done, err = l.set(ctx, wanted)
	}
	if ctx.Err() != nil {
		return
	}
	l.daemon.report("follow the lease files", err)
	if err != nil {
		l.known, l.retry, l.due = false, now.Add(leaseRetry), now.Add(leaseRetry)
		return
	}
	l.wanted, l.known, l.retry = wanted, true, time.Time{}
	if l.at, err = l.changed(); err != nil {
		l.known = false
	}
	if len(done.Refused) > 0 {
		l.retry = now.Add(leaseRetry) // a LAN may get its address later
	}
	l.tell(l.refused, done.Refused)
	l.denied = done.Refused
	l.counters.running.Set(float64(done.Running))
	if done.Added+done.Removed > 0 {
		l.daemon.log.Info("followed the lease files", "added", done.Added, "removed", done.Removed, "mappings", done.Running)
		l.daemon.graceRead = false
	}
	if done.Ports != nil {
		debug.FreeOSMemory() // the change has needed much if there are many forwards
		l.daemon.show(done.Ports)
		l.due = now.Add(max(leasePoll, min(leaseRetry, leasePauses*time.Since(now))))
	}
}

// tell logs and counts the mappings that are refused now, and were not before.
func (l *leaseFollower) tell(refused []leases.Refusal, denied []change.RefusedLease) {
	const shown = 8
	told := 0
	one := func(name, reason, text string) {
		l.counters.refused.WithLabelValues(reason).Inc()
		if told++; told <= shown {
			l.daemon.log.Warn("a mapping of a lease file is not reflected", "forward", name, "reason", text)
		}
	}
	for _, r := range refused {
		if !slices.Contains(l.refused, r) {
			one(r.Name, r.Reason, r.Text)
		}
	}
	for _, r := range denied {
		if !slices.Contains(l.denied, r) {
			one(r.Name, r.Reason, r.Text)
		}
	}
	if told > shown {
		l.daemon.log.Warn(fmt.Sprintf("%d more mappings are not reflected; see \"hairpin doctor\"", told-shown))
	}
}

// leaseCounters are the follower's metrics.
type leaseCounters struct {
	running  prometheus.Gauge
	refused  *prometheus.CounterVec
	failures prometheus.Counter
}

func newLeaseCounters() *leaseCounters {
	c := &leaseCounters{
		running: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "hairpin", Name: "leases", Help: "Mappings of lease files that are forwards now."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "hairpin", Name: "leases_refused_total",
			Help: "Mappings of lease files that became no forward."}, []string{"reason"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "hairpin", Name: "lease_file_failures_total", Help: "Failures to read a lease file."}),
	}
	for _, reason := range []string{leases.ReasonRemoteHost, leases.ReasonLimit, leases.ReasonDuplicate, change.LeaseTaken, change.LeaseTarget} {
		c.refused.WithLabelValues(reason)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *leaseCounters) Describe(descs chan<- *prometheus.Desc) {
	c.running.Describe(descs)
	c.refused.Describe(descs)
	c.failures.Describe(descs)
}

// Collect implements prometheus.Collector.
func (c *leaseCounters) Collect(samples chan<- prometheus.Metric) {
	c.running.Collect(samples)
	c.refused.Collect(samples)
	c.failures.Collect(samples)
}
