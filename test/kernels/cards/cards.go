// SPDX-License-Identifier: Apache-2.0

// Package cards lists the virtio-net devices of a guest: boot gives the devices to qemu, and the tests in the guest find them by
// their MAC addresses.
//
//	router's device --- tap --- bridge --- tap --- host's device
//
// The taps and the bridge belong to the machine that runs qemu. A frame crosses the bridge with the offloads of its sender: its
// checksum may be partial, and it may be longer than the MTU. The bridge's kernel finishes and splits the frame if the receiving
// device has no such offload, as on the machine of a virtual router.
package cards

import (
	"net"
	"slices"
)

// Wires is the number of wires: wire 1 is the WAN, wire 2 a LAN. Each wire has one device of each sort.
const Wires = 2

// Ring is the number of receive buffers of a queue: qemu's rx_queue_size.
const Ring = 256

// Sort is a sort of virtio-net devices.
type Sort struct {
	Name       string
	Queues     int    // pairs of a receive and a transmit queue
	Properties string // of qemu's device virtio-net-pci
}

// withoutOffloads: the device receives only frames of its MTU, with complete checksums.
const withoutOffloads = "guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off"

// Names of sorts.
const (
	// Host is the sort at the other end of a router's wire. The device sends with offloads, and receives without: the host checks
	// every checksum, as if a wire of copper led to it.
	Host = "host"
	// Offloads is as qemu's device comes. The driver switches the receive offloads off while XDP is attached. The device has
	// queues for XDP: the guest has two processors, and uses two pairs of the four.
	Offloads = "offloads"
	// OneQueue is Offloads without queues for XDP: two processors share the only transmit queue.
	OneQueue = "one queue"
	// NoOffloads has no receive offloads, and receives a frame in one buffer of its own. It has no queues for XDP.
	NoOffloads = "no offloads"
	// FixedOffloads has receive offloads that the driver cannot switch off. The driver then refuses XDP.
	FixedOffloads = "fixed offloads"
	// ChainedBuffers receives each frame in a chain of pages, which its driver never shows to XDP.
	ChainedBuffers = "chained buffers"
)

// Sorts has every sort.
var Sorts = []Sort{
	{Host, 1, withoutOffloads},
	{Offloads, 4, "mq=on,vectors=10"}, // a vector for each queue, one for the control queue, one for changes
	{OneQueue, 1, ""},
	{NoOffloads, 1, "mrg_rxbuf=off," + withoutOffloads},
	{FixedOffloads, 1, "ctrl_guest_offloads=off"},
	{ChainedBuffers, 1, "mrg_rxbuf=off"},
}

// MAC returns the MAC address of the device of a sort on a wire.
func MAC(sort string, wire byte) net.HardwareAddr {
	number := slices.IndexFunc(Sorts, func(s Sort) bool { return s.Name == sort })
	return net.HardwareAddr{0x52, 0x54, 0, 0, byte(number), wire}
}
