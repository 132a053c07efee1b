// SPDX-License-Identifier: Apache-2.0

// Package daemon keeps a datapath in line with the configuration files and the network while it runs. It
// also serves metrics and the status page, and publishes the host names of forwards to name servers.
//
// Packets do not go through the daemon: the kernel translates them also before the daemon starts and after
// it ends. The package never parses arguments or installs a signal handler. It never removes a datapath
// that existed before.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/control"
	"hairpin/cmd/hairpin/diagnose"
	"hairpin/cmd/hairpin/history"
	"hairpin/cmd/hairpin/router"
	"hairpin/cmd/hairpin/statuspage"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/metrics"
)

const (
	// defaultBeat is the time between two ticks of an idle loop. At each tick the loop reports that it is
	// alive, checks the interfaces, and retries failed actions.
	defaultBeat = 5 * time.Second
	// stalledAfter is the time without a turn after which the loop counts as stuck. It is longer than the
	// loop's wait for the writer lock.
	stalledAfter = 45 * time.Second
	// minGraceWait keeps the loop from turning without end while the end of connections fails.
	minGraceWait = 100 * time.Millisecond
	// followLockWait is the longest time that the loop waits for the writer lock.
	followLockWait = 10 * time.Second
)

// Options are the settings of a daemon.
type Options struct {
	Dir        string                        // directory of the pins
	LockWait   time.Duration                 // longest wait for the writer lock at the start
	ConfigFile string                        // name of the configuration file in messages
	ReadConfig func() (config.Config, error) // called at the start and for each reload; the configuration must be valid
	Reload     <-chan os.Signal              // a signal asks for a reload
	Version    string                        // version in the metrics
	Store      *history.Store                // where configurations are kept
	Socket     string                        // path of the socket for commands
	ExitCode   func(error) int               // exit code of a command with this error, for the answer to "hairpin reload"
	Notify     string                        // the service manager's socket, as in sd_notify(3); "" if there is none
	Log        *slog.Logger
	Events     io.Writer // gets the log of connections (log.connections), one line each
}

// Run serves until ctx ends; then it returns nil. It fails if the datapath cannot be brought into service,
// if the kernel stops reporting changes of the network, or if somebody removes the datapath.
//
// If the files are broken, what runs already stays. If nothing runs, the configuration that was kept last runs. Run fails with the error
// of the files if none is kept.
func Run(ctx context.Context, o Options) error {
	keepSmall()
	cfg, broken := o.ReadConfig()
	if broken != nil && loader.Check(loader.Options{Dir: o.Dir}) != nil {
		var err error
		if cfg, err = change.Fallback(o.Store, broken); err != nil {
			return err
		}
	}
	// A container with only the daemon has its own mounts, which end with the daemon. The daemon still
	// starts.
	if err := loader.CheckMount(o.Dir); errors.Is(err, loader.ErrPrivateMount) {
		o.Log.Warn("forwards and connections will be lost when the daemon ends", "error", err)
	} else if err != nil {
		return err
	}
	s, err := load(ctx, o, cfg.MaxConnections)
	if err != nil {
		return err
	}
	serving, err := claim(ctx, o.Dir)
	if err != nil {
		return errors.Join(err, s.Discard())
	}
	defer serving.Close()

	d := newDaemon(s, o)
	d.restore = serving.restore
	events, err := loader.Follow(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("follow the network: %w", err), s.Discard())
	}
	if err := d.start(cfg, broken, s); err != nil {
		return errors.Join(err, d.port.Close(), s.Discard())
	}
	s.Unlock()
	defer s.Close()
	defer d.port.Close()
	debug.FreeOSMemory() // release the memory that reading the configuration needed

	defer background(ctx, d.audit)()

	// Write the DNS files before READY: name servers that start after the daemon find their files.
	d.names.sync(time.Now())
	defer background(ctx, d.names.run)()

	defer d.answer(o.Socket)()

	d.saidStatus = d.state.summary()
	d.notify(systemd.SdNotifyReady + "\nSTATUS=" + d.saidStatus)
	err = d.loop(ctx, events)
	d.notify(systemd.SdNotifyStopping)
	if err == nil {
		d.log.Info("stopped; packets are still translated, until \"hairpin detach --all\"")
	}
	return err
}

// keepSmall limits the memory of the process. Other commands end soon and collect little garbage; a daemon
// collects more often. The limit is soft: reading a configuration of tens of thousands of forwards exceeds
// it for a moment.
func keepSmall() {
	const garbage, limit = 50, 46 << 20 // percent of the memory in use; bytes
	debug.SetGCPercent(garbage)
	debug.SetMemoryLimit(limit)
}

func load(ctx context.Context, o Options, maxConnections uint32) (*router.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, o.LockWait)
	defer cancel()
	return router.Load(ctx, o.Dir, maxConnections)
}

// background runs do in a goroutine. stop cancels its context and waits for it to return.
func background(ctx context.Context, do func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { do(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

// daemon is the main loop with its state. Only the goroutine of the loop uses it, except the field state.
type daemon struct {
	router   *router.Router
	keeper   *change.Keeper
	lock     func(context.Context) (func(), error) // takes the writer lock
	read     func() (config.Config, error)         // reads the configuration files
	notices  func(config.Config) []string          // warnings about a configuration just applied; "" is no warning
	restore  func() (bool, error)                  // pins everything again if the bpffs was unmounted
	renew    func() (bool, error)                  // replaces the programs if the kernel can do more than before
	reloads  <-chan os.Signal
	asked    chan chan control.Reload // "hairpin reload" asks for a reload; the answer goes into the channel that it sends
	exitCode func(error) int
	reloaded func(taken bool)      // counts a reload for the metrics
	audit    func(context.Context) // checks the datapath's connection counts until the context ends
	names    *publisher
	leases   *leaseFollower
	port     *metricsPort
	conns    *connectionLog
	notify   func(state string) // sends a state to the service manager
	log      *slog.Logger
	beat     time.Duration
	watchdog bool // the service manager expects a message at every beat

	state     state
	failing   failures
	swept     time.Time
	renewing  retry            // of renew
	routesDue bool             // next hops must be resolved again
	graceOver <-chan time.Time // the grace of a lost address is over; nil: no address is lost
	graceEnd  time.Time        // when that is; zero: no address is lost
	graceRead bool             // graceEnd is up to date
	tried     time.Time        // the last look at the interfaces
	gone      error            // set when the datapath was removed

	unconfirmed <-chan time.Time // the time of a change that nobody confirmed is over; nil: no change waits
	waits       bool             // at the start a change waited for its confirmation, and state.apart says so
	apartAt     uint32           // generation in which seeFiles looked last
	warned      []string         // warnings about forwarding that were logged
	saidStatus  string           // the last status that the service manager got
}

func newDaemon(s *router.Session, o Options) *daemon {
	d := &daemon{
		router: s.Router, keeper: &change.Keeper{Router: s.Router, Store: o.Store},
		asked: make(chan chan control.Reload), exitCode: o.ExitCode,
		lock: func(ctx context.Context) (func(), error) {
			ctx, cancel := context.WithTimeout(ctx, followLockWait)
			defer cancel()
			return loader.Lock(ctx, o.Dir)
		},
		read: o.ReadConfig,
		notices: func(cfg config.Config) []string {
			findings, err := s.Findings(cfg)
			// warnForwarding says when the kernel does not forward, whenever that changes.
			findings = slices.DeleteFunc(findings, func(f diagnose.Finding) bool { return f.Check == diagnose.ForwardingCheck })
			texts := diagnose.Notices(findings)
			if err != nil {
				texts = []string{"cannot look for problems on this machine: " + err.Error()}
			}
			return append(texts, s.ResizeWarning(cfg), router.Unconfigured(cfg, o.ConfigFile))
		},
		renew:   func() (bool, error) { return router.Renew(o.Dir) },
		reloads: o.Reload,
		names:   newPublisher(s.Tables, o.Log),
		conns:   newConnectionLog(o.Dir, o.Events, o.Log),
		notify: func(state string) {
			if err := notifyManager(o.Notify, state); err != nil {
				o.Log.Warn(state, "error", err)
			}
		},
		log:     o.Log,
		beat:    defaultBeat,
		failing: make(failures),
	}
	d.leases = newLeaseFollower(d)
	d.leases.blocked = func() error {
		useful, _, err := s.CompareUpgrade()
		if err == nil && useful {
			err = errors.New("the programs of another version are active, which do not know forwards for LANs alone; run \"hairpin upgrade\"")
		}
		return err
	}
	d.setMetrics(s.Tables, o)
	d.setWatchdog()
	return d
}

func (d *daemon) setMetrics(tables *maps.Tables, o Options) {
	collector := metrics.New(tables, metrics.Options{Version: o.Version, Interfaces: d.state.interfaces})
	d.reloaded = collector.Reloaded
	d.audit = func(ctx context.Context) {
		collector.Run(ctx, func(err error) { d.log.Warn("cannot check the counts of connections", "error", err) })
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector, d.names.counters, d.conns.counter(), d.leases.counters, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	scrapes := &metricsPage{gatherer: registry, forwards: collector.WriteForwards, log: d.log}
	handler := listenerHandler(statuspage.Options{
		Tables: tables, Version: o.Version, Ports: d.state.load, Log: d.log,
		Apart:  func() string { return d.state.Status().Apart },
		Doctor: func() ([]diagnose.Finding, error) { return doctor(o.Dir) },
		Fresh:  statuspage.DefaultFresh, Kept: statuspage.DefaultKept, DoctorPause: statuspage.DefaultDoctorPause,
	}, metricsHandler(scrapes, &d.state, defaultLimits), defaultLimits)
	d.port = &metricsPort{log: d.log, start: func(at place) (*metricsServer, error) {
		return startMetrics(at, handler, defaultLimits, d.log)
	}}
}

// listenerHandler serves the status page beside metrics.
func listenerHandler(o statuspage.Options, metrics http.Handler, limits serverLimits) http.Handler {
	return refuseBody(statuspage.Handler(o, metrics), limits.bodyBytes)
}

// doctor returns the findings of "hairpin doctor". It opens the datapath for itself: the programs may have been replaced.
func doctor(dir string) ([]diagnose.Finding, error) {
	s, err := router.Open(dir)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	cfg, err := s.Settings()
	if err != nil {
		return nil, err
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	return s.Diagnose(cfg, router.Diagnosis{Datapath: &diagnose.Datapath{
		Kernel: strings.TrimSpace(string(kernel)), Daemon: true, TooOld: loader.CheckKernel(), Missing: loader.MissingCapabilities(),
	}})
}

// setWatchdog shortens the beat if the service manager expects messages more often.
func (d *daemon) setWatchdog() {
	watchdog, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		d.log.Warn("cannot read the interval of the watchdog", "error", err)
	}
	d.watchdog = watchdog > 0
	if d.watchdog {
		d.beat = min(d.beat, watchdog/2)
	}
}

// start brings the datapath into service with the files; broken is why they could not be read, nil if they could. The caller holds the
// writer lock.
func (d *daemon) start(cfg config.Config, broken error, s *router.Session) error {
	d.state.turn()
	if s.Adopted() {
		d.upgrade(s)
	}
	started, err := d.keeper.Start(cfg, broken)
	result := started.Result
	if err == nil && s.Fresh() {
		err = router.Refusals(result.Ports)
	}
	if err != nil && !(result.Done && errors.Is(err, router.ErrOldPolicies)) {
		return err
	}
	if started.Apart != nil {
		if cfg, err = d.router.Running(); err != nil {
			return err
		}
	}
	d.port.move(placeOf(cfg))
	d.log.Info(result.String())
	d.sayApart(started.Apart)
	d.waits = errors.Is(started.Apart, change.ErrPending)
	d.warnUnkept(started.Unkept)
	d.warnNotices(cfg)
	d.show(result.Ports)
	d.warnForwarding(result.Ports)
	d.report("follow the network", errors.Join(err, router.Refusals(result.Ports)))
	d.report("log connections", d.conns.set(cfg.LogConnections))
	d.reloaded(started.Apart == nil)
	d.state.ready.Store(true)
	return nil
}

// upgrade replaces programs of another binary, or programs that no longer suit the kernel. If "hairpin prepare" has done so, upgrade does
// nothing.
func (d *daemon) upgrade(s *router.Session) {
	useful, loses, err := s.CompareUpgrade()
	switch {
	case err != nil, !useful:
	case loses:
		d.log.Warn("the programs of another version stay active: they ask conntrack, and the new programs could not, because CAP_SYS_ADMIN is missing; " +
			"run \"hairpin upgrade\" as root, with every capability")
	default:
		err = s.Upgrade()
	}
	if err != nil {
		d.log.Error("cannot upgrade the programs; the old programs stay active", "error", err)
	}
}

// loop follows the network until ctx ends. It fails only if the kernel stops reporting changes, or if
// somebody removed the datapath. The service manager then starts the daemon again, which makes a new
// datapath.
func (d *daemon) loop(ctx context.Context, events <-chan loader.Event) error {
	ticker := time.NewTicker(d.beat)
	defer ticker.Stop()
	for {
		d.state.turn()
		d.awaitGrace()
		d.awaitConfirmation()
		d.leases.configure(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-d.reloads:
			d.reload(ctx)
		case answer := <-d.asked:
			answer <- d.reload(ctx)
		case <-d.unconfirmed:
			d.finishChanges(ctx)
		case event, ok := <-events:
			if !ok && ctx.Err() == nil {
				return errors.New("follow the network: the kernel sends no more messages")
			}
			d.follow(ctx, event)
		case <-d.leases.wait(time.Now()):
			d.leases.follow(ctx, time.Now())
		case <-d.graceOver:
			d.follow(ctx, loader.Event{Links: true})
		case <-ticker.C:
			if d.watchdog {
				d.notify(systemd.SdNotifyWatchdog)
			}
			d.port.ensure()
			d.report("log connections", d.conns.ensure())
			// A command may have changed the running configuration.
			d.follow(ctx, loader.Event{Links: true})
			d.sweep(ctx, time.Now())
			d.finishChanges(ctx)
			d.seeFiles()
		}
		if d.gone != nil {
			return d.gone
		}
		d.sayStatus()
	}
}

// sayStatus tells the service manager how the daemon is, if that has changed.
func (d *daemon) sayStatus() {
	if now := d.state.summary(); now != d.saidStatus {
		d.notify("STATUS=" + now)
		d.saidStatus = now
	}
}

// awaitGrace sets graceOver for the next turn of the loop. A new absence has a change of addresses before it, so the tables are
// read only after a look at the interfaces. The wait counts from the last look: routes and neighbours may change every few
// milliseconds, and must not put it off.
func (d *daemon) awaitGrace() {
	if !d.graceRead {
		left, away, err := d.router.GraceLeft()
		d.report("look for lost addresses", err)
		d.graceRead = err == nil
		d.graceEnd = time.Time{}
		if err == nil && away {
			d.graceEnd = time.Now().Add(left)
		}
	}
	d.graceOver = nil
	if !d.graceEnd.IsZero() {
		d.graceOver = time.After(max(time.Until(d.graceEnd), minGraceWait-time.Since(d.tried)))
	}
}

// follow handles an event. An error is logged once. The next beat checks the interfaces again, and the
// routes if routesDue is still set.
func (d *daemon) follow(ctx context.Context, event loader.Event) {
	d.routesDue = d.routesDue || event.Routes
	if !event.Links && !d.routesDue {
		return
	}
	if event.Links {
		d.tried, d.graceRead = time.Now(), false
	}
	err := d.locked(ctx, func() error {
		restored, err := d.restore()
		if restored {
			d.log.Warn("the bpffs was unmounted; pinned everything again in a new one")
		}
		errs := []error{err}
		if event.Links {
			errs = append(errs, d.followLinks(), d.followKernel(time.Now()))
		}
		if d.routesDue {
			err := d.router.RoutesChanged()
			d.routesDue = err != nil
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if ctx.Err() != nil {
		return
	}
	if err = errors.Join(err, router.Refusals(d.state.load())); errors.Is(err, loader.ErrNotLoaded) {
		d.gone = err
	}
	d.report("follow the network", err)
}

func (d *daemon) followLinks() error {
	ports, err := d.router.Follow(d.state.load())
	if ports != nil {
		d.show(ports)
		d.warnForwarding(ports)
	}
	return err
}

// sweepEvery is how often denied sources are removed whose time is over. They only take memory until then.
const sweepEvery = time.Minute

func (d *daemon) sweep(ctx context.Context, now time.Time) {
	if now.Sub(d.swept) < sweepEvery {
		return
	}
	d.swept = now
	if err := d.locked(ctx, d.router.SweepDenied); ctx.Err() == nil {
		d.report("remove denied sources whose time is over", err)
	}
}

// renewPause is the time after a failed renewal until the next one. Loading programs takes the CPU for seconds, and the writer lock.
const renewPause = time.Minute

// retry is when an action failed, and how; the zero value is no failure.
type retry struct {
	failed time.Time
	err    error
}

// followKernel has the programs loaded anew if conntrack has appeared, for example with the first rule of a firewall. Until the
// pause after a failure is over, it returns the failure.
func (d *daemon) followKernel(now time.Time) error {
	if d.renewing.err != nil && now.Sub(d.renewing.failed) < renewPause {
		return d.renewing.err
	}
	renewed, err := d.renew()
	d.renewing = retry{failed: now, err: err}
	if renewed {
		debug.FreeOSMemory() // reading the programs took much
		d.log.Info("loaded the programs anew, as the kernel's connection tracking or its range of ports has changed")
	}
	return err
}

func (d *daemon) locked(ctx context.Context, do func() error) error {
	release, err := d.lock(ctx)
	if err != nil {
		return err
	}
	defer release()
	return do()
}

// show logs the changes of the interfaces, and stores the ports for the metrics.
func (d *daemon) show(ports []router.Port) {
	before := make(map[string]router.Port)
	for _, p := range d.state.load() {
		before[p.Name] = p
	}
	for _, p := range ports {
		old, known := before[p.Name]
		switch {
		case p.Attachment != nil && (old.Attachment == nil || old.Attachment.Index != p.Attachment.Index):
			d.log.Info("attached", "interface", p.Name, "role", p.Role.String(), "mode", p.Mode(), "index", p.Attachment.Index)
			if p.Attachment.Reason != "" {
				d.log.Info("slower than the mode allows", "interface", p.Name, "reason", p.Attachment.Reason)
			}
		case p.Link == nil && (!known || old.Link != nil):
			d.log.Warn("no such interface yet; it is attached when it appears", "interface", p.Name, "role", p.Role.String())
		}
		if now := p.Addresses(); p.Link != nil && (old.Link == nil || !slices.Equal(now, old.Addresses())) {
			d.log.Info("addresses", "interface", p.Name, "addresses", now)
		}
	}
	d.state.ports.Store(&ports)
}

func (d *daemon) report(what string, err error) { d.failing.report(d.log, what, err) }

// reload applies the present files. If that fails, nothing changes. It returns the answer for "hairpin reload".
func (d *daemon) reload(ctx context.Context) control.Reload {
	d.notify(systemd.SdNotifyReloading + "\n" + systemd.SdNotifyMonotonicUsec())
	out, err := d.tryReload(ctx)
	result := out.Result
	d.graceRead = false
	debug.FreeOSMemory()
	d.reloaded(result.Done)
	answer := control.Reload{Done: result.Done, Code: d.exitCode(err), Errors: []string{}}
	what, status := "cannot reload", "reload failed; the previous configuration stays active"
	if result.Done {
		answer.Summary = result.Summary()
		d.log.Info("reloaded: " + answer.Summary)
		d.show(result.Ports)
		d.sayApart(nil)
		d.warnUnkept(out.Unkept)
		what, status = "cannot finish the reload", "reloaded"
	}
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			answer.Errors = append(answer.Errors, strings.TrimSuffix(line, "\n"))
			d.log.Error(what, "error", answer.Errors[len(answer.Errors)-1])
		}
	}
	if !result.Done {
		d.log.Error(status)
		d.state.apart.Store(&apart{fmt.Sprintf("the last reload failed: %s", err)})
	}
	d.notify(systemd.SdNotifyReady + "\nSTATUS=" + status)
	d.saidStatus = status
	return answer
}

func (d *daemon) tryReload(ctx context.Context) (change.Outcome, error) {
	cfg, err := d.read()
	if err == nil {
		err = CheckWebConfig(cfg.MetricsWeb)
	}
	if err != nil {
		return change.Outcome{}, err
	}
	debug.FreeOSMemory() // so that the memory peaks of reading and of applying do not add up
	var out change.Outcome
	err = d.locked(ctx, func() error {
		if err := d.settle(); err != nil {
			return err
		}
		out, err = d.keeper.Apply(cfg, "reload")
		return err
	})
	if out.Done {
		d.port.move(placeOf(cfg))
		d.report("log connections", d.conns.set(cfg.LogConnections))
		d.warnNotices(cfg)
		d.warnForwarding(out.Ports)
	}
	return out, err
}

// warnNotices logs the warnings about a configuration just applied.
func (d *daemon) warnNotices(cfg config.Config) {
	for _, notice := range d.notices(cfg) {
		if notice != "" {
			d.log.Warn(notice)
		}
	}
}

// warnForwarding warns if the kernel does not forward packets. Each warning is logged once while it lasts.
func (d *daemon) warnForwarding(ports []router.Port) {
	ipv6, err := d.router.HasIPv6()
	if err != nil {
		return // follow reports this error
	}
	now := d.router.NotForwarding(ipv6, ports)
	for _, text := range now {
		if !slices.Contains(d.warned, text) {
			d.log.Warn(text)
		}
	}
	if len(now) == 0 && len(d.warned) > 0 {
		d.log.Info("the kernel forwards packets now")
	}
	d.warned = now
}
