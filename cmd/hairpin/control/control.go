// SPDX-License-Identifier: Apache-2.0

// Package control lets commands ask the running daemon: to reload, and how it is. Commands also tell the daemon what they have changed. It is HTTP with JSON on a Unix socket that only root,
// or the daemon's own user, may use.
//
// It never decides anything: the daemon gives the answers. Commands do not need it to change what runs.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/trust"
)

// ErrNoDaemon means that nobody answers at the socket.
var ErrNoDaemon = errors.New("no daemon answers")

// Reload is the daemon's answer to a reload.
type Reload struct {
	Done    bool     `json:"done"` // the files run
	Code    int      `json:"code"` // exit code of "hairpin reload"
	Summary string   `json:"summary"`
	Errors  []string `json:"errors"`
}

// Status is what only the daemon knows.
type Status struct {
	// Apart is why the forwards are not as in the files, "" if they are.
	Apart string `json:"apart"`
}

// Changed says that a command has changed something, for the daemon's log.
type Changed struct {
	Command string `json:"command"` // its arguments
	// Login is the name of the user who logged in, and then became root; "" if it is unknown. The command says so.
	Login string `json:"login"`
	// UID is the user of the command. The kernel says so.
	UID int `json:"-"`
}

// Handler answers for the daemon. Its methods may run at the same time as each other.
type Handler interface {
	Reload(context.Context) (Reload, error) // it fails if the daemon ends first
	Status() Status
	Changed(Changed)
}

const (
	reloadPath = "/reload"
	statusPath = "/status"
	changePath = "/changed"

	// headerPatience is the longest time for a request line and header.
	headerPatience = 5 * time.Second
	maxHeader      = 4 << 10
	// reloadPatience is the longest time for a reload: it waits for the writer lock, and writes the tables.
	reloadPatience = 2 * time.Minute
	statusPatience = 2 * time.Second
	maxAnswer      = 1 << 20
	// changedPatience is short: the change is made, and the command has nothing else to do.
	changedPatience = 500 * time.Millisecond
	maxChanged      = 4 << 10
)

// Server answers at a socket.
type Server struct {
	http *http.Server
	done chan struct{}
}

// Listen answers at the socket until Close. It fails if the directory belongs to another user. A file that a killed daemon left is replaced: the caller has made sure that no other daemon
// serves this datapath.
func Listen(path string, handler Handler) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("answer commands: %w", err)
	}
	// The owner of the directory could put a socket of its own in the place of this one.
	if err := trust.CheckDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("answer commands: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("answer commands: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("answer commands: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("answer commands: %w", err), listener.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+reloadPath, func(w http.ResponseWriter, r *http.Request) {
		answer, err := handler.Reload(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		write(w, answer)
	})
	mux.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, _ *http.Request) { write(w, handler.Status()) })
	mux.HandleFunc("POST "+changePath, func(w http.ResponseWriter, r *http.Request) {
		var changed Changed
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxChanged)).Decode(&changed); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		changed.UID, _ = r.Context().Value(uidKey{}).(int)
		handler.Changed(changed)
		write(w, struct{}{})
	})
	s := &Server{
		http: &http.Server{Handler: mux, ReadHeaderTimeout: headerPatience, MaxHeaderBytes: maxHeader, ConnContext: withUID},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(ownUsers{listener}) // it ends with Close
	}()
	return s, nil
}

func write(w http.ResponseWriter, answer any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the command may be gone
}

// Close ends the answers, and removes the socket.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

// ownUsers accepts connections of root and of the daemon's user. The mode of the socket keeps others out, too, but not in the moment
// before it is set.
type ownUsers struct{ net.Listener }

// Accept implements net.Listener.
func (l ownUsers) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || isTrusted(conn) {
			return conn, err
		}
		conn.Close()
	}
}

// isTrusted reports whether root or the user of this process is at the other end.
func isTrusted(conn net.Conn) bool {
	uid, err := uidOf(conn)
	return err == nil && (uid == 0 || uid == os.Geteuid())
}

// uidOf returns the user at the other end.
func uidOf(conn net.Conn) (int, error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	return int(peer.Uid), nil
}

type uidKey struct{}

func withUID(ctx context.Context, conn net.Conn) context.Context {
	uid, err := uidOf(conn)
	if err != nil {
		uid = -1
	}
	return context.WithValue(ctx, uidKey{}, uid)
}

// AskReload asks the daemon at the socket to reload, and waits for its answer. The error wraps ErrNoDaemon if nobody listens.
func AskReload(ctx context.Context, path string) (answer Reload, err error) {
	err = ask(ctx, reloadPatience, http.MethodPost, path, reloadPath, nil, &answer)
	return answer, err
}

// AskStatus asks the daemon at the socket how it is.
func AskStatus(ctx context.Context, path string) (answer Status, err error) {
	err = ask(ctx, statusPatience, http.MethodGet, path, statusPath, nil, &answer)
	return answer, err
}

// TellChanged tells the daemon at the socket what a command has changed.
func TellChanged(ctx context.Context, path string, changed Changed) error {
	body, err := json.Marshal(changed)
	if err != nil {
		return err
	}
	return ask(ctx, changedPatience, http.MethodPost, path, changePath, bytes.NewReader(body), new(struct{}))
}

func ask(ctx context.Context, patience time.Duration, method, socket, path string, body io.Reader, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var dialer net.Dialer
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, "unix", socket)
			if err == nil && !isTrusted(conn) {
				err = errors.Join(errors.New("the socket belongs to another user"), conn.Close())
			}
			return conn, err
		},
	}}
	request, err := http.NewRequestWithContext(ctx, method, "http://daemon"+path, body)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w at %s", ErrNoDaemon, socket)
	case err != nil:
		return fmt.Errorf("ask the daemon at %s: %w", socket, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the daemon at %s: it answered %q", socket, response.Status)
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, response.Body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}
