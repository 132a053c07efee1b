// SPDX-License-Identifier: Apache-2.0

// Package rule has the values that forwards are made of: addresses, ports, protocols, host names, selectors of connections. It reads
// and prints them, and finds what is wrong with one of them alone. It knows no other forward, no interface of the machine and no
// kernel: what it says depends on its arguments only.
package rule

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// External says where a forward listens: at one address, at the addresses of
// one WAN interface, or, the zero value, at those of every WAN interface.
// At most one of the two is set.
type External struct {
	Interface string
	Address   netip.Addr
}

// ParseExternal reads an address or the name of an interface; "" is every WAN
// interface. IPv6Rule holds for the address.
func ParseExternal(text string) (External, error) {
	if addr, ports, doubtful := cutPort(text); doubtful {
		return External{}, fmt.Errorf("%s is %s with port %s, or an address that ends so; write %s and give the port apart, or write [%s]",
			Quote(text), addr, ports, addr, text)
	}
	return parseExternal(text)
}

// parseExternal also takes what External.String writes.
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
	addr, err := ParseAddress(text)
	if err != nil {
		return External{}, err
	}
	return External{Address: addr}, nil
}

// String is the address, the interface, or "" for every WAN interface.
func (e External) String() string {
	if e.Address.IsValid() {
		return e.Address.String()
	}
	return e.Interface
}

// Written is String for a configuration file: ParseExternal reads it.
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

// looksLikeAddress tells addresses, also mistyped ones, from interface names.
func looksLikeAddress(text string) bool {
	return strings.Trim(text, "0123456789.") == "" && strings.Contains(text, ".") ||
		strings.ContainsAny(text, ":[]")
}

// ParseAddress reads an IPv4 address without leading zeros, or an IPv6 address,
// which may be in brackets.
func ParseAddress(text string) (netip.Addr, error) {
	inner, opened := strings.CutPrefix(text, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	addr, err := netip.ParseAddr(inner)
	switch {
	case err != nil || opened != closed || opened && addr.Is4():
		return netip.Addr{}, fmt.Errorf("%s is not an address; an address looks like 192.168.1.20, without leading zeros, or 2001:db8::20, which takes a port in brackets, [2001:db8::20]:443", Quote(text))
	case addr.Is4In6():
		return netip.Addr{}, mappedError(text, addr.Unmap())
	case addr.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s has a zone, which says where a link-local address is; give a global or unique local one, without zone", Quote(text))
	}
	return addr, nil
}

// mappedError is about an IPv4 address in the guise of IPv6, which is on no wire.
func mappedError(text string, plain fmt.Stringer) error {
	return fmt.Errorf("%s is an IPv4-mapped address; write %s", Quote(text), plain)
}

// ParsePrefix reads a network such as 192.168.1.0/24 or 2001:db8::/32, or an
// address for itself alone.
func ParsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		addr, err := ParseAddress(text)
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
		return netip.Prefix{}, fmt.Errorf("%s has bits set behind its length; write %s", Quote(text), prefix.Masked())
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

// Reflect is what the source of a hairpin connection becomes.
type Reflect string

// The reflect modes; "" stands for the default of the configuration.
const (
	ReflectAuto   Reflect = "auto"
	ReflectRouter Reflect = "router"
	ReflectPublic Reflect = "public"
	ReflectPrefix Reflect = "prefix"
	ReflectOff    Reflect = "off"
)

// ReflectNames lists the reflect modes.
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

// Forward is a rule: what arrives for an external address and its ports goes to
// the target. An intercept is one too, but takes what clients of LANs ask its
// ports of, whatever address that is: it has no External, From and Hosts.
type Forward struct {
	Name       string         `json:"name"`
	Protocols  []Protocol     `json:"protocol"`
	External   External       `json:"external"`
	Ports      Ports          `json:"port"`
	Target     netip.Addr     `json:"target"`
	TargetPort uint16         `json:"target_port,omitempty"` // of Ports.First; 0: the same ports
	From       []netip.Prefix `json:"from,omitempty"`        // who may connect; empty: everybody
	Reflect    Reflect        `json:"reflect,omitempty"`
	Rate       Rate           `json:"rate,omitzero"` // of new connections
	// RatePerSource is the same of each client: an IPv4 address, an IPv6 /64 of a WAN, an address of a LAN.
	RatePerSource Rate           `json:"rate_per_source,omitzero"`
	Hosts         []string       `json:"hosts,omitempty"` // names for split DNS, as ParseHost gives them
	Intercept     bool           `json:"intercept,omitempty"`
	LAN           []string       `json:"lan,omitempty"`    // of an intercept: interfaces; empty: every LAN interface
	Except        []netip.Prefix `json:"except,omitempty"` // of an intercept: who and what is left alone
	Source        string         `json:"source,omitempty"` // where it was written, such as FILE:LINE
}

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)

func (f *Forward) checkName() error {
	if !namePattern.MatchString(f.Name) {
		return fmt.Errorf("%s is not a name for %s; a name has 1 to 32 of a-z, 0-9, dot, underscore and dash, and starts with a letter or digit", Quote(f.Name), f.one())
	}
	return nil
}

// ExternalString is the address or interface and the ports as the command line
// writes them, such as "wan0:443"; a 1:1 forward has the port "any". An intercept
// may have several interfaces, as in "lan0,lan1:53".
func (f Forward) ExternalString() string {
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

// TargetPorts are the ports at the target, as many as f.Ports.
func (f Forward) TargetPorts() Ports {
	if f.Ports.Every() || f.TargetPort == 0 {
		return f.Ports
	}
	return Ports{First: f.TargetPort, Last: f.TargetPort + (f.Ports.Last - f.Ports.First)}
}

// PortShift is what a port changes by on the way to the target, modulo 65536.
func (f *Forward) PortShift() uint16 { return f.TargetPorts().First - f.Ports.First }

// TargetString is the target as the command line writes it, with its ports
// unless they are all of them.
func (f Forward) TargetString() string {
	if f.Ports.Every() {
		return unmistakable(f.Target)
	}
	return withPorts(f.Target, f.TargetPorts().String())
}

func withPorts(addr netip.Addr, ports string) string {
	if addr.Is6() {
		return "[" + addr.String() + "]:" + ports
	}
	return addr.String() + ":" + ports
}

// String is the forward in the grammar of ParseForward. An intercept is written
// alike, with who is excepted behind its target.
func (f Forward) String() string {
	words := []string{f.Name, joined(f.Protocols), f.ExternalString(), "to", f.TargetString()}
	if len(f.From) > 0 {
		words = append(words, "from", joined(f.From))
	}
	if len(f.Except) > 0 {
		words = append(words, "except", joined(f.Except))
	}
	if f.Reflect != "" {
		words = append(words, "reflect", string(f.Reflect))
	}
	if !f.Rate.IsZero() {
		words = append(words, "rate", f.Rate.String())
	}
	if !f.RatePerSource.IsZero() {
		words = append(words, "rate_per_source", f.RatePerSource.String())
	}
	if len(f.Hosts) > 0 {
		words = append(words, "host", strings.Join(f.Hosts, ","))
	}
	return strings.Join(words, " ")
}

func joined[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, item := range list {
		words[i] = item.String()
	}
	return strings.Join(words, ",")
}

// Kind is what the forward is called: "forward" or "intercept".
func (f Forward) Kind() string {
	if f.Intercept {
		return "intercept"
	}
	return "forward"
}

// one is Kind with its article.
func (f *Forward) one() string {
	if f.Intercept {
		return "an intercept"
	}
	return "a forward"
}

// portless finds a protocol of the forward that knows no ports.
func (f *Forward) portless() (Protocol, bool) {
	i := slices.IndexFunc(f.Protocols, func(p Protocol) bool { return !p.HasPorts() })
	if i < 0 {
		return 0, false
	}
	return f.Protocols[i], true
}
