// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// FilterSyntax is the grammar of ParseFilter.
const FilterSyntax = "[forward NAME] [client CIDR] [port N[-N]] [interface IF] [proto P]"

// Filter says which packets are traced. The zero value selects every packet; a packet must match every condition.
type Filter struct {
	Forward   string
	Client    netip.Prefix
	Ports     rule.Ports // of either end, before or after the rewrite
	Interface string     // by which the packet comes in or leaves
	Protocol  rule.Protocol
}

// FilterWords returns the words of the grammar.
func FilterWords() []string { return []string{"forward", "client", "port", "interface", "proto"} }

// ParseFilter reads a filter in the grammar of FilterSyntax. The error names every wrong word.
func ParseFilter(args []string) (Filter, error) {
	var f Filter
	var problems []error
	seen := map[string]bool{}
	for ; len(args) > 0; args = args[min(2, len(args)):] {
		word := args[0]
		var err error
		switch {
		case !slices.Contains(FilterWords(), word):
			err = fmt.Errorf("%s does not select packets; %s", rule.Quote(word), rule.Suggest(word, FilterWords()...))
		case len(args) == 1:
			err = fmt.Errorf("no value after %q; a filter is %s", word, FilterSyntax)
		case seen[word]:
			err = fmt.Errorf("%q is there twice", word)
		default:
			err = f.set(word, args[1])
		}
		seen[word] = true
		problems = append(problems, err)
	}
	return f, errors.Join(problems...)
}

func (f *Filter) set(word, value string) (err error) {
	switch word {
	case "forward":
		f.Forward = value
	case "client":
		f.Client, err = rule.ParsePrefix(value)
	case "port":
		f.Ports, err = rule.ParsePorts(value)
	case "interface":
		f.Interface = value
	case "proto":
		f.Protocol, err = rule.ParseProtocol(value)
		if f.Protocol == rule.Any {
			err = fmt.Errorf("no packet is of protocol %s; leave proto out to trace every protocol", rule.Any)
		}
	}
	return err
}

// encode returns the form of the filter in the kernel. forward and ifindex stand for the names in f.
func (f *Filter) encode(forward, ifindex uint32) bpf.TracePacketFilter {
	filter := bpf.TracePacketFilter{
		Forward: forward, Ifindex: ifindex, PortFirst: f.Ports.First, PortLast: f.Ports.Last, Protocol: uint8(f.Protocol),
	}
	if f.Protocol == rule.ICMP {
		filter.Protocol = unix.IPPROTO_ICMP
	}
	if f.Client.IsValid() {
		client := f.Client.Masked()
		filter.ByClient = 1
		filter.Client = bpf.TraceAddr(layout.ToAddr(client.Addr()))
		filter.ClientMask = bpf.TraceAddr(layout.MappedMask(client))
	}
	return filter
}
