// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// clients are the open connections of the metrics server. At the limit, a new connection replaces a
// connection that has been silent for a while, or else one that has taken no data for a while. Without
// replacement, a client that opens all connections and sends or reads nothing would keep everybody else
// out. If there is none, the new connection waits: a connection that has just opened must not be replaced
// before its request arrives. While a connection waits, every answer is the last one of its connection:
// clients that ask often are never silent.
type clients struct {
	limit          int
	silence, stall time.Duration
	sendBuffer     int

	mu     sync.Mutex
	change sync.Cond // with mu: a connection or its answer has ended
	closed bool
	waits  bool      // a new connection waits
	open   []*client // sorted by the time of opening or of the last answer, oldest first
}

type client struct {
	of   *clients
	conn net.Conn // without TLS, see below
	// of.mu guards these.
	answered bool      // the server makes or writes an answer at this moment
	since    time.Time // of opening or of the last answer
	writing  time.Time // since when the client has to take data; zero: it does not have to
}

// cut ends the connection, and discards what the client has not taken: the kernel would keep it until the client takes it.
func (c *client) cut() {
	if tcp, ok := c.conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.conn.Close()
}

// below returns the connection that carries a TLS connection, and any other connection itself. To close TLS a message is sent, which may
// take seconds: too long while clients.mu is held.
func below(conn net.Conn) net.Conn {
	if secure, ok := conn.(*tls.Conn); ok {
		return secure.NetConn()
	}
	return conn
}

type clientKey struct{}

// clientOf returns the client of a request.
func clientOf(r *http.Request) *client { return r.Context().Value(clientKey{}).(*client) }

func newClients(limits serverLimits) *clients {
	c := &clients{limit: limits.connections, silence: limits.silence, stall: limits.stall, sendBuffer: limits.sendBuffer}
	c.change.L = &c.mu
	return c
}

// admit adds a new connection. It is the server's ConnContext. While it waits, the server accepts no other connection: the kernel keeps
// them in the order in which they came.
func (c *clients) admit(ctx context.Context, conn net.Conn) context.Context {
	conn = below(conn)
	// With its own choice, the kernel would keep megabytes for each client that does not read.
	if tcp, ok := conn.(*net.TCPConn); ok && c.sendBuffer != 0 {
		_ = tcp.SetWriteBuffer(c.sendBuffer)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.open) >= c.limit && !c.closed && !c.replace() {
		c.waits = true
		later := time.AfterFunc(min(c.silence, c.stall)/4, c.change.Broadcast)
		c.change.Wait()
		later.Stop()
	}
	c.waits = false
	if c.closed {
		conn.Close()
	}
	entered := &client{of: c, conn: conn, since: time.Now()}
	c.open = append(c.open, entered)
	return context.WithValue(ctx, clientKey{}, entered)
}

// replace closes the connection that has been silent for longest, or else the one that has taken no data for longest, and reports whether
// there was one.
func (c *clients) replace() bool {
	now := time.Now()
	i := slices.IndexFunc(c.open, func(other *client) bool { return !other.answered && now.Sub(other.since) >= c.silence })
	if i >= 0 {
		c.open[i].conn.Close()
	} else if i = c.stalled(now); i >= 0 {
		c.open[i].cut()
	} else {
		return false
	}
	c.open = slices.Delete(c.open, i, i+1)
	return true
}

// stalled returns the index of the connection that has taken no data for longest, -1 if there is none.
func (c *clients) stalled(now time.Time) int {
	longest, at := c.stall, -1
	for i, other := range c.open {
		if stall := now.Sub(other.writing); !other.writing.IsZero() && stall >= longest {
			longest, at = stall, i
		}
	}
	return at
}

// close lets a connection that waits go, and closes those that are not answered at the moment. The server would close them with a message
// of TLS, for which each of them may have to wait.
func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, open := range c.open {
		if !open.answered {
			open.conn.Close()
		}
	}
	c.change.Broadcast()
}

// forget removes a connection that has ended. It is the server's ConnState.
func (c *clients) forget(conn net.Conn, state http.ConnState) {
	if state != http.StateClosed {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = slices.DeleteFunc(c.open, func(other *client) bool { return other.conn == below(conn) })
	c.change.Broadcast()
}

// answering marks a connection as answered while next runs, and notes how long each write of next takes.
func (c *clients) answering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asking := clientOf(r)
		if last := c.mark(asking, true); last {
			w.Header().Set("Connection", "close")
		}
		defer c.mark(asking, false)
		next.ServeHTTP(watchedWriter{w, asking}, r)
	})
}

// mark stores whether a client is being answered, and moves the client to the end of open. It reports whether another client waits.
func (c *clients) mark(asking *client, answered bool) (waits bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	asking.answered, asking.since = answered, time.Now()
	if i := slices.Index(c.open, asking); i >= 0 {
		c.open = append(slices.Delete(c.open, i, i+1), asking)
	}
	c.change.Broadcast()
	return c.waits
}

// watchedWriter notes how long the client takes no data.
type watchedWriter struct {
	http.ResponseWriter
	client *client
}

// watchedBytes are written at once at most. A slow client that still reads is not one that has stalled.
const watchedBytes = 32 << 10

// Write implements io.Writer.
func (w watchedWriter) Write(p []byte) (written int, err error) {
	defer w.client.setWriting(time.Time{})
	for piece := range slices.Chunk(p, watchedBytes) {
		w.client.setWriting(time.Now())
		n, err := w.ResponseWriter.Write(piece)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// Unwrap is for http.ResponseController.
func (w watchedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (c *client) setWriting(since time.Time) {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.writing = since
}
