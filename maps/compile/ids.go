// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
)

// IDPool hands out the free ids from first to last, lowest first.
type IDPool struct {
	next, last uint32
	used       map[uint32]bool
}

// NewIDPool returns a pool with the ids from first to last.
func NewIDPool(first, last uint32) *IDPool {
	return &IDPool{next: first, last: last, used: map[uint32]bool{}}
}

// Reserve takes an id out of the pool.
func (p *IDPool) Reserve(id uint32) { p.used[id] = true }

// Take returns the lowest free id and takes it out of the pool. It returns an error if no id is free.
func (p *IDPool) Take() (uint32, error) {
	for ; p.next <= p.last; p.next++ {
		if !p.used[p.next] {
			p.used[p.next] = true
			return p.next, nil
		}
	}
	return 0, fmt.Errorf("all ids up to %d are in use", p.last)
}
