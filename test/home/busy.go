// SPDX-License-Identifier: Apache-2.0

package home

import (
	"errors"
	"testing"

	"hairpin/test/lab"
)

// Service is a network with a running hairpin, and with traffic through it, from the Internet and from the LAN.
type Service struct {
	*lab.Network
	HP    *lab.Hairpin
	loads []*lab.Load
}

// StartService starts hairpin and the traffic. Until Finish, a packet that arrives untranslated fails the test.
func StartService(t *testing.T, mode string) *Service {
	t.Helper()
	s := &Service{Network: lab.NewNetwork(t)}
	s.SetOffloads(OffloadsFor(mode))
	s.Server.ServeTCP(":8080")
	s.Server.ServeUDP(":5353")
	s.HP = Start(t, s.Network, mode, Forwards)

	answers := func(p *lab.Packet) error {
		if p.Src.Addr() != ExternalAddress {
			return errors.New("source is not the external address")
		}
		return nil
	}
	s.Internet.Capture("eth0", answers)
	s.Client.Capture("eth0", answers)
	internet := Ways(s.Network)[0].Addr
	s.Server.Capture("eth0", func(p *lab.Packet) error {
		if src := p.Src.Addr(); src != internet && src != RouterAddress {
			return errors.New("source is not an address that the server should see")
		}
		return nil
	})
	for _, from := range []*lab.Host{s.Internet, s.Client} {
		s.loads = append(s.loads, from.StartLoad(lab.External+":80", lab.External+":53"))
	}
	return s
}

// Advance returns when each kind of traffic has done this many more rounds.
func (s *Service) Advance(rounds int64) {
	for _, load := range s.loads {
		load.Advance(rounds)
	}
}

// Finish ends the traffic. The test fails if anything was lost.
func (s *Service) Finish() {
	for _, load := range s.loads {
		load.Stop()
	}
}
