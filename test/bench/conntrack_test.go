// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
)

const slabHead = `slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>
`

// Only caches with an object for each connection count, and an object has its share of the unused end of its pages.
func TestConntrackObjects(t *testing.T) {
	before, err := parseSlabs(strings.NewReader(slabHead+`nf_conntrack 100 240 256 16 1 : tunables 0 0 0 : slabdata 15 15 0
kmalloc-96 500 504 96 42 1 : tunables 0 0 0 : slabdata 12 12 0
dentry 1000 1008 192 21 1 : tunables 0 0 0 : slabdata 48 48 0
`), 4096)
	if err != nil {
		t.Fatal(err)
	}
	after, err := parseSlabs(strings.NewReader(slabHead+`nf_conntrack 1100 1200 256 16 1 : tunables 0 0 0 : slabdata 75 75 0
kmalloc-96 1500 1512 96 42 1 : tunables 0 0 0 : slabdata 36 36 0
dentry 1300 1302 192 21 1 : tunables 0 0 0 : slabdata 62 62 0
`), 4096)
	if err != nil {
		t.Fatal(err)
	}
	words, bytes := added(before, after, 1000)
	if want := []string{"kmalloc-96 97 B", "nf_conntrack 256 B"}; !slices.Equal(words, want) || bytes != 256+97 {
		t.Errorf("%v, %v bytes", words, bytes)
	}
}
