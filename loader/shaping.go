// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Shaping is what shapes or polices the packets of an interface beside hairpin.
type Shaping struct {
	// Ingress are the kinds of the filters of others at ingress. The kernel runs TCX programs before filters (sch_handle_ingress),
	// and XDP before both: the filters see no packet that hairpin translates.
	Ingress []string
	// Early is whether one of them runs before hairpin's own filter, on a kernel without TCX. What it redirects does not reach hairpin.
	Early bool
	// Egress is the kind of the qdisc at egress if that shapes, or "". It does not see what XDP sends.
	Egress string
}

// shapers are qdiscs that limit a rate or say who goes first, unlike those that the kernel attaches by itself.
var shapers = []string{"cake", "cake_mq", "cbq", "drr", "hfsc", "htb", "netem", "prio", "qfq", "tbf"}

// ShapingOf looks at an interface. One that has gone has no shaping.
func ShapingOf(ifindex int) (Shaping, error) {
	var found Shaping
	filters, err := listFilters(ifindex, ingress.parent)
	if err != nil {
		return Shaping{}, explain(err)
	}
	for _, filter := range filters {
		if isOurs(filter, ingress) {
			continue
		}
		found.Early = found.Early || filter.Attrs().Priority < ingress.priority
		if !slices.Contains(found.Ingress, filter.Type()) {
			found.Ingress = append(found.Ingress, filter.Type())
		}
	}
	qdiscs, err := retryDump(func() ([]netlink.Qdisc, error) {
		return netlink.QdiscList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}})
	})
	if errors.Is(err, unix.ENODEV) {
		return Shaping{}, nil
	}
	if err != nil {
		return Shaping{}, explain(fmt.Errorf("list qdiscs: %w", err))
	}
	for _, qdisc := range qdiscs {
		if slices.Contains(shapers, qdisc.Type()) {
			found.Egress = qdisc.Type()
		}
	}
	return found, nil
}
