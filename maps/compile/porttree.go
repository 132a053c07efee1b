// SPDX-License-Identifier: Apache-2.0

package compile

import "math/bits"

// portTree is the set of port prefixes of one external id and protocol. Prefixes
// lie within each other or apart, so the longest one that holds a port was
// painted last, given that painting a prefix drops those within it. That makes
// the kernel's longest match the same as "the last one painted wins".
type portTree struct {
	nodes []portNode
}

type portNode struct {
	children [2]int32 // 0: none
	owner    int32    // 1 + the forward's index; 0: none
}

const portBits = 16

func newPortTree() *portTree { return &portTree{nodes: make([]portNode, 1)} }

// paint gives the ports from first to last, both included, to owner.
func (t *portTree) paint(first, last, owner int) {
	t.paintNode(0, 0, 0, first, last, int32(owner)+1)
}

// paintNode handles the node of the prefix start/depth.
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

// Each visits the prefixes that have an owner, in port order.
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

// eachRun visits the ports in order, as the longest ranges that belong to one
// owner; those that have none here are below's, -1 for nobody.
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

// runsOf handles the node of the prefix start/depth, whose ports are owner's
// where no longer prefix has them.
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

// eachPrefix visits the fewest prefixes that have the ports from first to last, in
// port order.
func eachPrefix(first, last int, visit func(port uint16, prefixBits int)) {
	for first <= last {
		free := min(bits.TrailingZeros16(uint16(first)), bits.Len(uint(last-first+1))-1)
		visit(uint16(first), portBits-free)
		first += 1 << free
	}
}
