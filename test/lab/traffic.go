// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Requests to the TCP service: one byte is the operation, eight bytes are a length.
const (
	opUpload   = 'u' // read length bytes, answer their SHA-256
	opDownload = 'd' // send length bytes and their SHA-256
	opEcho     = 'e' // send back length bytes
	opWho      = 'w' // answer the client's address as the server sees it
	opClose    = 'c' // close the connection
)

// block is random data. A transfer repeats it; each copy begins with its number.
var block = func() []byte {
	b := make([]byte, 1<<18)
	rand.Read(b)
	return b
}()

// family returns network with 6 or 4 appended: an address in brackets is IPv6, all others are IPv4.
func family(network, address string) string {
	if strings.HasPrefix(address, "[") {
		return network + "6"
	}
	return network + "4"
}

// ServeTCP serves on an address of the host until the test ends.
func (h *Host) ServeTCP(address string) {
	h.tb.Helper()
	h.serveTCP(address, net.ListenConfig{})
}

// ServeSilentTCP is ServeTCP without TCP keepalives.
func (h *Host) ServeSilentTCP(address string) {
	h.tb.Helper()
	h.serveTCP(address, net.ListenConfig{KeepAlive: -1})
}

func (h *Host) serveTCP(address string, config net.ListenConfig) {
	h.tb.Helper()
	h.listenTCP(address, config, serveConn)
}

// listenTCP listens on an address of the host until the test ends, and calls handle for each connection.
func (h *Host) listenTCP(address string, config net.ListenConfig, handle func(*net.TCPConn)) {
	h.tb.Helper()
	var listener net.Listener
	h.must("listen on "+address, h.Do(func() (err error) {
		listener, err = config.Listen(context.Background(), family("tcp", address), address)
		return err
	}))
	h.tb.Cleanup(func() { listener.Close() })
	go acceptAll(listener, handle)
}

// acceptAll calls handle for each connection, each in a goroutine of its own, until the listener is closed.
func acceptAll(listener net.Listener, handle func(*net.TCPConn)) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		go handle(c.(*net.TCPConn))
	}
}

// serveConn answers the requests of a connection until its peer ends.
func serveConn(c *net.TCPConn) {
	defer c.Close()
	_ = serve(c)
}

func serve(c net.Conn) error {
	for {
		var request [9]byte
		if _, err := io.ReadFull(c, request[:]); err != nil {
			return err
		}
		if err := answer(c, request[0], int64(binary.BigEndian.Uint64(request[1:]))); err != nil {
			return err
		}
	}
}

func answer(c net.Conn, op byte, length int64) error {
	digest := sha256.New()
	switch op {
	case opUpload:
		if _, err := io.CopyN(digest, c, length); err != nil {
			return err
		}
		return write(c, digest.Sum(nil))
	case opDownload:
		if err := send(c, digest, length); err != nil {
			return err
		}
		return write(c, digest.Sum(nil))
	case opEcho:
		// Without the type of c, CopyN does not use splice(2), which would take a pipe for each connection.
		_, err := io.CopyN(struct{ io.Writer }{c}, c, length)
		return err
	case opClose:
		return io.EOF
	case opWho:
		who := c.RemoteAddr().String()
		return write(c, append([]byte{byte(len(who))}, who...))
	}
	return fmt.Errorf("unknown request %q", op)
}

func write(w io.Writer, data []byte) error {
	_, err := w.Write(data)
	return err
}

// send writes length bytes and adds them to the digest. All blocks differ.
func send(w io.Writer, digest hash.Hash, length int64) error {
	data := bytes.Clone(block)
	for number := uint64(0); length > 0; number++ {
		binary.BigEndian.PutUint64(data, number)
		data = data[:min(int64(len(data)), length)]
		digest.Write(data)
		if err := write(w, data); err != nil {
			return err
		}
		length -= int64(len(data))
	}
	return nil
}

// Conn is a client's connection to a TCP service.
type Conn struct {
	*net.TCPConn
}

// DialTCP connects from the host to a TCP service. source is an address with or without a port, such as "192.168.1.50:40000"; "": any
// source.
func (h *Host) DialTCP(address, source string, timeout time.Duration) (*Conn, error) {
	dialer := net.Dialer{Timeout: timeout}
	if source != "" {
		addr, err := net.ResolveTCPAddr(family("tcp", source), source)
		if err != nil {
			return nil, err
		}
		dialer.LocalAddr = addr
	}
	var c net.Conn
	err := h.Do(func() (err error) {
		c, err = dialer.DialContext(context.Background(), family("tcp", address), address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	return &Conn{c.(*net.TCPConn)}, nil
}

// Who returns the client's address and port as the server sees them.
func (c *Conn) Who() (netip.AddrPort, error) {
	if err := c.request(opWho, 0); err != nil {
		return netip.AddrPort{}, err
	}
	text := make([]byte, 1)
	if _, err := io.ReadFull(c, text); err != nil {
		return netip.AddrPort{}, err
	}
	text = make([]byte, text[0])
	if _, err := io.ReadFull(c, text); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(string(text))
}

// Upload sends length bytes and checks that the server received them unchanged.
func (c *Conn) Upload(length int64) error {
	if err := c.request(opUpload, length); err != nil {
		return err
	}
	digest := sha256.New()
	if err := send(c, digest, length); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	return c.compare(digest)
}

// Download receives length bytes and checks that they are unchanged.
func (c *Conn) Download(length int64) error {
	if err := c.request(opDownload, length); err != nil {
		return err
	}
	digest := sha256.New()
	if n, err := io.CopyN(digest, c, length); err != nil {
		return fmt.Errorf("download: after %d bytes of %d: %w", n, length, err)
	}
	return c.compare(digest)
}

// Echo sends random bytes and checks that they come back unchanged.
func (c *Conn) Echo(length int) error { return c.EchoWithin(length, 2*Patience) }

// EchoWithin is Echo with a time limit.
func (c *Conn) EchoWithin(length int, limit time.Duration) error {
	if err := c.request(opEcho, int64(length)); err != nil {
		return err
	}
	c.SetDeadline(time.Now().Add(limit))
	data, back := make([]byte, length), make([]byte, length)
	rand.Read(data)
	sent := make(chan error, 1)
	go func() { sent <- write(c, data) }()
	n, err := io.ReadFull(c, back)
	if err != nil {
		// The kernel reports a RST once: if the write gets ECONNRESET, the read gets an end of file.
		c.SetWriteDeadline(time.Now())
		if failed := <-sent; failed != nil && !errors.Is(failed, os.ErrDeadlineExceeded) {
			err = errors.Join(failed, err)
		}
		return fmt.Errorf("echo: after %d bytes of %d: %w", n, length, err)
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	if !bytes.Equal(data, back) {
		return errors.New("echo: the bytes that came back differ")
	}
	return nil
}

// Lost returns how many segments of this side were lost: the retransmissions, less the retransmissions that the receiver
// reported as duplicates (RFC 3708).
func (c *Conn) Lost() (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	var failed error
	if err := raw.Control(func(fd uintptr) {
		info, failed = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
	}); err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, failed
	}
	return max(0, int(info.Total_retrans)-int(info.Dsack_dups)), nil
}

func (c *Conn) request(op byte, length int64) error {
	c.SetDeadline(time.Now().Add(2 * Patience))
	request := binary.BigEndian.AppendUint64([]byte{op}, uint64(length))
	return write(c, request)
}

func (c *Conn) compare(digest hash.Hash) error {
	theirs := make([]byte, sha256.Size)
	if _, err := io.ReadFull(c, theirs); err != nil {
		return fmt.Errorf("read digest: %w", err)
	}
	if ours := digest.Sum(nil); !bytes.Equal(ours, theirs) {
		return fmt.Errorf("content differs: SHA-256 %x here, %x there", ours, theirs)
	}
	return nil
}

// Tally counts datagrams. The order of the datagrams does not change it.
type Tally struct {
	Datagrams int
	Bytes     int64
	Digest    uint64 // sum of the datagrams' FNV-1a hashes
}

// Add counts a datagram.
func (t *Tally) Add(datagram []byte) {
	h := fnv.New64a()
	h.Write(datagram)
	t.Datagrams++
	t.Bytes += int64(len(datagram))
	t.Digest += h.Sum64()
}

// Echoer is a UDP service that sends back each datagram.
type Echoer struct {
	conn *net.UDPConn
	mu   sync.Mutex
	seen map[netip.AddrPort]*Tally
	last netip.AddrPort
}

// socketBuffer is the size of receive buffers in bytes. They keep a burst of datagrams until a busy machine reads it.
const socketBuffer = 8 << 20

// ServeUDP echoes on an address of the host until the test ends.
func (h *Host) ServeUDP(address string) *Echoer {
	h.tb.Helper()
	e := &Echoer{seen: make(map[netip.AddrPort]*Tally)}
	h.must("listen on "+address, h.Do(func() error {
		c, err := h.listenUDP(address)
		e.conn = c
		return err
	}))
	h.tb.Cleanup(func() { e.conn.Close() })
	go e.serve()
	return e
}

// Seen returns the tally of each peer, by the peer's address as the server sees it.
func (e *Echoer) Seen() map[netip.AddrPort]Tally {
	e.mu.Lock()
	defer e.mu.Unlock()
	seen := make(map[netip.AddrPort]Tally, len(e.seen))
	for peer, tally := range e.seen {
		seen[peer] = *tally
	}
	return seen
}

// Last returns the source of the last datagram as the server sees it.
func (e *Echoer) Last() netip.AddrPort {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// Send sends one datagram to a peer; it is not an answer.
func (e *Echoer) Send(peer netip.AddrPort, datagram []byte) error {
	_, err := e.conn.WriteToUDPAddrPort(datagram, peer)
	return err
}

func (e *Echoer) serve() {
	data := make([]byte, 1<<16)
	for {
		n, peer, err := e.conn.ReadFromUDPAddrPort(data)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		e.mu.Lock()
		if e.seen[peer] == nil {
			e.seen[peer] = new(Tally)
		}
		e.seen[peer].Add(data[:n])
		e.last = peer
		e.mu.Unlock()
		e.conn.WriteToUDPAddrPort(data[:n], peer)
	}
}

func (h *Host) listenUDP(address string) (*net.UDPConn, error) {
	addr, err := net.ResolveUDPAddr(family("udp", address), address)
	if err != nil {
		return nil, err
	}
	c, err := net.ListenUDP(family("udp", address), addr)
	if err != nil {
		return nil, err
	}
	return c, forceBuffers(c)
}

func forceBuffers(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer))
	})
	return errors.Join(err, failed)
}

// DialUDP opens a connected UDP socket on the host: it receives only datagrams from address. source may be empty.
func (h *Host) DialUDP(address, source string) (*net.UDPConn, error) {
	var local *net.UDPAddr
	if source != "" {
		addr, err := net.ResolveUDPAddr(family("udp", source), source)
		if err != nil {
			return nil, err
		}
		local = addr
	}
	remote, err := net.ResolveUDPAddr(family("udp", address), address)
	if err != nil {
		return nil, err
	}
	var c *net.UDPConn
	err = h.Do(func() (err error) {
		if c, err = net.DialUDP(family("udp", address), local, remote); err != nil {
			return err
		}
		return forceBuffers(c)
	})
	return c, err
}

// ReportErrors makes a socket report every ICMP error, also the errors that UDP ignores as temporary: ip(7), IP_RECVERR.
func ReportErrors(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
	})
	return errors.Join(err, failed)
}

// Exchange sends count datagrams with sizes from 1 to limit, a few at a time, and receives as many echoes. It returns the tally of the
// sent datagrams. It is an error if echoes are missing or differ.
func Exchange(c *net.UDPConn, count, limit int) (Tally, error) {
	const window = 32
	var sent, received Tally
	data, back := make([]byte, limit), make([]byte, 1<<16)
	for sent.Datagrams < count || received.Datagrams < count {
		for sent.Datagrams < count && sent.Datagrams-received.Datagrams < window {
			datagram := data[:sent.Datagrams%limit+1]
			rand.Read(datagram)
			if _, err := c.Write(datagram); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				return sent, fmt.Errorf("send datagram %d: %w", sent.Datagrams, err)
			}
			sent.Add(datagram)
		}
		c.SetReadDeadline(time.Now().Add(3 * time.Second * slowness()))
		n, err := c.Read(back)
		if err != nil {
			return sent, fmt.Errorf("%d of %d datagrams unanswered: %w", sent.Datagrams-received.Datagrams, sent.Datagrams, err)
		}
		received.Add(back[:n])
	}
	if sent != received {
		return sent, fmt.Errorf("sent %+v, got back %+v", sent, received)
	}
	return sent, nil
}

// ReadsWithin returns an error unless the next datagram is want and arrives in time.
func ReadsWithin(c *net.UDPConn, want []byte, within time.Duration) error {
	c.SetReadDeadline(time.Now().Add(within))
	got := make([]byte, 1<<16)
	count, err := c.Read(got)
	if err == nil && !bytes.Equal(got[:count], want) {
		err = errors.New("the datagram that arrived differs")
	}
	return err
}
