// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
	"golang.org/x/sys/unix"

	"hairpin/loader/dirlock"
	"hairpin/maps/slots"
	"hairpin/test/home"
	"hairpin/test/lab"
)

var privilege = scenario{
	number: 9, name: "Privilege",
	demanded: "a user, also with CAP_NET_ADMIN, cannot read, write or pre-create pins, sockets, files or the lock; the daemon and every command work with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON alone, except trace and watch conn, which say that they need CAP_SYS_ADMIN",
	run:      privileges,
}

// threeCapabilities starts a command as root with the capabilities that the unit asks for.
var threeCapabilities = []string{"setpriv", "--bounding-set=-all,+bpf,+net_admin,+perfmon", "--inh-caps=-all"}

func privileges(t *trial) figures {
	said := []string{"running: " + t.keepOut().String(), "planted before: " + t.planted().String()}
	for _, mode := range t.modes() {
		said = append(said, t.fewCapabilities(mode))
	}
	return figures{measured: strings.Join(said, "; "), nftables: "no pins, no daemon"}
}

// fewCapabilities runs the daemon and every command with three capabilities, and returns the figure of the mode. Only the mount is made
// before: mount(2) needs CAP_SYS_ADMIN.
func (t *trial) fewCapabilities(mode string) string {
	t.Helper()
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Server.ServeTCP(":8080")
	hp := lab.NewHairpin(n.Router, home.Config(mode, home.Forwards))
	if err := os.Mkdir(hp.Dir, 0o700|os.ModeSticky); err != nil { // as hairpin makes it, so that it removes it
		t.Fatal(err)
	}
	if err := unix.Mount("hairpin", hp.Dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	few := hp.Under(threeCapabilities...)
	tried, failed := 0, 0
	run := func(commands ...string) {
		t.Helper()
		for _, command := range commands {
			tried++
			r, err := few.Try(strings.Fields(command)...)
			if err != nil {
				t.Fatal(err)
			}
			if r.Code != 0 {
				failed++
				t.Errorf("hairpin %s: exit code %d\n%s", command, r.Code, r.Stderr)
			}
		}
	}
	start := func() {
		few.Start()
		*hp = *few.Under() // the trial looks at this daemon, and removes it with all privileges
	}
	run("attach", "detach", "attach", "forward add early tcp 8441 to "+lab.Server+":8080", "detach --all")
	start()
	t.watch(n, hp)
	c := t.newCrowd(10, n.Internet, n.Client)
	rounds := t.choose(1, 2, 20)
	for round := range rounds {
		name := fmt.Sprintf("late%d", round)
		run("forward add "+name+" tcp 8443 to "+lab.Server+":8080",
			"forward show -s", "conn show", "conn count", "status", "check", "doctor", "dns --format hosts",
			"explain in wan0 tcp 203.0.113.9:5000 to "+lab.External+":8443",
			"forward disable "+name, "forward enable "+name, "forward replace "+name+" tcp 8444 to "+lab.Server+":8080",
			"save", "deny add 203.0.113.77", "deny add 203.0.113.128/26", "deny show", "deny del 203.0.113.77 203.0.113.128/26",
			"upgrade", "reload", "apply", "forward del "+name, "save", "diff", "apply --confirm 60s", "confirm",
			"forward disable dns", "rollback --list", "rollback",
			"watch --interval 100ms --count 2")
		doomed := home.Waiting(t.T, n.Guest)
		run("conn flush client " + lab.Guest)
		if err := hears(member{doomed, n.Guest.Name}); err != nil {
			t.Errorf("conn flush: %v", err)
		}
		if home.Scrape(t.T, n, "hairpin_forward_connections_total") == 0 {
			t.Error("no connections in the metrics")
		}
		// They attach to the running programs, whose types the kernel shows only to CAP_SYS_ADMIN (BPF_BTF_GET_FD_BY_ID).
		for _, command := range [][]string{{"trace", "--for", "100ms"}, {"watch", "conn", "--for", "100ms"}} {
			if said := few.Fail(2, command...); !strings.Contains(said, "needs CAP_SYS_ADMIN") {
				t.Errorf("hairpin %s with three capabilities says %q", command, said)
			}
		}
		few.Stop()
		t.forgets(hp, few)
		start()
		t.progress(round+1, rounds, "rounds of commands, "+mode)
	}
	t.none(c.alive(mode), "connections ended, "+mode)
	t.none(stale(t, hp.Dir), "pins of maps that are in no slot, "+mode)
	return fmt.Sprintf("%s: %d of %d commands work, and the daemon", mode, tried-failed, tried)
}

// forgets takes the pins of inner maps away, as a version before these pins leaves the datapath. A command with three capabilities then
// says which command root has to run. After this command the next one works.
func (t *trial) forgets(hp, few *lab.Hairpin) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(hp.Dir, "datapath/inner")); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"forward", "run"} {
		if said := few.Fail(2, command); !strings.Contains(said, `run "hairpin upgrade" as root`) {
			t.Errorf("hairpin %s without pins of inner maps says %q", command, said)
		}
	}
	hp.Run("prepare") // what the unit runs before the daemon: the same as upgrade, and a mount
	few.Run("forward")
}

// stale returns the number of pins of inner maps whose map is in no slot. There are pins of all other inner maps.
func stale(t *trial, dir string) (count int) {
	t.Helper()
	o, err := objectsOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(o.inner) == 0 {
		t.Error("no inner map has a pin")
	}
	count, err = o.stale(dir)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// stale returns the number of pins of inner maps that are in no slot.
func (o *objects) stale(dir string) (count int, err error) {
	for _, name := range o.inner {
		outerName, slot, pinned, ok := slots.Parse(name)
		if !ok {
			return 0, fmt.Errorf("%q is no name of a pin of an inner map", name)
		}
		outer, err := ebpf.LoadPinnedMap(filepath.Join(dir, "datapath/maps", outerName), nil)
		if err != nil {
			return 0, err
		}
		var id uint32
		err = outer.Lookup(slot, &id)
		outer.Close()
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return 0, err
		}
		if ebpf.MapID(id) != pinned {
			count++
		}
	}
	return count, nil
}

// stranger is a user who is not root.
type stranger struct {
	name         string
	capabilities []uintptr
}

const nobody = 65534

var strangers = []stranger{
	{"a user", nil},
	{"a user with CAP_NET_ADMIN", []uintptr{unix.CAP_NET_ADMIN}},
}

// as runs do on a thread of a stranger, which ends then.
func (s stranger) as(do func()) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := lab.BecomeUser(nobody, s.capabilities...)
		if err == nil {
			do()
		}
		result <- err
	}()
	return <-result
}

// attempt is something that only root may do with what is at a path of hairpin's.
type attempt struct {
	name string
	try  func(path string) error
	// harmless attempts change nothing: root makes them, too, to show that they fail for want of privilege alone.
	harmless bool
}

// attempts are for everything.
var attempts = []attempt{
	{"remove", os.Remove, false},
	{"rename", func(path string) error { return os.Rename(path, path+"x") }, false},
	{"replace by a symbolic link", func(path string) error { return replaceByLink(path) }, false},
	{"change the mode", func(path string) error { return os.Chmod(path, 0o777) }, false},
	{"change the owner", func(path string) error { return os.Chown(path, nobody, nobody) }, false},
	{"make a file beside", func(path string) error { return os.WriteFile(path+"x", nil, 0o600) }, false},
	{"make a directory beside", func(path string) error { return os.Mkdir(path+"x", 0o700) }, false},
}

// attemptsOn are for one type of file more.
var attemptsOn = map[fs.FileMode][]attempt{
	fs.ModeDir: directoryAttempts,
	fs.ModeSocket: {{"connect to", func(path string) error {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
		}
		return err
	}, true}},
	0: append(writeAttempts, attempt{"read", func(path string) error { return open(path, unix.O_RDONLY) }, true}),
}

var writeAttempts = []attempt{
	{"write", func(path string) error { return open(path, unix.O_WRONLY) }, false},
	{"truncate", func(path string) error { return os.Truncate(path, 0) }, false},
}

var directoryAttempts = []attempt{
	{"list", func(path string) error { _, err := os.ReadDir(path); return err }, true},
	{"lock", func(path string) error {
		file, err := dirlock.TryShared(path)
		if file != nil {
			file.Close()
		}
		return err
	}, false},
	{"make a directory in", func(path string) error { return os.Mkdir(filepath.Join(path, "x"), 0o700) }, false},
	{"make a socket in", func(path string) error {
		l, err := net.Listen("unix", filepath.Join(path, "x"))
		if err == nil {
			l.Close()
		}
		return err
	}, false},
}

// pinAttempts are for pins. open(2) of a pin fails for root, too.
var pinAttempts = []attempt{
	{"open the object of", func(path string) error {
		object, err := pin.Load(path, nil)
		if err == nil {
			object.Close()
		}
		return err
	}, true},
}

func open(path string, how int) error {
	fd, err := unix.Open(path, how|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func replaceByLink(path string) error {
	link := path + "x"
	if err := os.Symlink("/dev/null", link); err != nil {
		return err
	}
	return errors.Join(os.Rename(link, path), os.Remove(link))
}

// target is a path of hairpin's, with what may be tried on it.
type target struct {
	path     string
	attempts []attempt
}

// targetsOf returns all pins, files, directories and sockets of hairpin.
func (t *trial) targetsOf(hp *lab.Hairpin) (list []target) {
	t.Helper()
	for _, top := range []string{hp.Dir, hp.Dir + ".state", hp.File} {
		err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			more := attemptsOn[entry.Type()]
			if top == hp.Dir && !entry.IsDir() {
				more = slices.Concat(writeAttempts, pinAttempts)
			}
			if top == hp.Dir && strings.Contains(entry.Name(), ".") {
				return nil // the kernel's own files
			}
			list = append(list, target{path, slices.Concat(attempts, more)})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// attemptCount counts attempts, and those that were refused.
type attemptCount struct{ tried, refused int }

func (c attemptCount) String() string {
	return fmt.Sprintf("%d of %d attempts refused", c.refused, c.tried)
}

// mustFail counts an attempt that must fail for want of privilege.
func (t *trial) mustFail(c *attemptCount, who, what string, err error) {
	c.tried++
	if errors.Is(err, fs.ErrPermission) {
		c.refused++
		return
	}
	t.Errorf("%s could %s: %v", who, what, err)
}

// keepOut lets strangers try everything on a running hairpin. Nobody has closed the directory above: hairpin itself must keep them out.
func (t *trial) keepOut() (c attemptCount) {
	t.Helper()
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	if err := os.Chmod(filepath.Dir(hp.Dir), 0o755); err != nil {
		t.Fatal(err)
	}
	hp.Start()
	hp.Run("forward", "add", "late", "tcp", "8443", "to", lab.Server+":8080")
	t.watch(n, hp)
	targets := t.targetsOf(hp)
	for _, target := range targets {
		for _, a := range target.attempts {
			if a.harmless {
				if err := a.try(target.path); err != nil {
					t.Errorf("root cannot %s %s: %v", a.name, target.path, err)
				}
			}
		}
	}
	before := hp.Run("forward", "show")
	for _, s := range strangers {
		err := s.as(func() {
			for _, target := range targets {
				for _, a := range target.attempts {
					t.mustFail(&c, s.name, a.name+" "+target.path, a.try(target.path))
				}
			}
			for name, try := range byID {
				t.mustFail(&c, s.name, name, try())
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if now := hp.Run("forward", "show"); now != before {
		t.Errorf("strangers have changed the forwards:\n%s\nwere\n%s", now, before)
	}
	if now := t.targetsOf(hp); len(now) != len(targets) {
		t.Errorf("%d paths, were %d", len(now), len(targets))
	}
	hp.Reload()
	return c
}

// byID are attempts on objects in the kernel that need no path.
var byID = map[string]func() error{
	"list maps":     func() error { _, err := ebpf.MapGetNextID(0); return err },
	"list programs": func() error { _, err := ebpf.ProgramGetNextID(0); return err },
	"list links":    func() error { all := new(link.Iterator); all.Next(); return all.Err() },
}

// trap is what a stranger makes before hairpin starts for the first time, where everybody may make files, as in /tmp.
type trap struct {
	name  string
	plant func(hp *lab.Hairpin, lair string) error
	// check fails if hairpin has stepped into the trap.
	check func(t *trial, hp *lab.Hairpin, lair string) error
}

var traps = []trap{
	{"the directory of the pins", func(hp *lab.Hairpin, _ string) error { return os.Mkdir(hp.Dir, 0o777) }, staysAway},
	{"a link in place of the pins", func(hp *lab.Hairpin, lair string) error { return os.Symlink(lair, hp.Dir) }, staysAway},
	{"a file in place of the pins", func(hp *lab.Hairpin, _ string) error { return os.WriteFile(hp.Dir, nil, 0o666) }, staysAway},
	{"a socket in place of the pins", func(hp *lab.Hairpin, _ string) error { return listenAt(hp.Dir) }, staysAway},
	{"the directory of the state", func(hp *lab.Hairpin, _ string) error { return os.Mkdir(hp.Dir+".state", 0o777) }, keepsNothing},
	{"a link in place of the state", func(hp *lab.Hairpin, _ string) error {
		return os.Symlink(filepath.Join(filepath.Dir(hp.Dir), "secret"), hp.Dir+".state")
	}, keepsNothing},
	{"the daemon's socket", func(hp *lab.Hairpin, _ string) error {
		if err := os.Mkdir(hp.Dir+".state", 0o777); err != nil {
			return err
		}
		return listenAt(filepath.Join(hp.Dir+".state", "control"))
	}, believesNobody},
	{"a configuration that was kept", func(hp *lab.Hairpin, _ string) error {
		generations := filepath.Join(hp.Dir+".state", "generations")
		return errors.Join(os.MkdirAll(generations, 0o777), os.WriteFile(filepath.Join(generations, "1.json"), []byte("{}"), 0o666))
	}, keepsNothing},
	{"the configuration file", func(hp *lab.Hairpin, _ string) error {
		return os.WriteFile(filepath.Join(filepath.Dir(hp.File), "planted.toml"), []byte(home.Config("tc", home.Forwards)), 0o666)
	}, func(_ *trial, hp *lab.Hairpin, _ string) error {
		return refuses(hp, "owned by", "-c", filepath.Join(filepath.Dir(hp.File), "planted.toml"), "attach")
	}},
	{"a link in place of the configuration file", func(hp *lab.Hairpin, lair string) error {
		path := filepath.Join(lair, "planted.toml")
		return errors.Join(os.WriteFile(path, []byte(home.Config("tc", home.Forwards)), 0o666), os.Symlink(path, filepath.Join(filepath.Dir(hp.File), "link.toml")))
	}, func(_ *trial, hp *lab.Hairpin, _ string) error {
		return refuses(hp, "owned by", "-c", filepath.Join(filepath.Dir(hp.File), "link.toml"), "attach")
	}},
}

// listenAt answers every command with "done", as a false daemon would.
func listenAt(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"done":true}`) }))
	return nil
}

// refuses runs a command that must fail, and say why.
func refuses(hp *lab.Hairpin, why string, command ...string) error {
	r, err := hp.Try(command...)
	if err == nil && (r.Code == 0 || !strings.Contains(r.Stderr, why)) {
		err = fmt.Errorf("hairpin %s: exit code %d, want a failure that says %q: %s", strings.Join(command, " "), r.Code, why, r.Stderr)
	}
	return err
}

// staysAway: hairpin does not start over what a stranger made in place of the pins.
func staysAway(_ *trial, hp *lab.Hairpin, lair string) error {
	left, err := os.ReadDir(lair)
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("hairpin wrote %v where a stranger wanted it", left))
	}
	return errors.Join(err, refuses(hp, hp.Dir, "attach"), refuses(hp, hp.Dir, "run"))
}

// keepsNothing: hairpin does not start while its state would be where a stranger may write, or where a stranger's link leads. It reads
// and writes nothing there.
func keepsNothing(_ *trial, hp *lab.Hairpin, _ string) error {
	state, secret := hp.Dir+".state", filepath.Join(filepath.Dir(hp.Dir), "secret")
	before := listing(state) + listing(secret)
	err := errors.Join(refuses(hp, state, "attach"), refuses(hp, state, "run"))
	if now := listing(state) + listing(secret); now != before {
		err = errors.Join(err, fmt.Errorf("hairpin has written %q, where was %q", now, before))
	}
	return err
}

// believesNobody: a command does not take a stranger's socket for that of the daemon.
func believesNobody(t *trial, hp *lab.Hairpin, lair string) error {
	return errors.Join(keepsNothing(t, hp, lair), refuses(hp, "belongs to another user", "reload"))
}

// listing returns the paths below a directory, one on each line; "" if there is none.
func listing(top string) string {
	var text strings.Builder
	// A link at the top is followed: what matters is where it leads.
	_ = filepath.WalkDir(top+"/", func(path string, _ fs.DirEntry, err error) error {
		fmt.Fprintln(&text, path)
		return err
	})
	return text.String()
}

// planted has a stranger set every trap, and then starts hairpin.
func (t *trial) planted() (c attemptCount) {
	t.Helper()
	n := lab.NewNetwork(t)
	for _, trap := range traps {
		hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
		dir := filepath.Dir(hp.Dir)
		lair := filepath.Join(dir, "lair")
		if err := errors.Join(os.Chmod(dir, 0o777|fs.ModeSticky), os.Mkdir(filepath.Join(dir, "secret"), 0o700)); err != nil {
			t.Fatal(err)
		}
		var planted error
		err := strangers[0].as(func() {
			planted = errors.Join(os.Mkdir(lair, 0o777), trap.plant(hp, lair))
		})
		if err := errors.Join(err, planted); err != nil {
			t.Fatalf("plant %s: %v", trap.name, err)
		}
		c.tried++
		if err := trap.check(t, hp, lair); err != nil {
			t.Errorf("planted %s: %v", trap.name, err)
			continue
		}
		c.refused++
	}
	return c
}
