// SPDX-License-Identifier: Apache-2.0

package compile

import "math/bits"

// portTree is the set of port prefixes of one external id and protocol, each with its forward. The forward that is
// painted last on a port must win, and the kernel's trie chooses the longest prefix. Both agree: two prefixes are
// nested or disjoint, and painting a prefix removes all prefixes within it. So of the prefixes that contain a port, the
// longest was painted last.
type portTree struct {
	nodes []portNode
}

type portNode struct {
	children [2]int32 // indexes in nodes; 0: no child
	owner    int32    // index of the forward, plus 1; 0: no forward
}

const portBits = 16

func newPortTree() *portTree { return &portTree{nodes: make([]portNode, 1)} }

// paint gives the ports from first to last, both included, to the forward owner.
func (t *portTree) paint(first, last, owner int) {
	t.paintNode(0, 0, 0, first, last, int32(owner)+1)
}

// paintNode paints within the node of the prefix start/depth.
func (t *portTree) paintNode(node int32, start, depth, first, last int, owner int32) {
	end := start + 1<<(portBits-depth) - 1
	if last < start || end < first {
		return
	}
	if first <= start && end <= last {
		t.nodes[node] = portNode{owner: owner}
		return
	}
	half := 1 << (portBits - depth - 1)
	for side := range 2 {
		from := start + side*half
		if last < from || from+half-1 < first {
			continue
		}
		if t.nodes[node].children[side] == 0 {
			t.nodes = append(t.nodes, portNode{})
			t.nodes[node].children[side] = int32(len(t.nodes) - 1)
		}
		t.paintNode(t.nodes[node].children[side], from, depth+1, first, last, owner)
	}
}

// each visits the prefixes that have an owner, in port order.
func (t *portTree) each(visit func(port uint16, prefixBits, owner int) error) error {
	return t.eachNode(0, 0, 0, visit)
}

func (t *portTree) eachNode(node int32, start, depth int, visit func(uint16, int, int) error) error {
	n := t.nodes[node]
	if n.owner != 0 {
		if err := visit(uint16(start), depth, int(n.owner)-1); err != nil {
			return err
		}
	}
	for side, child := range n.children {
		if child == 0 {
			continue
		}
		if err := t.eachNode(child, start+side<<(portBits-depth-1), depth+1, visit); err != nil {
			return err
		}
	}
	return nil
}

// eachRun visits ranges of ports with one owner, in port order and as long as possible. Ports without an owner belong to
// below. If below is -1, they are left out.
func (t *portTree) eachRun(below int, visit func(first, last, owner int)) {
	run := portRun{owner: -1}
	t.runsOf(0, 0, 0, below, func(next portRun) {
		if next.owner == run.owner {
			run.last = next.last
			return
		}
		if run.owner >= 0 {
			visit(run.first, run.last, run.owner)
		}
		run = next
	})
	if run.owner >= 0 {
		visit(run.first, run.last, run.owner)
	}
}

type portRun struct{ first, last, owner int }

// runsOf visits the ranges within the node of the prefix start/depth. owner is the owner of the shorter prefixes; it
// keeps the ports that no prefix in this node has.
func (t *portTree) runsOf(node int32, start, depth, owner int, visit func(portRun)) {
	n := t.nodes[node]
	if n.owner != 0 {
		owner = int(n.owner) - 1
	}
	size := 1 << (portBits - depth)
	if n.children == [2]int32{} {
		visit(portRun{start, start + size - 1, owner})
		return
	}
	for side, child := range n.children {
		from := start + side*size/2
		if child == 0 {
			visit(portRun{from, from + size/2 - 1, owner})
			continue
		}
		t.runsOf(child, from, depth+1, owner, visit)
	}
}

// eachPrefix visits the smallest set of prefixes that covers exactly the ports from first to last, in port order.
func eachPrefix(first, last int, visit func(port uint16, prefixBits int)) {
	for first <= last {
		free := min(bits.TrailingZeros16(uint16(first)), bits.Len(uint(last-first+1))-1)
		visit(uint16(first), portBits-free)
		first += 1 << free
	}
}
