// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// TestWatchAppendsLinesInAPipe: forwards with their rates and reasons with their counts, again and again, without control sequences.
func TestWatchAppendsLinesInAPipe(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":5353")
	hp := home.Start(t, n, "tc", home.Forwards)
	hp.Run("deny", "add", lab.Guest)
	load := n.Client.StartLoad(lab.External+":80", lab.External+":53")
	defer load.Stop()

	watch := hp.Spawn("watch", "--interval", "200ms")
	lab.Eventually(t, lab.Patience, func() error {
		if c, err := n.Guest.DialTCP(lab.External+":80", "", lab.Patience); err == nil {
			c.Close()
			t.Fatal("a denied client was served")
		}
		out := watch.Stdout.String()
		for _, want := range []string{
			`(?m)^\d\d:\d\d:\d\d connections established [1-9]\d* half-open \d+ closing \d+$`,
			`(?m)^\d\d:\d\d:\d\d forward web connections \d+ new/s [1-9]\S* packets/s [1-9]\S* bytes/s [1-9]\S*$`,
			`(?m)^\d\d:\d\d:\d\d forward dns connections \d+ new/s \S+ packets/s [1-9]\S* bytes/s [1-9]\S*$`,
			`(?m)^\d\d:\d\d:\d\d dropped denied packets [1-9]\d* packets/s \S+$`,
		} {
			if !regexp.MustCompile(want).MatchString(out) {
				return fmt.Errorf("no %s:\n%s", want, out)
			}
		}
		return nil
	})
	watch.Signal(unix.SIGINT)
	if code := watch.Wait(); code != 0 || strings.Contains(watch.Stdout.String(), "\x1b") {
		t.Errorf("exit code %d\n%q", code, watch.Stdout)
	}

	var looks int
	for line := range strings.Lines(hp.Run("-j", "watch", "--interval", "100ms", "--count", "2")) {
		var d struct {
			Schema int
			Watch  struct {
				Established int
				Forwards    []struct {
					Name    string
					Packets float64 `json:"packets_per_second"`
				}
			}
		}
		if err := json.Unmarshal([]byte(line), &d); err != nil || d.Schema != 1 || len(d.Watch.Forwards) != 2 || d.Watch.Forwards[1].Name != "web" || d.Watch.Forwards[1].Packets == 0 {
			t.Errorf("%v: %s", err, line)
		}
		looks++
	}
	if looks != 2 {
		t.Errorf("--count 2: %d documents", looks)
	}
}

// terminal is a pseudo terminal. Its test end reads what a command draws.
type terminal struct {
	master, slave *os.File
	mu            sync.Mutex
	drawn         strings.Builder
}

func openTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err = errors.Join(err, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{master: master, slave: slave}
	t.Cleanup(func() { slave.Close(); master.Close() })
	go func() {
		data := make([]byte, 4096)
		for {
			n, err := master.Read(data)
			if err != nil {
				return
			}
			term.mu.Lock()
			term.drawn.Write(data[:n])
			term.mu.Unlock()
		}
	}()
	return term
}

// resize changes the size; the command's process group gets SIGWINCH.
func (term *terminal) resize(t *testing.T, columns, rows uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(term.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		t.Fatal(err)
	}
}

// text returns what was drawn so far, and forgets it if told to.
func (term *terminal) text(forget bool) string {
	term.mu.Lock()
	defer term.mu.Unlock()
	text := term.drawn.String()
	if forget {
		term.drawn.Reset()
	}
	return text
}

// lastPage returns the lines of the last whole page.
func (term *terminal) lastPage() []string {
	pages := strings.Split(term.text(false), "\x1b[H")
	if len(pages) < 3 {
		return nil
	}
	page, _, _ := strings.Cut(pages[len(pages)-2], "\x1b[J")
	return strings.Split(strings.ReplaceAll(page, "\x1b[K", ""), "\r\n")
}

// TestWatchRedrawsATerminal: pages fit the terminal, also after it has got another size; q ends, and gives the terminal back as it
// was.
func TestWatchRedrawsATerminal(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	hp := home.Start(t, n, "tc", home.Forwards)
	home.Waiting(t, n.Client)
	term := openTerminal(t)
	term.resize(t, 60, 12)
	before, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(lab.Binary(t), "-c", hp.File, "--bpffs", hp.Dir, "watch", "--interval", "100ms")
	command.Stdin, command.Stdout, command.Stderr = term.slave, term.slave, term.slave
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	defer command.Process.Kill()

	shows := func(columns, rows int) func() error {
		return func() error {
			page := term.lastPage()
			if text := strings.Join(page, "\n"); !strings.Contains(text, "FORWARD") || !regexp.MustCompile(`(?m)^web +[1-9]`).MatchString(text) {
				return fmt.Errorf("the page lacks the forward:\n%s", text)
			}
			if len(page) > rows {
				return fmt.Errorf("%d lines, the terminal has %d:\n%s", len(page), rows, strings.Join(page, "\n"))
			}
			for _, line := range page {
				if len(line) > columns {
					return fmt.Errorf("%d columns, the terminal has %d: %s", len(line), columns, line)
				}
			}
			return nil
		}
	}
	lab.Eventually(t, lab.Patience, shows(60, 12))
	term.resize(t, 24, 4)
	term.text(true)
	lab.Eventually(t, lab.Patience, shows(24, 4))
	if _, err := term.master.WriteString("q"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("q: %v", err)
		}
	case <-time.After(lab.Patience):
		t.Fatal("q does not end it")
	}
	lab.Eventually(t, lab.Patience, func() error {
		if !strings.HasSuffix(term.text(false), "\x1b[?25h\x1b[?1049l") {
			return errors.New("the screen is not given back")
		}
		return nil
	})
	after, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal has other settings: %v, %+v, want %+v", err, after, before)
	}
}

// TestWatchFollowsTheDatapath: watch goes on after an upgrade, and ends with a message when hairpin is removed.
func TestWatchFollowsTheDatapath(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	hp.Run("attach")
	watch := hp.Spawn("watch", "--interval", "100ms")
	another := func(when string) {
		t.Helper()
		before := strings.Count(watch.Stdout.String(), "connections established")
		lab.Eventually(t, lab.Patience, func() error {
			if strings.Count(watch.Stdout.String(), "connections established") <= before {
				return fmt.Errorf("%s: no other line\n%s", when, watch.Stderr)
			}
			return nil
		})
	}
	another("at first")
	hp.Run("upgrade")
	another("after an upgrade")
	hp.Run("detach", "--all")
	if code := watch.Wait(); code != 4 || !strings.Contains(watch.Stderr.String(), "hairpin is not loaded") {
		t.Errorf("hairpin was removed: exit code %d, %s", code, watch.Stderr)
	}
}
