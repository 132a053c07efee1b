// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batchSize is the maximum number of packets in a system call.
	batchSize = 64
	// batchBytes is the length of the longest packet in a batch.
	batchBytes = 128
)

// batch has the packets of a sendmmsg(2) or recvmmsg(2) call.
type batch struct {
	headers [batchSize]multiHeader
	vectors [batchSize]unix.Iovec
	names   [batchSize]unix.RawSockaddrAny
	data    [batchSize][batchBytes]byte
}

// multiHeader is struct mmsghdr.
type multiHeader struct {
	header unix.Msghdr
	length uint32
}

func newBatch() *batch {
	b := new(batch)
	for i := range b.headers {
		b.vectors[i].Base = &b.data[i][0]
		b.headers[i].header.Iov = &b.vectors[i]
		b.headers[i].header.SetIovlen(1)
	}
	return b
}

// receive reads at most batchSize packets from a socket, and returns their number. It does not wait.
func (b *batch) receive(fd int) (int, error) {
	for i := range b.headers {
		b.vectors[i].SetLen(batchBytes)
		b.headers[i].header.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		b.headers[i].header.Namelen = unix.SizeofSockaddrAny
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers)), batchSize, unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EAGAIN, unix.EINTR, unix.ECONNREFUSED, unix.ENETUNREACH, unix.EHOSTUNREACH:
		return 0, nil // a pending ICMP error also ends the call
	}
	return 0, fmt.Errorf("receive datagrams: %w", errno)
}

// send sends the first n packets. A packet for which a queue has no room is lost, as on any network.
func (b *batch) send(fd, n int) error {
	for sent := 0; sent < n; {
		done, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[sent])), uintptr(n-sent), 0, 0, 0)
		switch {
		case errno == 0:
			sent += int(done)
		case errno == unix.EINTR:
		case errors.Is(errno, unix.ENOBUFS), errno == unix.EAGAIN,
			errno == unix.ECONNREFUSED, errno == unix.ENETUNREACH, errno == unix.EHOSTUNREACH, errno == unix.EPERM:
			sent++
		default:
			return fmt.Errorf("send packets: %w", errno)
		}
	}
	return nil
}

// address makes the answer u packet i of the batch.
func (b *batch) address(i int, u *unanswered) {
	b.names[i], b.data[i] = u.name, u.data
	b.vectors[i].SetLen(u.length)
	b.headers[i].header.Name = (*byte)(unsafe.Pointer(&b.names[i]))
	b.headers[i].header.Namelen = u.size
}
