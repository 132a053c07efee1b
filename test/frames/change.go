// SPDX-License-Identifier: Apache-2.0

// Package frames makes Ethernet frames from struct fields, and computes checksums of frames. It sends nothing, and shares no code with
// the programs under test.
package frames

import "github.com/gopacket/gopacket/layers"

// TCP returns a change that sets the flags, as letters of SAFRP, and the sequence and acknowledgement numbers.
func TCP(flags string, seq, ack uint32) func(*Frame) {
	return func(f *Frame) { f.Flags, f.Seq, f.Ack = flags, seq, ack }
}

// Payload returns a change that sets the data after the transport header.
func Payload(text string) func(*Frame) { return func(f *Frame) { f.Payload = []byte(text) } }

// TTL returns a change that sets the TTL, in IPv6 the hop limit.
func TTL(n uint8) func(*Frame) { return func(f *Frame) { f.TTL = n } }

// Mutate returns a change that calls m with the bytes of the finished frame; checksums are not updated.
func Mutate(m func([]byte)) func(*Frame) {
	return func(f *Frame) { f.Mutate = m }
}

// Options returns a change that adds n bytes of IP options which a router ignores.
func Options(n int) func(*Frame) {
	return func(f *Frame) {
		for range n {
			f.Options = append(f.Options, layers.IPv4Option{OptionType: 1})
		}
	}
}

// With returns its arguments as a list of changes.
func With(changes ...func(*Frame)) []func(*Frame) { return changes }
