// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestScrapesShareAPage: many scrapes cost what one costs. No scrape gets a page whose rendering began before the request.
func TestScrapesShareAPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rendered, leave := 0, make(chan struct{})
		s := newPages(func(io.Writer) error { rendered++; <-leave; return nil }, tightLimits)
		got := make(chan *page)
		ask := func() {
			p, err := s.next(t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- p
		}
		go ask()
		synctest.Wait() // the first page is being rendered
		for range 100 {
			go ask()
		}
		synctest.Wait()
		leave <- struct{}{}
		first := <-got
		leave <- struct{}{}
		second := <-got
		for range 99 {
			if other := <-got; other != second || other == first {
				t.Error("a page of its own, want the page that all get who asked meanwhile")
			}
		}
		if rendered != 2 {
			t.Errorf("%d pages for one scrape and 100 scrapes after its beginning, want 2", rendered)
		}
	})
}

// TestRenderingRests: clients that ask without end make the daemon render for at most half of the time.
func TestRenderingRests(t *testing.T) {
	const takes, minute = 3 * time.Second, time.Minute
	synctest.Test(t, func(t *testing.T) {
		rendered := 0
		s := newPages(func(io.Writer) error { rendered++; time.Sleep(takes); return nil }, tightLimits)
		for begun := time.Now(); time.Since(begun) < minute; {
			if _, err := s.next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if most := int(minute/takes)/2 + 1; rendered < most-1 || rendered > most {
			t.Errorf("%d pages a minute, each of which takes %v; want %d", rendered, takes, most)
		}
	})
}

// TestAScrapeThatFails: an error is told to all that wait, and the next scrape tries again.
func TestAScrapeThatFails(t *testing.T) {
	broken := errors.New("no such table")
	s := newPages(func(io.Writer) error { return broken }, tightLimits)
	if _, err := s.next(t.Context()); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	broken = nil
	if _, err := s.next(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestPagesOfSlowClients: clients of earlier pages are cut off when these pages need more memory than they may, the oldest first. The
// last earlier page stays, however large.
func TestPagesOfSlowClients(t *testing.T) {
	noise := make([]byte, 1000)
	for i := range noise {
		noise[i] = byte(i * i >> 3)
	}
	render := func(w io.Writer) error { _, err := w.Write(noise); return err }
	one := new(page)
	if err := one.fill(render); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		kept int
		want string // of each of four earlier pages with two clients
	}{
		{"room for all", 4 * one.size, "open open open open"},
		{"room for two", 3*one.size - 1, "cut cut open open"},
		{"room for none", 0, "cut cut cut open"},
	} {
		limits := tightLimits
		limits.rest, limits.keptBytes = 0, 4*one.size
		s := newPages(render, limits)
		var clients []*client
		for range 4 {
			p, err := s.next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				conn, peer := net.Pipe()
				t.Cleanup(func() { peer.Close() })
				clients = append(clients, &client{conn: conn})
				t.Cleanup(s.hold(p, clients[len(clients)-1]))
			}
		}
		s.kept = c.kept
		if _, err := s.next(t.Context()); err != nil {
			t.Fatal(err)
		}
		var got []string
		for pair := range slices.Chunk(clients, 2) {
			state := map[bool]string{true: "cut", false: "open"}
			first, second := state[closed(pair[0])], state[closed(pair[1])]
			if first != second {
				t.Errorf("%s: one client of a page is %s, the other %s", c.what, first, second)
			}
			got = append(got, first)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func closed(c *client) bool {
	return errors.Is(c.conn.SetDeadline(time.Time{}), io.ErrClosedPipe)
}
