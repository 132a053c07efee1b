// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/history"
	"hairpin/cmd/hairpin/router"
	"hairpin/cmd/hairpin/router/routertest"
	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// daemonFake is a daemon on a machine in memory. The test's goroutine runs its loop.
type daemonFake struct {
	*daemon
	machine  *routertest.Machine
	file     config.Config // the content of the configuration files
	fileErr  error
	lockErr  error
	renewed  bool
	renewErr error
	renewals int
	output   bytes.Buffer
	notified []string
	taken    []bool // for each reload: whether it succeeded
}

func newDaemonFake(t *testing.T) *daemonFake {
	t.Helper()
	d := &daemonFake{machine: routertest.NewMachine("wan0", "lan0"), file: routertest.Config()}
	log := slog.New(slog.NewTextHandler(&d.output, nil))
	m := d.machine
	d.daemon = &daemon{
		keeper:   &change.Keeper{Store: history.New(t.TempDir())},
		exitCode: func(error) int { return 0 },
		router:   router.New(router.Options{Datapath: m, Tables: m, Links: m.Links, Routes: m.Routes, Policies: m.Policies, Forwards: m.Forwards, Conntrack: m.Conntrack}),
		lock:     func(context.Context) (func(), error) { return func() {}, d.lockErr },
		read:     func() (config.Config, error) { return d.file, errors.Join(d.fileErr, d.file.Validate()) }, // package toml validates, too
		notices:  func(config.Config) []string { return nil },
		restore:  func() (bool, error) { return false, nil },
		renew: func() (bool, error) {
			d.renewals++
			return d.renewed, d.renewErr
		},
		reloaded: func(taken bool) { d.taken = append(d.taken, taken) },
		notify:   func(state string) { d.notified = append(d.notified, state) },
		port: &metricsPort{log: log, start: func(at place) (*metricsServer, error) {
			return startMetrics(at, http.NotFoundHandler(), defaultLimits, log)
		}},
		conns: newConnectionLog("", io.Discard, log),
		log:   log, beat: time.Hour, failing: failures{},
	}
	d.keeper.Router = d.router
	d.leases = newLeaseFollower(d.daemon)
	result, err := d.router.Start(d.file)
	if err != nil {
		t.Fatal(err)
	}
	d.show(result.Ports)
	d.machine.Did()
	t.Cleanup(func() { d.port.Close() })
	return d
}

func links() loader.Event  { return loader.Event{Links: true} }
func routes() loader.Event { return loader.Event{Routes: true} }

func TestDaemonFollowsInterfaces(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()

	d.machine.Unplug("wan0")
	d.follow(ctx, links())
	d.machine.WantDone(t, "interfaces lan0", "detach 2")
	d.follow(ctx, links())
	d.machine.WantDone(t, "interfaces lan0")
	if got := router.Pending(d.state.load()); len(got) != 1 || got[0] != "wan0" {
		t.Errorf("pending %v, want wan0", got)
	}

	d.machine.Plug("wan0", 9)
	d.follow(ctx, links())
	d.machine.WantDone(t, "attach wan0 auto", "interfaces wan0,lan0")

	d.follow(ctx, routes())
	d.machine.WantDone(t, "routes")
}

// The daemon looks at the kernel whenever it looks at the interfaces, tells that programs were replaced, and tells a failure once.
func TestDaemonFollowsKernel(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()
	d.follow(ctx, links())
	if strings.Contains(d.output.String(), "anew") {
		t.Errorf("told without a reason:\n%s", &d.output)
	}
	d.renewed = true
	d.follow(ctx, links())
	if !strings.Contains(d.output.String(), "loaded the programs anew") {
		t.Errorf("not told:\n%s", &d.output)
	}
	d.renewed, d.renewErr = false, errors.New("the kernel is busy")
	for range 3 {
		d.follow(ctx, links())
	}
	if n := strings.Count(d.output.String(), "the kernel is busy"); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, &d.output)
	}
	// Loading takes long, so the next try is a minute later.
	d.renewals = 0
	start := d.renewing.failed
	for _, after := range []time.Duration{0, time.Second, renewPause - time.Second} {
		if err := d.followKernel(start.Add(after)); err == nil || d.renewals > 0 {
			t.Errorf("after %v: %d tries, %v", after, d.renewals, err)
		}
	}
	d.renewErr = nil
	for range 3 {
		if err := d.followKernel(start.Add(renewPause)); err != nil {
			t.Errorf("after the pause: %v", err)
		}
	}
	if d.renewals != 3 {
		t.Errorf("%d tries after the pause, want 3: the first was no failure", d.renewals)
	}
}

// TestDaemonSweepsDeniedSources: once a minute, with the writer lock. A failure is told once, and the next minute tries again.
func TestDaemonSweepsDeniedSources(t *testing.T) {
	d := newDaemonFake(t)
	swept, held := 0, false
	var failure error
	d.machine.Sweep = func() (int, error) {
		if !held {
			t.Error("swept without the lock")
		}
		swept++
		return 0, failure
	}
	d.lock = func(context.Context) (func(), error) {
		held = true
		return func() { held = false }, nil
	}
	begin := time.Now()
	for _, step := range []struct {
		after   time.Duration
		failure error
		swept   int
	}{
		{0, nil, 1}, {59 * time.Second, nil, 1}, {time.Minute, nil, 2}, {2 * time.Minute, errors.New("no memory"), 3}, {3 * time.Minute, errors.New("no memory"), 4},
		{4*time.Minute - time.Second, nil, 4}, {4 * time.Minute, nil, 5},
	} {
		failure = step.failure
		d.sweep(context.Background(), begin.Add(step.after))
		if swept != step.swept {
			t.Errorf("after %s: swept %d times, want %d", step.after, swept, step.swept)
		}
	}
	if n := strings.Count(d.output.String(), "cannot remove denied sources whose time is over"); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, &d.output)
	}
}

// TestDaemonSweepsAtABeat: the loop itself sweeps.
func TestDaemonSweepsAtABeat(t *testing.T) {
	d := newDaemonFake(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	swept := false
	d.machine.Sweep = func() (int, error) {
		swept = true
		cancel() // ends the loop
		return 0, nil
	}
	d.beat = time.Millisecond
	if err := d.loop(ctx, make(chan loader.Event)); err != nil || !swept {
		t.Errorf("swept is %t, %v", swept, err)
	}
}

// TestDaemonTriesAgain: if an interface refuses, the other interfaces work, and the error is logged once.
func TestDaemonTriesAgain(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()
	d.machine.Unplug("wan0")
	d.machine.Plug("wan0", 9)
	d.machine.Refuse["wan0"] = errors.New("wan0 is busy")
	d.follow(ctx, links())
	d.machine.WantDone(t, "interfaces lan0", "detach 2")
	for range 3 {
		d.follow(ctx, links())
		d.machine.WantDone(t, "interfaces lan0")
	}
	if n := strings.Count(d.output.String(), "wan0 is busy"); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, &d.output)
	}
	delete(d.machine.Refuse, "wan0")
	d.follow(ctx, links())
	d.machine.WantDone(t, "attach wan0 auto", "interfaces wan0,lan0")
}

// TestDaemonForgetsTheOldIndex: an interface that is deleted and made again has a new index.
func TestDaemonForgetsTheOldIndex(t *testing.T) {
	d := newDaemonFake(t)
	d.machine.Unplug("wan0")
	d.machine.Plug("wan0", 9)
	d.follow(context.Background(), links())
	d.machine.WantDone(t, "attach wan0 auto", "interfaces wan0,lan0", "detach 2")
}

// TestDaemonWithoutLock: if the lock is not free, the next beat does the work.
func TestDaemonWithoutLock(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()
	d.lockErr = loader.ErrLocked
	d.follow(ctx, routes())
	d.machine.WantDone(t)
	d.lockErr = nil
	d.follow(ctx, links())
	d.machine.WantDone(t, "interfaces wan0,lan0", "routes")
	d.follow(ctx, links())
	d.machine.WantDone(t, "interfaces wan0,lan0")
}

// TestDaemonEndsWithItsDatapath: the daemon ends if the datapath is removed, so that the next daemon makes
// a new one.
func TestDaemonEndsWithItsDatapath(t *testing.T) {
	d := newDaemonFake(t)
	d.machine.Attached = map[int]loader.Attachment{}
	d.machine.Refuse["wan0"] = loader.ErrNotLoaded
	events := make(chan loader.Event, 1)
	events <- links()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := d.loop(ctx, events); !errors.Is(err, loader.ErrNotLoaded) {
		t.Errorf("loop: %v, want %v", err, loader.ErrNotLoaded)
	}
}

// TestDaemonWarnsOfForwarding: the daemon logs when the kernel stops forwarding, and when it forwards
// again.
func TestDaemonWarnsOfForwarding(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()
	told := func(when, text string, want int) {
		t.Helper()
		if got := strings.Count(d.output.String(), text); got != want {
			t.Errorf("%s: %q is told %d times, want %d:\n%s", when, text, got, want, &d.output)
		}
	}
	off := map[string]bool{}
	d.machine.ForwardingOff = off
	d.follow(ctx, links())
	told("all on", "forwarding is off", 0)

	off["net.ipv4/all"] = true
	for range 3 {
		d.follow(ctx, links())
	}
	told("IPv4 off", "level=WARN msg=\"IPv4 forwarding is off; run sysctl -w net.ipv4.ip_forward=1\"", 1)
	delete(off, "net.ipv4/all")
	for range 3 {
		d.follow(ctx, links())
	}
	told("IPv4 on again", "the kernel forwards packets now", 1)

	// IPv6 matters only if an IPv6 forward runs.
	off["net.ipv6/all"] = true
	d.follow(ctx, links())
	told("IPv6 off, and no forward of it", "IPv6 forwarding is off", 0)
	d.file.Forwards = append(slices.Clone(d.file.Forwards), rule.Forward{
		Name: "six", Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: 81, Last: 81}, Target: netip.MustParseAddr("fd00::20"),
	})
	d.reload(ctx)
	told("IPv6 off", "IPv6 forwarding is off; run sysctl -w net.ipv6.conf.all.forwarding=1", 1)
}

// TestDaemonTellsOfNoInterfaces: if the file names no interface, each reload logs how to name interfaces.
func TestDaemonTellsOfNoInterfaces(t *testing.T) {
	d := newDaemonFake(t)
	d.notices = func(cfg config.Config) []string { return []string{"", router.Unconfigured(cfg, "/etc/x.toml")} }
	d.file.WAN, d.file.LAN, d.file.Forwards = nil, nil, nil
	d.reload(context.Background())
	const want = `level=WARN msg="no interfaces are configured; set wan and lan in /etc/x.toml, then systemctl reload hairpin`
	if got := strings.Count(d.output.String(), want); got != 1 {
		t.Errorf("told %d times:\n%s", got, &d.output)
	}
	d.file = routertest.Config()
	d.reload(context.Background())
	if got := strings.Count(d.output.String(), want); got != 1 {
		t.Errorf("told %d times after interfaces were named:\n%s", got, &d.output)
	}
}

func TestReload(t *testing.T) {
	d := newDaemonFake(t)
	d.file.Forwards[0].Target = d.file.Forwards[0].Target.Next()
	d.reload(context.Background())
	d.machine.WantDone(t, "apply", "interfaces wan0,lan0")
	if len(d.taken) != 1 || !d.taken[0] {
		t.Errorf("reloads taken: %v, want one", d.taken)
	}
	if len(d.notified) != 2 || !strings.HasPrefix(d.notified[0], "RELOADING=1\nMONOTONIC_USEC=") || !strings.HasPrefix(d.notified[1], "READY=1") {
		t.Errorf("told the service manager %q", d.notified)
	}
}

// TestReloadOfInvalidFiles: invalid files change nothing, and every problem is logged.
func TestReloadOfInvalidFiles(t *testing.T) {
	for name, spoil := range map[string]func(d *daemonFake){
		"file": func(d *daemonFake) {
			d.fileErr = errors.Join(errors.New("x.toml:1:1: one"), errors.New("x.toml:2:1: two"))
		},
		"forward": func(d *daemonFake) { d.file.Forwards[0].Name = "" },
		"target":  func(d *daemonFake) { d.file.Forwards[0].Target = d.machine.List[1].Addresses[0].Addr() },
		"interface refuses": func(d *daemonFake) {
			d.machine.Plug("lan1", 7)
			d.machine.Refuse["lan1"] = errors.New("busy")
			d.file.LAN = []string{"lan0", "lan1"}
		},
		"metrics address": func(d *daemonFake) { d.file.MetricsListen = "127.0.0.1:99999" },
		"web config": func(d *daemonFake) {
			d.file.MetricsListen, d.file.MetricsWeb = "127.0.0.1:0", "/nowhere/web.yml"
		},
		"locked": func(d *daemonFake) { d.lockErr = loader.ErrLocked },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemonFake(t)
			before := *d.machine.Config
			d.file.Forwards = append([]rule.Forward{}, d.file.Forwards...)
			spoil(d)
			d.reload(context.Background())
			d.machine.WantDone(t)
			if d.machine.Config.Forwards[0].Target != before.Forwards[0].Target || d.port.at.listen != "" {
				t.Error("something changed")
			}
			if len(d.taken) != 1 || d.taken[0] {
				t.Errorf("reloads taken: %v, want one refused", d.taken)
			}
			if last := d.notified[len(d.notified)-1]; !strings.HasPrefix(last, "READY=1") {
				t.Errorf("the service manager waits: %q", d.notified)
			}
			if name == "file" && (!strings.Contains(d.output.String(), "x.toml:1:1") || !strings.Contains(d.output.String(), "x.toml:2:1")) {
				t.Errorf("problems are missing:\n%s", &d.output)
			}
		})
	}
}

// TestStatusForServiceManager: the service manager learns which interfaces are attached and which are not there, once for each change,
// and that the files do not run.
func TestStatusForServiceManager(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()
	say := func(want ...string) {
		t.Helper()
		d.sayStatus()
		d.sayStatus()
		if !slices.Equal(d.notified, want) {
			t.Errorf("told the service manager %q, want %q", d.notified, want)
		}
		d.notified = nil
	}
	say("STATUS=attached: wan0, lan0")
	d.machine.Unplug("wan0")
	d.follow(ctx, links())
	say("STATUS=attached: lan0; not there yet: wan0")
	d.machine.Plug("wan0", 9)
	d.follow(ctx, links())
	say("STATUS=attached: wan0, lan0")
	d.fileErr = errors.New("x.toml:1:1: no key\nx.toml:2:1: no value")
	d.reload(ctx)
	d.notified = nil // the answer to the reload
	say("STATUS=attached: wan0, lan0; the last reload failed: x.toml:1:1: no key")
}

// TestReloadThatIsUnfinished: a configuration that runs counts as taken, even if a later step failed. The next beat repeats that step.
func TestReloadThatIsUnfinished(t *testing.T) {
	d := newDaemonFake(t)
	d.file.Forwards[0].Target = d.file.Forwards[0].Target.Next()
	d.machine.Unfinished = true
	d.reload(context.Background())
	if len(d.taken) != 1 || !d.taken[0] {
		t.Errorf("reloads taken: %v, want one", d.taken)
	}
	if last := d.notified[len(d.notified)-1]; last != "READY=1\nSTATUS=reloaded" {
		t.Errorf("told the service manager %q", last)
	}
	if log := d.output.String(); !strings.Contains(log, "cannot finish the reload") || strings.Contains(log, "previous configuration") {
		t.Errorf("log:\n%s", log)
	}
}

// TestReloadMovesMetrics: a reload moves the metrics server, also to an address that includes the old
// address. If the reload fails, the server stays.
func TestReloadMovesMetrics(t *testing.T) {
	d := newDaemonFake(t)
	probe, err := startMetrics(place{listen: "127.0.0.1:0"}, http.NotFoundHandler(), defaultLimits, d.log)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(probe.address(), ":")
	probe.Close()
	serves := func(want string) {
		t.Helper()
		if d.port.at.listen != want {
			t.Errorf("metrics at %q, want %q", d.port.at.listen, want)
		}
		response, err := http.Get("http://127.0.0.1:" + port + "/")
		if err != nil {
			t.Errorf("metrics: %v", err)
			return
		}
		response.Body.Close()
	}
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "127.0.0.1"} {
		d.file.MetricsListen = host + ":" + port
		d.reload(context.Background())
		serves(d.file.MetricsListen)
	}

	d.file.MetricsListen = "127.0.0.1:0"
	d.machine.ApplyErr = errors.New("no memory")
	d.reload(context.Background())
	serves("127.0.0.1:" + port)
}

// TestMetricsPortInUse: if the metrics port is in use, the daemon works without metrics, and serves them
// when the port is free.
func TestMetricsPortInUse(t *testing.T) {
	d := newDaemonFake(t)
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	d.file.MetricsListen = holder.Addr().String()
	d.reload(context.Background())
	d.reload(context.Background())
	d.machine.WantDone(t, "apply", "interfaces wan0,lan0", "apply", "interfaces wan0,lan0")
	if !slices.Equal(d.taken, []bool{true, true}) {
		t.Errorf("reloads taken: %v, want two", d.taken)
	}
	told := d.output.String()
	if strings.Count(told, "address already in use") != 1 || !strings.Contains(told, "level=WARN") || !strings.Contains(told, "address="+d.file.MetricsListen) {
		t.Errorf("told, want once and with the address:\n%s", told)
	}

	holder.Close()
	d.beat = time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	d.watchdog, d.notify = true, func(string) {
		if d.port.server != nil {
			cancel()
		}
	}
	if err := d.loop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	response, err := http.Get("http://" + d.file.MetricsListen + "/")
	if err != nil {
		t.Fatalf("no metrics though the port is free: %v", err)
	}
	response.Body.Close()
}

// TestMetricsServerThatStopped: a server that has stopped is started again.
func TestMetricsServerThatStopped(t *testing.T) {
	d := newDaemonFake(t)
	d.port.move(place{listen: "127.0.0.1:0"})
	first := d.port.server
	first.listener.Close()
	<-first.ended
	d.port.ensure()
	if d.port.server == first || !d.port.server.serves() {
		t.Error("not started again")
	}
}

func TestLoopEndsWithItsContext(t *testing.T) {
	d := newDaemonFake(t)
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan loader.Event)
	ended := make(chan error, 1)
	go func() { ended <- d.loop(ctx, events) }()
	events <- routes()
	cancel()
	close(events)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("loop: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the loop goes on")
	}
}

// TestLoopNoticesWhatOthersApply: the daemon takes over the configuration that a command applied.
func TestLoopNoticesWhatOthersApply(t *testing.T) {
	d := newDaemonFake(t)
	d.beat, d.watchdog = time.Millisecond, true
	d.machine.Plug("lan1", 7)
	d.machine.Config.LAN = []string{"lan0", "lan1"}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	d.notify = func(state string) {
		if state != "WATCHDOG=1" && !strings.HasPrefix(state, "STATUS=attached: wan0, lan0") {
			t.Errorf("told the service manager %q", state)
		}
		if len(d.state.load()) == 3 {
			cancel()
		}
	}
	if err := d.loop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if ports := d.state.load(); len(ports) != 3 || ports[2].Attachment == nil {
		t.Errorf("looks after %+v, want lan1 too", ports)
	}
}

func TestLoopReloadsOnHangup(t *testing.T) {
	d := newDaemonFake(t)
	ctx, cancel := context.WithCancel(context.Background())
	hangup := make(chan os.Signal, 1)
	d.reloaded = func(bool) { cancel() }
	hangup <- unix.SIGHUP
	d.reloads = hangup
	if err := d.loop(ctx, nil); err != nil {
		t.Errorf("loop: %v", err)
	}
}

func TestHealth(t *testing.T) {
	var s state
	if s.Ready() == nil {
		t.Error("ready before the start")
	}
	s.ready.Store(true)
	s.turn()
	if err := errors.Join(s.Ready(), s.Healthy()); err != nil {
		t.Error(err)
	}
	s.turned.Store(time.Now().Add(-2 * stalledAfter).UnixNano())
	if s.Healthy() == nil {
		t.Error("healthy though the loop stands still")
	}
}
