// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// captureBuffer is the size of the socket's receive buffer in bytes. A whole bulk transfer fits, so a late reader loses nothing.
const captureBuffer = 512 << 20

// Capture reads and checks every IPv4 packet that arrives at an interface. The test fails if a checksum is wrong, if the
// observer returns an error, or if the capture misses a packet.
type Capture struct {
	host    *Host
	dev     string
	observe func(*Packet) error
	early   bool
	fd      int

	stop, done chan struct{}
	once       sync.Once

	mu       sync.Mutex
	stats    CaptureStats
	problems []string
}

// CaptureStats has the counts of a capture.
type CaptureStats struct {
	Packets int
	Partial int // packets whose transport checksum is left to an offload
	Bytes   int64
	Bad     int // packets that failed a check
}

// Capture starts a capture on an interface. It calls observe for each packet, from one goroutine, also if a checksum is
// wrong. observe may be nil.
func (h *Host) Capture(dev string, observe func(*Packet) error) *Capture {
	h.tb.Helper()
	return h.capture(&Capture{dev: dev, observe: observe})
}

// CaptureEarly starts a capture in front of the TC programs at ingress. So the capture also sees packets that a TC program redirects. It
// does not see packets that an XDP program redirects.
func (h *Host) CaptureEarly(dev string, observe func(*Packet) error) *Capture {
	h.tb.Helper()
	return h.capture(&Capture{dev: dev, observe: observe, early: true})
}

func (h *Host) capture(c *Capture) *Capture {
	h.tb.Helper()
	c.host, c.stop, c.done = h, make(chan struct{}), make(chan struct{})
	h.must("capture on "+c.dev, h.Do(c.open))
	go c.read()
	h.tb.Cleanup(func() { c.Stop() })
	return c
}

// open opens a packet socket for arriving packets. A socket for ETH_P_IP does not see packets that the host itself sends; a socket
// for ETH_P_ALL does, unless it ignores them. TC programs at ingress run after the sockets for ETH_P_ALL, and before those for
// ETH_P_IP.
func (c *Capture) open() (err error) {
	c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		return fmt.Errorf("set receive buffer: %w", err)
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return fmt.Errorf("ask for auxiliary data: %w", err)
	}
	wake := unix.NsecToTimeval(int64(20 * time.Millisecond))
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wake); err != nil {
		return fmt.Errorf("set receive timeout: %w", err)
	}
	protocol := uint16(unix.ETH_P_IP)
	if c.early {
		protocol = unix.ETH_P_ALL
		if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return fmt.Errorf("ignore sent packets: %w", err)
		}
	}
	return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: c.host.Index(c.dev)})
}

// Stop reads the packets that have arrived, ends the capture, reports errors to the test, and returns the counts.
func (c *Capture) Stop() CaptureStats {
	c.host.tb.Helper()
	c.once.Do(func() {
		close(c.stop)
		<-c.done
		dropped, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		unix.Close(c.fd)
		if err != nil {
			c.host.tb.Errorf("%s: read capture statistics: %v", c.host.Name, err)
		} else if dropped.Drops != 0 {
			c.host.tb.Errorf("%s: capture on %s missed %d packets", c.host.Name, c.dev, dropped.Drops)
		}
		for _, problem := range c.problems {
			c.host.tb.Errorf("%s: arrived at %s: %s", c.host.Name, c.dev, problem)
		}
		if more := c.stats.Bad - len(c.problems); more > 0 {
			c.host.tb.Errorf("%s: arrived at %s: %d more such packets", c.host.Name, c.dev, more)
		}
	})
	return c.Stats()
}

// Stats returns the counts so far.
func (c *Capture) Stats() CaptureStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

func (c *Capture) read() {
	defer close(c.done)
	data, control := make([]byte, 1<<17), make([]byte, 256)
	for stopping := false; ; {
		select {
		case <-c.stop:
			stopping = true
		default:
		}
		flags := 0
		if stopping {
			flags = unix.MSG_DONTWAIT
		}
		n, used, _, from, err := unix.Recvmsg(c.fd, data, control, flags)
		switch {
		case err == nil && !isIPv4(from):
		case err == nil:
			c.check(data[:n], status(control[:used]))
		case err == unix.EINTR, err == unix.ENETDOWN:
		case err == unix.EAGAIN && !stopping:
		case err == unix.EAGAIN:
			return
		default:
			c.complain(fmt.Sprintf("read packet: %v", err))
			return
		}
	}
}

func isIPv4(from unix.Sockaddr) bool {
	link, known := from.(*unix.SockaddrLinklayer)
	return known && link.Protocol == networkOrder(unix.ETH_P_IP)
}

func (c *Capture) check(data []byte, status uint32) {
	p, err := parsePacket(data, status&unix.TP_STATUS_CSUMNOTREADY != 0)
	p.Time = time.Now()
	if c.observe != nil {
		if complaint := c.observe(p); err == nil {
			err = complaint
		}
	}
	c.mu.Lock()
	c.stats.Packets++
	c.stats.Bytes += int64(p.Length)
	if p.Partial {
		c.stats.Partial++
	}
	c.mu.Unlock()
	if err != nil {
		c.complain(fmt.Sprintf("%v: %v", p, err))
	}
}

func (c *Capture) complain(problem string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Bad++
	if len(c.problems) < 5 {
		c.problems = append(c.problems, problem)
	}
}

// status returns tp_status of struct tpacket_auxdata, linux/if_packet.h.
func status(control []byte) uint32 {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA {
			return (*unix.TpacketAuxdata)(unsafe.Pointer(&m.Data[0])).Status
		}
	}
	return 0
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }
