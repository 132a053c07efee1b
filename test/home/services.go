// SPDX-License-Identifier: Apache-2.0

package home

import (
	"fmt"
	"net/netip"

	"hairpin/test/lab"
)

// Offer has the server's TCP and UDP service in one family, and the client addresses that the server may see.
type Offer struct {
	Family           string
	Internet, Router netip.Addr

	external string // external address of the forwards, as it is written before ":PORT"
	udp      *lab.Echoer
}

const (
	offeredBytes     = 400_000
	offeredDatagrams = 100
	longestDatagram  = 1400
)

// Offers starts the services that Forwards and Forwards6 lead to, and returns them.
func Offers(server *lab.Host) []Offer {
	server.ServeTCP(":8080")
	server.ServeTCP("[::]:8080")
	return []Offer{
		{"IPv4", netip.MustParseAddr(lab.InternetSource), RouterAddress, lab.External, server.ServeUDP(":5353")},
		{"IPv6", netip.MustParseAddr(lab.InternetSource6), netip.MustParseAddr(lab.RouterLAN6), "[" + lab.External6 + "]", server.ServeUDP("[::]:5353")},
	}
}

// Serves sends bytes and datagrams to the server and back. It returns an error if the server sees a client address other than want.
func (o Offer) Serves(from *lab.Host, want netip.Addr) error {
	sees, err := o.ask(from)
	if err != nil {
		return err
	}
	for _, addr := range sees {
		if addr != want {
			return fmt.Errorf("the server sees %v, want %v", addr, want)
		}
	}
	return nil
}

// ask uses both services, and returns the client addresses that the server saw.
func (o Offer) ask(from *lab.Host) (sees []netip.Addr, err error) {
	c, err := from.DialTCP(o.external+":80", "", lab.Patience)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	who, err := c.Who()
	if err == nil {
		err = c.Echo(offeredBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("TCP: %w", err)
	}
	before := o.udp.Seen()
	d, err := from.DialUDP(o.external+":53", "")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if _, err := lab.Exchange(d, offeredDatagrams, longestDatagram); err != nil {
		return nil, fmt.Errorf("UDP: %w", err)
	}
	sees = append(sees, who.Addr())
	for peer, tally := range o.udp.Seen() {
		if before[peer] != tally {
			sees = append(sees, peer.Addr())
		}
	}
	return sees, nil
}
