// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"hairpin/cmd/hairpin/leases"
	"hairpin/loader"
	"hairpin/maps/rule"
)

// leaseFake is a daemon that follows lease files. The test has its clock.
type leaseFake struct {
	*daemonFake
	path string
	now  time.Time
}

func newLeaseFake(t *testing.T) *leaseFake {
	t.Helper()
	d := &leaseFake{newDaemonFake(t), filepath.Join(t.TempDir(), "upnp.leases"), time.Now()}
	d.file.Leases.Files = []string{d.path}
	d.apply(t, "leases")
	d.machine.Did()
	return d
}

// apply makes d.file the running configuration.
func (d *leaseFake) apply(t *testing.T, digest string) {
	t.Helper()
	d.file.Digest = digest
	if _, err := d.keeper.Apply(d.file, "apply"); err != nil {
		t.Fatal(err)
	}
}

// write replaces the lease file by one with a mapping of each port, and with extra. The file is not fresh.
func (d *leaseFake) write(t *testing.T, extra string, ports ...int) {
	t.Helper()
	d.writeTo(t, d.path, extra, ports...)
}

func (d *leaseFake) writeTo(t *testing.T, path, extra string, ports ...int) {
	t.Helper()
	var text strings.Builder
	for _, port := range ports {
		fmt.Fprintf(&text, "TCP:%d:10.0.3.50:%d:0:console\n", port, port)
	}
	text.WriteString(extra)
	next := path + ".next"
	if err := errors.Join(os.WriteFile(next, []byte(text.String()), 0o644), os.Chtimes(next, d.now, d.now.Add(-2*time.Hour)), os.Rename(next, path)); err != nil {
		t.Fatal(err)
	}
}

// look lets so many looks at the files pass.
func (d *leaseFake) look(times int) {
	for range times {
		d.now = d.now.Add(leasePoll)
		if d.leases.due.IsZero() || !d.now.Before(d.leases.due) {
			d.leases.follow(context.Background(), d.now)
		}
	}
}

func (d *leaseFake) want(t *testing.T, when, want string) {
	t.Helper()
	var names []string
	for _, f := range d.machine.Config.Forwards {
		if f.IsLease() {
			names = append(names, strings.TrimPrefix(f.Name, "lease-tcp-")+map[bool]string{true: "*"}[f.Drains()])
		}
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != want {
		t.Errorf("%s: %q, want %q\n%s", when, got, want, &d.output)
	}
}

// wantChanges checks how often the tables were changed since the machine's last Did.
func (d *leaseFake) wantChanges(t *testing.T, when string, want int) {
	t.Helper()
	got := 0
	for _, did := range d.machine.Did() {
		if did == "apply" {
			got++
		}
	}
	if got != want {
		t.Errorf("%s: %d changes of the tables, want %d", when, got, want)
	}
}

func valueOf(t *testing.T, metric prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := metric.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetGauge().GetValue() + m.GetCounter().GetValue()
}

func TestLeasesAreFollowed(t *testing.T) {
	d := newLeaseFake(t)
	d.look(1)
	d.want(t, "no file", "")
	d.write(t, "", 3074, 3075)
	d.look(1)
	d.want(t, "the file has just changed", "")
	d.look(1)
	d.want(t, "two looks later", "3074 3075")
	d.wantChanges(t, "two mappings", 1)
	if got := valueOf(t, d.leases.counters.running); got != 2 {
		t.Errorf("%v mappings in the metrics", got)
	}
	d.look(100)
	d.wantChanges(t, "nothing has changed", 0)
	d.write(t, "", 3074, 3075)
	d.look(2)
	d.wantChanges(t, "a file with the same mappings", 0)
	d.write(t, "", 3075)
	d.look(2)
	d.want(t, "deleted", "3074* 3075")
	if err := os.Remove(d.path); err != nil {
		t.Fatal(err)
	}
	d.look(2)
	d.want(t, "no file any more", "3074* 3075*")
}

// TestRenewedLease: miniupnpd renews a mapping in two steps. The daemon does not read the file between them.
func TestRenewedLease(t *testing.T) {
	d := newLeaseFake(t)
	d.write(t, "", 3074)
	d.look(2)
	d.machine.Did()
	d.write(t, "")
	d.look(1)
	d.write(t, "", 3074)
	d.look(3)
	d.want(t, "renewed", "3074")
	d.wantChanges(t, "renewed", 0)
}

// TestFileThatChangesAllTheTime is read nevertheless.
func TestFileThatChangesAllTheTime(t *testing.T) {
	d := newLeaseFake(t)
	d.write(t, "", 3074)
	d.look(2)
	for i := range int(leaseSettle/leasePoll) + 1 {
		d.write(t, "", 3075, 4000+i)
		d.look(1)
	}
	if running := d.machine.Config.Forwards; !slices.ContainsFunc(running, func(f rule.Forward) bool { return f.Name == "lease-tcp-3075" }) {
		t.Errorf("%+v", running)
	}
}

// TestLeaseEnds: a mapping ends at its time, whether miniupnpd runs or not.
func TestLeaseEnds(t *testing.T) {
	d := newLeaseFake(t)
	end := d.now.Add(10 * leasePoll).Truncate(time.Second)
	d.write(t, fmt.Sprintf("TCP:3074:10.0.3.50:3074:%d:console\n", end.Unix()), 3075)
	d.look(2)
	d.want(t, "before", "3074 3075")
	d.look(12)
	d.want(t, "after", "3074* 3075")
	d.wantChanges(t, "made, and ended", 2)
}

// TestBrokenLeaseFile: what cannot be read keeps the forwards as they are; broken lines cost only themselves.
func TestBrokenLeaseFile(t *testing.T) {
	d := newLeaseFake(t)
	d.write(t, "", 3074)
	d.look(2)
	d.write(t, "rubbish\nTCP:3076:10.0.3.50:30", 3074, 3075)
	d.look(2)
	d.want(t, "broken lines", "3074 3075")
	if text := d.output.String(); !strings.Contains(text, `lines=2`) || !strings.Contains(text, "line 3: ") {
		t.Errorf("not said:\n%s", text)
	}
	d.write(t, "", 3074)
	if err := os.Chmod(d.path, 0o666); err != nil {
		t.Fatal(err)
	}
	d.look(20)
	d.want(t, "anybody may write the file", "3074 3075")
	if text := d.output.String(); strings.Count(text, "mode 0666") != 1 {
		t.Errorf("said more than once, or not:\n%s", text)
	}
	if got := valueOf(t, d.leases.counters.failures); got != 1 {
		t.Errorf("%v failures in the metrics", got)
	}
	if err := os.Chmod(d.path, 0o644); err != nil {
		t.Fatal(err)
	}
	d.look(2)
	d.want(t, "cured", "3074 3075*")
}

// TestLeasesAtStart: the running forwards stay until the daemon has read the file once.
func TestLeasesAtStart(t *testing.T) {
	d := newLeaseFake(t)
	d.write(t, "", 3074)
	d.look(2)
	if err := os.Chmod(d.path, 0o666); err != nil {
		t.Fatal(err)
	}
	d.leases = newLeaseFollower(d.daemon) // as after a restart
	d.look(20)
	d.want(t, "the file cannot be read", "3074")
	d.write(t, "", 3075)
	d.look(2)
	d.want(t, "the file can be read", "3074* 3075")
}

// TestUnreadableLeaseFileAtStart: the forwards of a file that the daemon cannot read stay. The other files are followed.
func TestUnreadableLeaseFileAtStart(t *testing.T) {
	d := newLeaseFake(t)
	other := d.path + "2"
	d.file.Leases.Files = append(d.file.Leases.Files, other)
	d.apply(t, "two files")
	end := d.now.Add(20 * leasePoll).Truncate(time.Second)
	ending := fmt.Sprintf("TCP:3075:10.0.3.50:3075:%d:console\n", end.Unix())
	d.write(t, ending, 3074)
	d.writeTo(t, other, "", 4000)
	d.look(2)
	d.want(t, "both files can be read", "3074 3075 4000")
	if err := os.Chmod(other, 0o666); err != nil {
		t.Fatal(err)
	}
	d.leases = newLeaseFollower(d.daemon) // as after a restart
	d.look(2)
	d.want(t, "the second file cannot be read", "3074 3075 4000")
	d.write(t, ending, 3074, 3076)
	d.look(2)
	d.want(t, "made in the first file", "3074 3075 3076 4000")
	d.write(t, ending, 3076)
	d.look(2)
	d.want(t, "deleted in the first file", "3074* 3075 3076 4000")
	d.look(20)
	d.want(t, "ended in the first file", "3074* 3075* 3076 4000")
	d.writeTo(t, other, "", 4001)
	d.look(2)
	d.want(t, "the second file can be read", "3074* 3075* 3076 4000* 4001")
}

// TestLeaseFileIsReadAgain: an error that passes changes nothing of the file, so the daemon tries again by itself.
func TestLeaseFileIsReadAgain(t *testing.T) {
	d := newLeaseFake(t)
	d.write(t, "", 3074)
	d.look(2)
	read, tries := d.leases.read, 0
	d.leases.read = func(path string) (leases.Content, error) {
		if tries++; tries <= 2 {
			return leases.Content{}, syscall.EIO
		}
		return read(path)
	}
	d.write(t, "", 3075)
	d.look(10)
	d.want(t, "the file cannot be read", "3074")
	if tries != 1 {
		t.Errorf("%d tries in 5 seconds, want 1", tries)
	}
	d.look(3 * int(leaseRetry/leasePoll))
	d.want(t, "the file can be read", "3074* 3075")
	if tries != 3 {
		t.Errorf("%d tries, want 3: the third succeeds", tries)
	}
}

// TestRefusedLeasesAreTold once, with their reasons, and are tried again.
func TestRefusedLeasesAreTold(t *testing.T) {
	d := newLeaseFake(t)
	d.write(t, "TCP:81:192.168.7.7:81:0:x\nTCP:82:1.2.3.4:10.0.3.50:82:0:x\n", 80, 3074)
	d.look(200)
	d.want(t, "refused", "3074")
	for reason, want := range map[string]float64{"taken": 1, "target": 1, "remote_host": 1, "limit": 0, "duplicate": 0} {
		if got := valueOf(t, d.leases.counters.refused.WithLabelValues(reason)); got != want {
			t.Errorf("%v mappings refused for %s, want %v", got, reason, want)
		}
	}
	if text := d.output.String(); strings.Count(text, "is not reflected") != 3 {
		t.Errorf("not said once each:\n%s", text)
	}
	d.machine.Edit("lan0", func(l *loader.Link) { l.Addresses = append(l.Addresses, netip.MustParsePrefix("192.168.7.1/24")) })
	d.look(int(leaseRetry/leasePoll) + 2)
	d.want(t, "the LAN has the network now", "3074 81")
}

// TestOldProgramsTakeNoLeases: programs of another version would open the ports to the Internet.
func TestOldProgramsTakeNoLeases(t *testing.T) {
	d := newLeaseFake(t)
	var old error = errors.New("old programs")
	d.leases.blocked = func() error { return old }
	d.write(t, "", 3074)
	d.look(10)
	d.want(t, "old programs", "")
	old = nil
	d.look(int(leaseRetry/leasePoll) + 1)
	d.want(t, "new programs", "3074")
}

// TestLeasesOfAnotherConfiguration: other files, another limit, and no file at all.
func TestLeasesOfAnotherConfiguration(t *testing.T) {
	d := newLeaseFake(t)
	d.write(t, "", 3074, 3075, 3076)
	d.look(2)
	apply := func(digest string) {
		t.Helper()
		d.apply(t, digest)
		d.leases.configure(d.now)
		d.look(2)
	}
	d.file.Leases.Max = 2
	apply("two")
	d.want(t, "a limit of 2", "3074 3075 3076*")
	d.file.Leases.Files = append(d.file.Leases.Files, d.path+"6")
	apply("three")
	d.want(t, "another file, which is missing", "3074 3075 3076*")
	d.file.Leases.Files = nil
	apply("four")
	if got := valueOf(t, d.leases.counters.running); got != 0 || d.leases.wait(d.now) != nil {
		t.Errorf("no file is followed, but there are %v mappings", got)
	}
	d.want(t, "no file", "3076*")
}
