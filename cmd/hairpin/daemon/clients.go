// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
)

// clients are the open connections of the metrics server. At the limit, a new connection replaces a
// connection that gets no answer at the moment. Without replacement, a client that opens all connections
// and sends nothing would keep everybody else out.
type clients struct {
	limit int

	mu   sync.Mutex
	open []*client // sorted by the time of opening or of the last answer, oldest first
}

type client struct {
	conn     net.Conn
	answered bool // an answer is being written at this moment
}

type clientKey struct{}

// admit adds a new connection. It is the server's ConnContext.
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

// forget removes a connection that has ended. It is the server's ConnState.
func (c *clients) forget(conn net.Conn, state http.ConnState) {
	if state != http.StateClosed {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = slices.DeleteFunc(c.open, func(other *client) bool { return other.conn == conn })
}

// answering marks a connection as answered while next runs.
func (c *clients) answering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asking := r.Context().Value(clientKey{}).(*client)
		c.mark(asking, true)
		defer c.mark(asking, false)
		next.ServeHTTP(w, r)
	})
}

// mark stores whether a client is being answered, and moves the client to the end of open.
func (c *clients) mark(asking *client, answered bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	asking.answered = answered
	if i := slices.Index(c.open, asking); i >= 0 {
		c.open = append(slices.Delete(c.open, i, i+1), asking)
	}
}
