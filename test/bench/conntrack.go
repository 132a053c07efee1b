// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// slab is a cache of kernel objects of one size.
type slab struct {
	objects int // objects in use
	bytes   int // memory of an object, with its share of the unused end of its pages
}

// conntrackBytes returns the kernel memory of an nftables connection, and its parts in words. /proc/slabinfo counts the objects of all
// connections, as memlock counts the maps of hairpin. The objects of a connection are in the caches that have one object more for
// each connection opened. The buckets of both hash tables, by tuple and by source, are shared by nf_conntrack_max connections,
// as the buckets of hairpin are shared by max_connections.
func (b *bench) conntrackBytes(opened int) (bytes float64, parts string, err error) {
	r := newRig(b.tb)
	r.nftables()
	before, err := readSlabs()
	if err != nil {
		return 0, "", err
	}
	r.establish(hairpinned, opened)
	after, err := readSlabs()
	if err != nil {
		return 0, "", err
	}
	words, bytes := added(before, after, opened)
	if len(words) == 0 {
		return 0, "", fmt.Errorf("no cache of /proc/slabinfo has grown by %d objects", opened)
	}
	buckets, err := readNumber("/proc/sys/net/netfilter/nf_conntrack_buckets")
	if err != nil {
		return 0, "", err
	}
	most, err := readNumber("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return 0, "", err
	}
	const tables, pointer = 2, 8
	share := float64(tables*pointer*buckets) / float64(most)
	words = append(words, fmt.Sprintf("buckets %.0f B", share))
	return bytes + share, strings.Join(words, ", "), nil
}

// added returns the bytes of the objects that were added for each connection, and the names of their caches.
func added(before, after map[string]slab, connections int) (words []string, bytes float64) {
	for name, s := range after {
		each := float64(s.objects-before[name].objects) / float64(connections)
		if each < 0.9 {
			continue // the slab of other work
		}
		bytes += each * float64(s.bytes)
		words = append(words, fmt.Sprintf("%s %.0f B", name, each*float64(s.bytes)))
	}
	slices.Sort(words)
	return words, bytes
}

func readSlabs() (map[string]slab, error) {
	f, err := os.Open("/proc/slabinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseSlabs(f, os.Getpagesize())
}

// parseSlabs reads slabinfo(5), version 2.1.
func parseSlabs(in io.Reader, page int) (map[string]slab, error) {
	slabs := make(map[string]slab)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "slabinfo") || strings.HasPrefix(line, "#") {
			continue
		}
		var name string
		var active, all, size, perSlab, pages int
		if _, err := fmt.Sscan(line, &name, &active, &all, &size, &perSlab, &pages); err != nil {
			return nil, fmt.Errorf("read slabinfo: %q: %w", line, err)
		}
		if perSlab > 0 {
			slabs[name] = slab{active, pages * page / perSlab}
		}
	}
	return slabs, lines.Err()
}

func readNumber(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
