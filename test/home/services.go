// SPDX-License-Identifier: Apache-2.0

package home

import (
	"fmt"
	"net/netip"

	"hairpin/test/lab"
)

// Offer is what the server offers in one family, and whom it may take its clients for.
type Offer struct {
	Family           string
	Internet, Router netip.Addr

	external string // address of the forwards, as in "ADDRESS:PORT"
	udp      *lab.Echoer
}

const (
	offeredBytes     = 400_000
	offeredDatagrams = 100
	longestDatagram  = 1400
)

// Offers serves what Forwards and Forwards6 lead to.
func Offers(server *lab.Host) []Offer {
	server.ServeTCP(":8080")
	server.ServeTCP("[::]:8080")
	return []Offer{
		{"IPv4", netip.MustParseAddr(lab.InternetSource), RouterAddress, lab.External, server.ServeUDP(":5353")},
		{"IPv6", netip.MustParseAddr(lab.InternetSource6), netip.MustParseAddr(lab.RouterLAN6), "[" + lab.External6 + "]", server.ServeUDP("[::]:5353")},
	}
}

// Serves moves bytes and datagrams there and back. The server has to see one address and no other.
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

// ask returns whom the server saw.
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
