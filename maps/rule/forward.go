// SPDX-License-Identifier: Apache-2.0

// Package rule has the values that a forward consists of (addresses, ports, protocols, host names) and selectors of
// connections. It parses, formats and checks these values. A check looks at one forward only: not at other forwards, at
// the machine's interfaces or at the kernel.
package rule

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// External says where a forward listens: at one address, or at the addresses of one WAN interface. At most one field is
// set. The zero value means the addresses of every WAN interface.
type External struct {
	Interface string
	Address   netip.Addr
}

// ParseExternal reads an address or the name of an interface. "" means every WAN interface. An IPv6 address needs
// brackets as IPv6Rule says.
func ParseExternal(text string) (External, error) {
	if addr, ports, doubtful := cutPort(text); doubtful {
		return External{}, fmt.Errorf("%s is ambiguous: %s with port %s, or one longer address; write %s and give the port separately, or write [%s]",
			Quote(text), addr, ports, addr, text)
	}
	return parseExternal(text)
}

// parseExternal is ParseExternal, but accepts every address without brackets, as External.String writes it.
func parseExternal(text string) (External, error) {
	if text == "" {
		return External{}, nil
	}
	if !looksLikeAddress(text) {
		if err := CheckInterfaceName(text); err != nil {
			return External{}, err
		}
		return External{Interface: text}, nil
	}
	addr, err := parseAddress(text)
	if err != nil {
		return External{}, err
	}
	return External{Address: addr}, nil
}

// String returns the address, the name of the interface, or "" for every WAN interface.
func (e External) String() string {
	if e.Address.IsValid() {
		return e.Address.String()
	}
	return e.Interface
}

// Written returns the form for a configuration file, which ParseExternal reads: an IPv6 address may have brackets.
func (e External) Written() string {
	if e.Address.IsValid() {
		return unmistakable(e.Address)
	}
	return e.Interface
}

// MarshalText implements encoding.TextMarshaler.
func (e External) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (e *External) UnmarshalText(text []byte) error {
	external, err := parseExternal(string(text))
	if err == nil {
		*e = external
	}
	return err
}

// looksLikeAddress reports whether text is meant as an address, even if it is mistyped, and not as an interface name.
func looksLikeAddress(text string) bool {
	return strings.Trim(text, "0123456789.") == "" && strings.Contains(text, ".") ||
		strings.ContainsAny(text, ":[]")
}

// parseAddress reads an IPv4 address without leading zeros, or an IPv6 address with or without brackets. IPv4-mapped
// addresses and zones are errors.
func parseAddress(text string) (netip.Addr, error) {
	inner, opened := strings.CutPrefix(text, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	addr, err := netip.ParseAddr(inner)
	switch {
	case err != nil || opened != closed || opened && addr.Is4():
		return netip.Addr{}, fmt.Errorf("%s is not an address; an address looks like 192.168.1.20 (no leading zeros) or 2001:db8::20; with a port, write IPv6 as [2001:db8::20]:443", Quote(text))
	case addr.Is4In6():
		return netip.Addr{}, mappedError(text, addr.Unmap())
	case addr.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s has a zone, as only link-local addresses do; give a global or unique local address without a zone", Quote(text))
	}
	return addr, nil
}

// mappedError returns the error for an IPv4-mapped IPv6 address or network. No packet has such an address.
func mappedError(text string, plain fmt.Stringer) error {
	return fmt.Errorf("%s is an IPv4-mapped address; write %s", Quote(text), plain)
}

// ParsePrefix reads a network such as 192.168.1.0/24 or 2001:db8::/32. An address without a length is a network of one
// address.
func ParsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		addr, err := parseAddress(text)
		if err != nil {
			return netip.Prefix{}, err
		}
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%s is not a network; a network looks like 192.168.1.0/24 or 2001:db8::/32", Quote(text))
	case prefix.Addr().Is4In6():
		plain := netip.PrefixFrom(prefix.Addr().Unmap(), max(0, prefix.Bits()-96))
		return netip.Prefix{}, mappedError(text, plain.Masked())
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has host bits set; write %s", Quote(text), prefix.Masked())
	}
	return prefix, nil
}

// SourceText is a network, or an address without the length that says it is alone. ParsePrefix reads it.
func SourceText(source netip.Prefix) string {
	if source.IsSingleIP() {
		return source.Addr().String()
	}
	return source.String()
}

// Reflect says how hairpin translates the source of a hairpin connection.
type Reflect string

// The reflect modes. "" means the default of the configuration.
const (
	ReflectAuto   Reflect = "auto"
	ReflectRouter Reflect = "router"
	ReflectPublic Reflect = "public"
	ReflectPrefix Reflect = "prefix"
	ReflectOff    Reflect = "off"
)

// ReflectNames returns the reflect modes.
func ReflectNames() []string {
	return []string{string(ReflectAuto), string(ReflectRouter), string(ReflectPublic), string(ReflectPrefix), string(ReflectOff)}
}

// ParseReflect reads a reflect mode.
func ParseReflect(text string) (Reflect, error) {
	if modes := ReflectNames(); !slices.Contains(modes, text) {
		return "", fmt.Errorf("%s is not a reflect mode; %s", Quote(text), Suggest(text, modes...))
	}
	return Reflect(text), nil
}

// Clients says which source the server sees for clients in general.
type Clients string

// The values of Clients. "" means ClientsAuto.
const (
	ClientsAuto   Clients = "auto"   // a client of the Internet keeps its address; Reflect says what a LAN client gets
	ClientsRouter Clients = "router" // every client gets the router's address
)

// ClientsNames returns the values of Clients.
func ClientsNames() []string { return []string{string(ClientsAuto), string(ClientsRouter)} }

// ParseClients reads a value of Clients.
func ParseClients(text string) (Clients, error) {
	if names := ClientsNames(); !slices.Contains(names, text) {
		return "", fmt.Errorf("%s is not a value of clients; %s", Quote(text), Suggest(text, names...))
	}
	return Clients(text), nil
}

// Forward is a rule: packets to an external address and these ports go to the target. An intercept is also a Forward:
// packets of LAN clients to these ports go to the target, whatever their destination address is. An intercept has no
// External, From, Clients and Hosts.
type Forward struct {
	Name      string     `json:"name"`
	Protocols []Protocol `json:"protocol"`
	External  External   `json:"external"`
	Target    netip.Addr `json:"target"`
	// The small fields are together, because there may be tens of thousands of forwards.
	Ports      Ports  `json:"port"`
	TargetPort uint16 `json:"target_port,omitempty"` // target port for Ports.First; 0: the target ports equal Ports
	Intercept  bool   `json:"intercept,omitempty"`
	// Disabled forwards match no packet. Config.Disabled has them, never Config.Forwards.
	Disabled bool `json:"disabled,omitempty"`
	// LANOnly forwards are for clients of LANs and for the router itself. Packets that come in by a WAN are left to the kernel, as if the
	// forward did not exist.
	LANOnly bool           `json:"lan_only,omitempty"`
	Pool    *Pool          `json:"pool,omitempty"` // nil: Target is the only server
	From    []netip.Prefix `json:"from,omitempty"` // networks of clients that may connect; empty: all
	Reflect Reflect        `json:"reflect,omitempty"`
	Clients Clients        `json:"clients,omitempty"`
	Rate    Rate           `json:"rate,omitzero"` // of new connections
	// RatePerSource is the same of each client: an IPv4 address, an IPv6 /64 of a WAN, an address of a LAN.
	RatePerSource Rate           `json:"rate_per_source,omitzero"`
	Hosts         []string       `json:"hosts,omitempty"`  // names for split DNS, in the form that ParseHost returns
	LAN           []string       `json:"lan,omitempty"`    // intercept: its LAN interfaces; empty: all
	Except        []netip.Prefix `json:"except,omitempty"` // intercept: clients and destinations that it does not redirect
	Comment       string         `json:"comment,omitempty"`
	// DrainUntil is not 0 for a forward that is being deleted: it opens no connection, and its established connections stay until
	// this time since the boot (CLOCK_BOOTTIME).
	DrainUntil time.Duration `json:"drain_until,omitempty"`
	Source     string        `json:"source,omitempty"` // where the user wrote the forward, such as FILE:LINE
}

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)

func (f *Forward) checkName() error {
	if !namePattern.MatchString(f.Name) {
		return fmt.Errorf("%s is not a name for %s; a name has 1 to 32 of a-z, 0-9, dot, underscore and dash, and starts with a letter or digit", Quote(f.Name), f.one())
	}
	return nil
}

// externalString formats the address or interface and the ports as on the command line, such as "wan0:443". A 1:1
// forward has the port "any". An intercept may have several interfaces: "lan0,lan1:53".
func (f Forward) externalString() string {
	ports := f.Ports.String()
	if f.Ports.Every() {
		ports = anyPort
	}
	if f.External.Address.IsValid() {
		return withPorts(f.External.Address, ports)
	}
	where := strings.Join(f.LAN, ",")
	if !f.Intercept {
		where = f.External.Interface
	}
	if where == "" {
		return ports
	}
	return where + ":" + ports
}

// SourceLease is the Source of a forward that stands for a mapping in a lease file. The daemon makes and removes these forwards. They
// are in no configuration file.
const SourceLease = "lease"

// IsLease reports whether the forward stands for a mapping in a lease file.
func (f *Forward) IsLease() bool { return f.Source == SourceLease }

// Drains reports whether the forward is being deleted: it opens no connection any more.
func (f *Forward) Drains() bool { return f.DrainUntil != 0 }

// HidesClients reports whether the server sees the router's address for every client.
func (f *Forward) HidesClients() bool { return f.Clients == ClientsRouter }

// TargetPorts returns the ports at the target. They are as many as f.Ports.
func (f Forward) TargetPorts() Ports { return f.TargetPortsOf(Server{Port: f.TargetPort}) }

// PortShift returns target port minus external port, modulo 65536.
func (f *Forward) PortShift() uint16 { return f.TargetPorts().First - f.Ports.First }

// TargetString formats the target as on the command line, with its ports. A 1:1 forward has no ports here.
func (f Forward) TargetString() string {
	return f.ServerString(Server{Target: f.Target, Port: f.TargetPort})
}

func withPorts(addr netip.Addr, ports string) string {
	if addr.Is6() {
		return "[" + addr.String() + "]:" + ports
	}
	return addr.String() + ":" + ports
}

// String formats the forward in the grammar of ParseForward. An intercept has "except CIDR,..." after its target, which
// ParseForward does not read.
func (f Forward) String() string {
	words := []string{f.Name, joined(f.Protocols), f.externalString(), f.serversString()}
	if len(f.From) > 0 {
		words = append(words, "from", joined(f.From))
	}
	if len(f.Except) > 0 {
		words = append(words, "except", joined(f.Except))
	}
	if f.Reflect != "" {
		words = append(words, "reflect", string(f.Reflect))
	}
	if f.Clients != "" {
		words = append(words, "clients", string(f.Clients))
	}
	if !f.Rate.IsZero() {
		words = append(words, "rate", f.Rate.String())
	}
	if !f.RatePerSource.IsZero() {
		words = append(words, "rate_per_source", f.RatePerSource.String())
	}
	if f.Affinity() != 0 {
		words = append(words, "affinity", f.Affinity().String())
	}
	if len(f.Hosts) > 0 {
		words = append(words, "host", strings.Join(f.Hosts, ","))
	}
	if f.Comment != "" {
		words = append(words, "comment", word(f.Comment))
	}
	return strings.Join(words, " ")
}

// word returns text as one word of a command line.
func word(text string) string {
	if strings.Trim(text, wordCharacters) == "" {
		return text
	}
	return Quote(text)
}

const wordCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.,:/@+"

func joined[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, item := range list {
		words[i] = item.String()
	}
	return strings.Join(words, ",")
}

// Kind returns "intercept" for an intercept, else "forward".
func (f Forward) Kind() string {
	if f.Intercept {
		return "intercept"
	}
	return "forward"
}

// one returns Kind with an indefinite article.
func (f *Forward) one() string {
	if f.Intercept {
		return "an intercept"
	}
	return "a forward"
}

// portless returns the first protocol of the forward that has no ports, and whether there is such a protocol.
func (f *Forward) portless() (Protocol, bool) {
	i := slices.IndexFunc(f.Protocols, func(p Protocol) bool { return !p.HasPorts() })
	if i < 0 {
		return 0, false
	}
	return f.Protocols[i], true
}
