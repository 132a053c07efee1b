// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hairpin/loader"
	"hairpin/maps"
)

const (
	// defaultBeat is how often an idle loop shows that it turns, looks whether all
	// is as it should be, and tries again what failed.
	defaultBeat = 5 * time.Second
	// stalledAfter is when a loop that has not turned counts as stuck. It is
	// longer than the loop waits for the writer lock.
	stalledAfter = 45 * time.Second
	// followLockWait bounds how long the loop stands still for another writer.
	followLockWait = 10 * time.Second
)

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "The daemon: attach, apply the file, follow the network, serve metrics",
		Long: `The daemon: attach, apply the file, follow links, addresses and routes, serve
metrics. SIGHUP reloads the file; an invalid file changes nothing. SIGTERM stops
the daemon only: packets are translated until "hairpin detach --all".

If hairpin is attached already and the files have not changed, the daemon keeps
the running configuration, with the forwards that were changed at run time.`,
		Args: takes(0),
		RunE: func(command *cobra.Command, _ []string) error {
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, unix.SIGHUP)
			defer signal.Stop(hangup)
			// A log whose reader has gone ends no daemon. Caught, the signal becomes an error of the write.
			// It is not ignored: the commands of dns.reload would inherit that. It is caught to the very end:
			// a service manager takes an end by SIGPIPE for one that was wanted, whatever failed before.
			signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
			ctx, stop := untilSignal(command.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			err := a.serve(ctx, hangup)
			if errors.Is(err, context.Canceled) {
				// It was still starting. Later on these signals are how it is meant to end.
				err = fmt.Errorf("%w before the start was done: %w", context.Cause(ctx), err)
			}
			return err
		},
	}
}

// untilSignal is signal.NotifyContext whose cause is a signalError.
func untilSignal(parent context.Context, signals ...os.Signal) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, signals...)
	go func() {
		select {
		case got := <-arrived:
			cancel(signalError{got.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(arrived)
		cancel(nil)
	}
}

// follower is the daemon: it keeps a router in line with its configuration
// files and with the network, and reports how that goes.
type follower struct {
	router   *router
	lock     func(context.Context) (func(), error)
	read     func() (maps.Config, error)      // the configuration files
	notices  func(maps.Config) []string       // what to warn of when the configuration was applied; "" is nothing
	forwards func(sysctl, ifname string) bool // the kernel's forwarding, see notForwarding
	reloaded func(taken bool)                 // for the metrics
	audit    func(context.Context)            // the datapath's counts, until the context ends
	names    *publisher                       // of what name servers are to tell inside clients
	notify   func(state string)               // the service manager
	log      *slog.Logger
	beat     time.Duration
	watchdog bool // the service manager wants to hear of every beat

	metrics   *metricsPort
	state     daemonState
	failing   failures
	routesDue bool     // next hops are to be resolved again
	gone      error    // the datapath is not there any more
	warned    []string // of forwarding that is off
}

// daemonState is what the metrics server reads while the loop writes.
type daemonState struct {
	ports  atomic.Pointer[[]port]
	ready  atomic.Bool
	turned atomic.Int64 // unix time in ns at which the loop turned last
}

// serve is `hairpin run` from start to end.
func (a *app) serve(ctx context.Context, hangup <-chan os.Signal) error {
	keepSmall()
	log := a.newLogger()
	cfg, err := a.readConfig(a.configFile)
	if err != nil {
		return err
	}
	// Its mounts live as long as it does, in a container perhaps that runs nothing else.
	if err := loader.CheckMount(a.dir); errors.Is(err, loader.ErrPrivateMount) {
		log.Warn("the datapath ends with the daemon", "error", err)
	} else if err != nil {
		return err
	}
	s, err := a.load(ctx, cfg.MaxConnections)
	if err != nil {
		return err
	}
	presence, err := claimPresence(ctx, a.dir)
	if err != nil {
		return errors.Join(err, a.discard(s))
	}
	defer presence.Close()

	f := a.newFollower(s, log)
	events, err := loader.Follow(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("follow the network: %w", err), a.discard(s))
	}
	if err := f.start(cfg, s); err != nil {
		return errors.Join(err, f.close(), a.discard(s))
	}
	s.unlock()
	defer s.Close()
	defer f.close()
	debug.FreeOSMemory() // what the configuration took is not needed again soon

	defer background(ctx, f.audit)()

	// Servers that start after the daemon find their files.
	f.names.keep(time.Now())
	defer background(ctx, f.names.follow)()

	f.notify(daemon.SdNotifyReady)
	err = f.loop(ctx, events, hangup)
	f.notify(daemon.SdNotifyStopping)
	if err == nil {
		log.Info("stopped; packets are still translated, until \"hairpin detach --all\"")
	}
	return err
}

// keepSmall bounds the memory of a process that stays. What other commands may waste, it collects. The limit is soft: to
// read a configuration of tens of thousands of forwards takes more for a moment.
func keepSmall() {
	const garbage, limit = 50, 46 << 20 // percent of what is in use; bytes
	debug.SetGCPercent(garbage)
	debug.SetMemoryLimit(limit)
}

// background runs do until the returned function is called, and ended.
func background(ctx context.Context, do func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { do(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

func (a *app) newLogger() *slog.Logger {
	level := slog.LevelInfo
	switch {
	case a.quiet:
		level = slog.LevelWarn
	case a.verbose:
		level = slog.LevelDebug
	}
	options := &slog.HandlerOptions{Level: level}
	if onJournal(a.getenv("JOURNAL_STREAM"), a.stderr) {
		// The journal has its own time.
		options.ReplaceAttr = func(groups []string, attr slog.Attr) slog.Attr {
			if len(groups) == 0 && attr.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return attr
		}
	}
	return slog.New(slog.NewTextHandler(a.stderr, options))
}

// onJournal reports whether out is the journal; stream is the value of JOURNAL_STREAM.
// The variable alone proves nothing: a child whose output was redirected inherits it.
// So systemd.exec(5) wants its device and inode compared with those of the descriptor.
// journal.StderrIsJournalStream of go-systemd does the same, but for the environment
// and descriptor 2 of this process only, which commands here do not use directly.
func onJournal(stream string, out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok || stream == "" {
		return false
	}
	info, err := file.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

func (a *app) newFollower(s *session, log *slog.Logger) *follower {
	f := &follower{
		router: s.router,
		lock: func(ctx context.Context) (func(), error) {
			ctx, cancel := context.WithTimeout(ctx, followLockWait)
			defer cancel()
			return loader.Lock(ctx, a.dir)
		},
		read: func() (maps.Config, error) {
			if a.configFile == stdinPath {
				return maps.Config{}, errors.New("the configuration came from standard input, which is at its end; start the daemon again, or name a file")
			}
			return a.readConfig(a.configFile)
		},
		notices: func(cfg maps.Config) []string {
			return []string{s.resizeNotice(cfg), unconfigured(cfg, a.configFile)}
		},
		forwards: forwards,
		notify: func(state string) {
			if err := notifyManager(a.getenv("NOTIFY_SOCKET"), state); err != nil {
				log.Warn(state, "error", err)
			}
		},
		log:     log,
		beat:    defaultBeat,
		failing: make(failures),
	}
	collector := maps.NewCollector(s.tables, maps.CollectorOptions{
		Version:    buildInfo().Version,
		Interfaces: f.state.interfaces,
	})
	f.reloaded = collector.Reloaded
	f.audit = func(ctx context.Context) {
		collector.Run(ctx, func(err error) { log.Warn("cannot look whether connections are counted right", "error", err) })
	}
	f.names = newPublisher(s.tables, log)
	f.setWatchdog()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector, f.names.metrics, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	page := &metricsPage{gatherer: registry, forwards: collector.WriteForwards, log: log}
	handler := metricsHandler(page, &f.state, defaultLimits)
	f.metrics = &metricsPort{log: log, start: func(address string) (*metricsServer, error) {
		return startMetrics(address, handler, defaultLimits, log)
	}}
	return f
}

// setWatchdog shortens the beat if the service manager wants to hear of it sooner.
func (f *follower) setWatchdog() {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		f.log.Warn("cannot read the watchdog's interval", "error", err)
	}
	f.watchdog = watchdog > 0
	if f.watchdog {
		f.beat = min(f.beat, watchdog/2)
	}
}

// start brings the datapath into service; the writer lock is held.
func (f *follower) start(cfg maps.Config, s *session) error {
	f.state.turn()
	f.metrics.move(cfg.MetricsListen)
	if s.datapath.Adopted() {
		// The programs may be of an older binary. What fails here still runs.
		if err := s.datapath.Upgrade(); err != nil {
			f.log.Error("cannot upgrade the programs; the old ones stay active", "error", err)
		}
	}
	result, err := f.router.start(cfg)
	if err == nil && !s.datapath.Adopted() {
		err = refusals(result.ports)
	}
	if err != nil {
		return err
	}
	f.log.Info(result.String())
	f.warnNotices(cfg)
	f.see(result.ports)
	f.warnForwarding(result.ports)
	f.report("follow the network", refusals(result.ports))
	f.reloaded(true)
	f.state.ready.Store(true)
	return nil
}

func (f *follower) close() error {
	return f.metrics.Close()
}

// loop follows the network until ctx ends. It fails only if the network cannot
// be followed any more, or the datapath was taken away: whoever starts the
// daemon again gets a new one.
func (f *follower) loop(ctx context.Context, events <-chan loader.Event, hangup <-chan os.Signal) error {
	ticker := time.NewTicker(f.beat)
	defer ticker.Stop()
	for {
		f.state.turn()
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			f.reload(ctx)
		case event, ok := <-events:
			if !ok && ctx.Err() == nil {
				return errors.New("follow the network: the kernel sends no more messages")
			}
			f.follow(ctx, event)
		case <-ticker.C:
			if f.watchdog {
				f.notify(daemon.SdNotifyWatchdog)
			}
			f.metrics.keep()
			// The command line may have changed what runs.
			f.follow(ctx, loader.Event{Links: true})
		}
		if f.gone != nil {
			return f.gone
		}
	}
}

// follow does what an event asks for. Failures are logged once; the next beat
// looks at the interfaces again, and at the routes if they are still due.
func (f *follower) follow(ctx context.Context, event loader.Event) {
	f.routesDue = f.routesDue || event.Routes
	if !event.Links && !f.routesDue {
		return
	}
	err := f.locked(ctx, func() error {
		var errs []error
		if event.Links {
			errs = append(errs, f.followLinks())
		}
		if f.routesDue {
			err := f.router.tables.BumpRoutes()
			f.routesDue = err != nil
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if ctx.Err() != nil {
		return
	}
	if err = errors.Join(err, refusals(f.state.look())); errors.Is(err, loader.ErrNotLoaded) {
		f.gone = err
	}
	f.report("follow the network", err)
}

func (f *follower) followLinks() error {
	running, err := f.router.tables.Settings()
	if err != nil {
		return fmt.Errorf("read the running configuration: %w", err)
	}
	before := f.state.look()
	ports, err := f.router.follow(running)
	if ports != nil {
		err = errors.Join(err, f.router.forget(before))
		f.see(ports)
		f.warnForwarding(ports)
	}
	return err
}

func (f *follower) locked(ctx context.Context, do func() error) error {
	release, err := f.lock(ctx)
	if err != nil {
		return err
	}
	defer release()
	return do()
}

// see logs what changed about the interfaces, and shows them to the metrics.
func (f *follower) see(ports []port) {
	before := make(map[string]port)
	for _, p := range f.state.look() {
		before[p.name] = p
	}
	for _, p := range ports {
		old, known := before[p.name]
		switch {
		case p.attachment != nil && (old.attachment == nil || old.attachment.Index != p.attachment.Index):
			f.log.Info("attached", "interface", p.name, "role", p.role.String(), "mode", p.mode(), "index", p.attachment.Index)
			if p.attachment.Reason != "" {
				f.log.Info("slower than the mode allows", "interface", p.name, "reason", p.attachment.Reason)
			}
		case p.link == nil && (!known || old.link != nil):
			f.log.Warn("no such interface yet; it is attached when it appears", "interface", p.name, "role", p.role.String())
		}
		if now := p.addresses(); p.link != nil && (old.link == nil || !slices.Equal(now, old.addresses())) {
			f.log.Info("addresses", "interface", p.name, "addresses", now)
		}
	}
	f.state.ports.Store(&ports)
}

func (f *follower) report(what string, err error) { f.failing.report(f.log, what, err) }

// failures are what failed last time, so that it is logged once.
type failures map[string]string

// report logs a failure when it is new, and its end. What says what failed, as after "cannot".
func (f failures) report(log *slog.Logger, what string, err error) {
	if err == nil {
		if f[what] != "" {
			log.Info("works again", "what", what)
		}
		delete(f, what)
		return
	}
	if f[what] != err.Error() {
		log.Error("cannot "+what, "error", err)
	}
	f[what] = err.Error()
}

// reload applies the files as they are now, or changes nothing.
func (f *follower) reload(ctx context.Context) {
	f.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	result, err := f.tryReload(ctx)
	debug.FreeOSMemory()
	f.reloaded(err == nil)
	status := "reloaded"
	if err != nil {
		status = "reload failed; the previous configuration stays active"
	}
	if result.done {
		f.log.Info("reloaded: " + changeText(result.change))
		f.see(result.ports)
	}
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			f.log.Error("cannot reload", "error", strings.TrimSuffix(line, "\n"))
		}
		if !result.done {
			f.log.Error(status)
		}
	}
	f.notify(daemon.SdNotifyReady + "\nSTATUS=" + status)
}

func (f *follower) tryReload(ctx context.Context) (applied, error) {
	cfg, err := f.read()
	if err != nil {
		return applied{}, err
	}
	debug.FreeOSMemory() // what reading took is not to add to what applying takes
	var result applied
	err = f.locked(ctx, func() error {
		result, err = f.router.apply(cfg)
		return err
	})
	if result.done {
		f.metrics.move(cfg.MetricsListen)
		f.warnNotices(cfg)
		f.warnForwarding(result.ports)
	}
	return result, err
}

// warnNotices warns of what a configuration that was just applied does not do.
func (f *follower) warnNotices(cfg maps.Config) {
	for _, notice := range f.notices(cfg) {
		if notice != "" {
			f.log.Warn(notice)
		}
	}
}

// warnForwarding warns if the kernel does not forward packets: then no next hop is found for
// those that hairpin translates. Each warning comes once, until it is over.
func (f *follower) warnForwarding(ports []port) {
	v6, err := f.router.tables.HasIPv6()
	if err != nil {
		return // whoever follows the network reports that
	}
	now := notForwarding(v6, ports, f.forwards)
	for _, text := range now {
		if !slices.Contains(f.warned, text) {
			f.log.Warn(text)
		}
	}
	if len(now) == 0 && len(f.warned) > 0 {
		f.log.Info("the kernel forwards packets now")
	}
	f.warned = now
}

func (s *daemonState) turn() { s.turned.Store(time.Now().UnixNano()) }

func (s *daemonState) look() []port {
	if ports := s.ports.Load(); ports != nil {
		return *ports
	}
	return nil
}

// interfaces is what the collector needs of the ports.
func (s *daemonState) interfaces() []maps.InterfaceStatus {
	var list []maps.InterfaceStatus
	for _, p := range s.look() {
		status := maps.InterfaceStatus{
			Name: p.name, Role: p.role, Mode: p.mode(),
			Attached: p.attachment != nil, Addresses: p.addresses(),
		}
		if p.link != nil {
			status.Index = p.link.Index
		}
		list = append(list, status)
	}
	return list
}

// Healthy fails if the loop is stuck.
func (s *daemonState) Healthy() error {
	if still := time.Since(time.Unix(0, s.turned.Load())); still > stalledAfter {
		return fmt.Errorf("the daemon's main loop has been stuck for %s", still.Round(time.Second))
	}
	return nil
}

// Ready fails until the configuration is applied.
func (s *daemonState) Ready() error {
	if !s.ready.Load() {
		return errors.New("starting")
	}
	return nil
}
