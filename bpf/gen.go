// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

// Package bpf holds the datapath: the C program and the Go twin that bpf2go
// generates from it. Nothing in it is written by hand but this file.
package bpf

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/cilium/ebpf"
)

//go:generate go tool bpf2go -target bpfel -output-stem hairpin -type conn_path -type conn_state -type conn -type hop -type ring -type conn_event -type source_page -type load_page -type proven_page -type reflect -type role -type verdict -type reason -type epoch_ref -type traffic -type interface_address -type end_request -type correct_request -type place_kind -type conn_flag -type side Hairpin hairpin.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror

var spec = sync.OnceValues(LoadHairpin)

// Spec is the embedded object, which takes milliseconds to read and is read once.
// It is shared: copy what you change.
func Spec() (*ebpf.CollectionSpec, error) { return spec() }

// Fingerprint tells the embedded object from that of another version.
var Fingerprint = sync.OnceValue(func() uint64 {
	sum := sha256.Sum256(_HairpinBytes)
	return binary.BigEndian.Uint64(sum[:])
})
