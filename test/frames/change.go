// SPDX-License-Identifier: Apache-2.0

// Package frames makes Ethernet frames from words, and reads what a checksum needs of their bytes. It sends nothing, and shares no code
// with what it tests.
package frames

import "github.com/gopacket/gopacket/layers"

// TCP sets flags, as letters of SAFRP, and numbers.
func TCP(flags string, seq, ack uint32) func(*Frame) {
	return func(f *Frame) { f.Flags, f.Seq, f.Ack = flags, seq, ack }
}

// Payload sets what is behind the transport's header.
func Payload(text string) func(*Frame) { return func(f *Frame) { f.Payload = []byte(text) } }

// TTL sets the time to live, in IPv6 the hop limit.
func TTL(n uint8) func(*Frame) { return func(f *Frame) { f.TTL = n } }

// Mutate damages the bytes of the finished frame.
func Mutate(m func([]byte)) func(*Frame) {
	return func(f *Frame) { f.Mutate = m }
}

// Options are n bytes of IP options that a router has nothing to do with.
func Options(n int) func(*Frame) {
	return func(f *Frame) {
		for range n {
			f.Options = append(f.Options, layers.IPv4Option{OptionType: 1})
		}
	}
}

// With makes a list of changes.
func With(changes ...func(*Frame)) []func(*Frame) { return changes }
