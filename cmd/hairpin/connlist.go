// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"

	"hairpin/maps"
	"hairpin/maps/rule"
)

// connectionList keeps connections in half the memory of maps.Connection, and without pointers, so that garbage collections need not
// look at them.
type connectionList struct {
	blocks  [][]packedConnection // each has room for connBlock connections
	words   []string             // names of forwards, paths and states
	numbers map[string]uint32    // of words
}

// packedConnection is a maps.Connection. Its words are numbers in connectionList.words.
type packedConnection struct {
	addrs                [4][16]byte // client, external, source, target; zero: none
	ports                [4]uint16
	packets, bytes       uint64
	age, idle            uint64
	forward, path, state uint32
	protocol             rule.Protocol
}

func (l *connectionList) add(c *maps.Connection) {
	last := len(l.blocks) - 1
	if last < 0 || len(l.blocks[last]) == connBlock {
		l.blocks = append(l.blocks, make([]packedConnection, 0, connBlock))
		last++
	}
	p := packedConnection{
		packets: c.Packets, bytes: c.Bytes, age: c.AgeSeconds, idle: c.IdleSeconds, protocol: c.Protocol,
		forward: l.number(c.Forward), path: l.number(c.Path), state: l.number(c.State),
	}
	for i, end := range [...]netip.AddrPort{c.Client, c.External, c.Source, c.Target} {
		if end.Addr().IsValid() {
			p.addrs[i], p.ports[i] = end.Addr().As16(), end.Port()
		}
	}
	l.blocks[last] = append(l.blocks[last], p)
}

// number returns the number of a word.
func (l *connectionList) number(word string) uint32 {
	number, known := l.numbers[word]
	if !known {
		if l.numbers == nil {
			l.numbers = map[string]uint32{}
		}
		number = uint32(len(l.words))
		l.words, l.numbers[word] = append(l.words, word), number
	}
	return number
}

func (l *connectionList) len() int {
	if len(l.blocks) == 0 {
		return 0
	}
	return (len(l.blocks)-1)*connBlock + len(l.blocks[len(l.blocks)-1])
}

// at sets c to the connection that was added as number i, from 0.
func (l *connectionList) at(i uint32, c *maps.Connection) {
	p := &l.blocks[i/connBlock][i%connBlock]
	*c = maps.Connection{
		Protocol: p.protocol, Path: l.words[p.path], Forward: l.words[p.forward], State: l.words[p.state],
		Client: p.end(0), External: p.end(1), Source: p.end(2), Target: p.end(3),
		AgeSeconds: p.age, IdleSeconds: p.idle, Packets: p.packets, Bytes: p.bytes,
	}
}

func (p *packedConnection) end(i int) netip.AddrPort {
	if p.addrs[i] == [16]byte{} {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom16(p.addrs[i]).Unmap(), p.ports[i])
}

// clear forgets the connections, and keeps the memory of one block.
func (l *connectionList) clear() {
	if len(l.blocks) > 0 {
		l.blocks = l.blocks[:1]
		l.blocks[0] = l.blocks[0][:0]
	}
}
