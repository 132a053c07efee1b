// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
)

// clients are the connections to a server. A limit alone would not do: whoever opens that many and says nothing would
// keep everybody else out. So one more takes the place of another that is not being answered.
type clients struct {
	limit int

	mu   sync.Mutex
	open []*client // the one first that was opened, or answered, longest ago
}

type client struct {
	conn     net.Conn
	answered bool // at this moment
}

type clientKey struct{}

// admit takes a new connection; it is the server's ConnContext.
func (c *clients) admit(ctx context.Context, conn net.Conn) context.Context {
	entered := &client{conn: conn}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = append(c.open, entered)
	if len(c.open) > c.limit {
		if i := slices.IndexFunc(c.open, func(other *client) bool { return !other.answered }); i >= 0 {
			c.open[i].conn.Close()
			c.open = slices.Delete(c.open, i, i+1)
		}
	}
	return context.WithValue(ctx, clientKey{}, entered)
}

// forget drops a connection that has ended; it is the server's ConnState.
func (c *clients) forget(conn net.Conn, state http.ConnState) {
	if state != http.StateClosed {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = slices.DeleteFunc(c.open, func(other *client) bool { return other.conn == conn })
}

// answering marks connections while next answers for them.
func (c *clients) answering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asking := r.Context().Value(clientKey{}).(*client)
		c.mark(asking, true)
		defer c.mark(asking, false)
		next.ServeHTTP(w, r)
	})
}

// mark notes whether a client is being answered, and makes it the youngest.
func (c *clients) mark(asking *client, answered bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	asking.answered = answered
	if i := slices.Index(c.open, asking); i >= 0 {
		c.open = append(slices.Delete(c.open, i, i+1), asking)
	}
}
