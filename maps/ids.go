// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
)

// idPool hands out the free ids from first to last, lowest first.
type idPool struct {
	next, last uint32
	used       map[uint32]bool
}

// newIDPool has the ids from first to last.
func newIDPool(first, last uint32) *idPool {
	return &idPool{next: first, last: last, used: map[uint32]bool{}}
}

// reserve takes an id out of the pool.
func (p *idPool) reserve(id uint32) { p.used[id] = true }

// take fails if no id is free.
func (p *idPool) take() (uint32, error) {
	for ; p.next <= p.last; p.next++ {
		if !p.used[p.next] {
			p.used[p.next] = true
			return p.next, nil
		}
	}
	return 0, fmt.Errorf("all ids up to %d are in use", p.last)
}
