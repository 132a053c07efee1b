// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// answererBuffer is the size of the socket's receive buffer in bytes. It keeps a flood's datagrams until they are read.
const answererBuffer = 64 << 20

// answererNice is the nice value of the answerer. It has priority over the flood and the router, as if it ran on a machine of
// its own.
const answererNice = -20

// AnswerUDP sends back each datagram of at most 128 bytes after a delay, until the test ends. It is
// fast enough for a flood: it keeps no list of peers, and reads and writes in batches.
func (h *Host) AnswerUDP(address string, delay time.Duration) {
	h.tb.Helper()
	var fd int
	config := net.ListenConfig{}
	h.must("listen on "+address, h.Do(func() error {
		c, err := config.ListenPacket(context.Background(), family("udp", address), address)
		if err != nil {
			return err
		}
		defer c.Close()
		file, err := c.(*net.UDPConn).File()
		if err != nil {
			return err
		}
		defer file.Close()
		if fd, err = unix.Dup(int(file.Fd())); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, answererBuffer)
	}))
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		// Never unlocked: the thread ends with the goroutine, so no other goroutine gets its priority.
		runtime.LockOSThread()
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, answererNice); err != nil {
			h.tb.Errorf("%s: priority of the answerer: %v", h.Name, err)
		}
		answerLater(fd, delay, stop)
	})
	h.tb.Cleanup(func() {
		close(stop)
		running.Wait()
		unix.Close(fd)
	})
}

// unanswered is a datagram that has not been answered yet.
type unanswered struct {
	due    time.Time
	length int
	name   unix.RawSockaddrAny
	size   uint32 // length of name in bytes
	data   [batchBytes]byte
}

func answerLater(fd int, delay time.Duration, stop <-chan struct{}) {
	in, out := newBatch(), newBatch()
	var queue []unanswered
	for {
		select {
		case <-stop:
			return
		default:
		}
		wait := 20 * time.Millisecond
		if len(queue) > 0 {
			wait = min(wait, time.Until(queue[0].due))
		}
		if wait > 0 {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait.Milliseconds())+1)
		}
		n, err := in.receive(fd)
		if err != nil {
			return
		}
		due := time.Now().Add(delay)
		for i := range n {
			header := &in.headers[i]
			queue = append(queue, unanswered{due, int(header.length), in.names[i], header.header.Namelen, in.data[i]})
		}
		queue = answerDue(fd, out, queue)
	}
}

// answerDue answers the datagrams that are due, and returns the others.
func answerDue(fd int, out *batch, queue []unanswered) []unanswered {
	now := time.Now()
	for len(queue) > 0 && !queue[0].due.After(now) {
		n := 0
		for ; n < min(batchSize, len(queue)) && !queue[n].due.After(now); n++ {
			out.address(n, &queue[n])
		}
		if out.send(fd, n) != nil {
			return nil
		}
		queue = queue[n:]
	}
	return queue
}
