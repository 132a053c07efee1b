// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

// Package bpf holds the datapath: the C programs, and the Go types that bpf2go
// generates from them. This is the only Go file here that is written by hand.
package bpf

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/cilium/ebpf"
)

//go:generate go tool bpf2go -target bpfel -output-stem hairpin -type conn_path -type conn_state -type conn -type tuple4 -type conn4 -type conn6 -type hop -type ring -type conn_event -type source_page -type load_page -type proven_page -type reflect -type role -type verdict -type reason -type maybe -type epoch_ref -type traffic -type own_address -type own_address_key -type end_request -type correct_request -type place_kind -type conn_flag -type side -type absence -type policy -type policy_side -type denial -type denied_key -type rate -type bucket -type source_bucket_key -type server -type lookup_page Hairpin hairpin.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror

//go:generate go tool bpf2go -target bpfel -output-stem explain -no-global-types -type addr -type tuple -type explanation Explain explain.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function

//go:generate go tool bpf2go -target bpfel -output-stem trace -no-global-types -type addr -type tuple -type packet_filter -type tally -type packet_report -type frame_report -type conn_report -type life_change -type packet_sender -type close_cause Trace trace.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror

var spec = sync.OnceValues(LoadHairpin)

// Spec returns the collection spec of the embedded object. The first call parses
// the object, which takes milliseconds. All callers share the result: copy it
// before you change it.
func Spec() (*ebpf.CollectionSpec, error) { return spec() }

// Fingerprint tells the embedded object from that of another version.
var Fingerprint = sync.OnceValue(func() uint64 {
	sum := sha256.Sum256(_HairpinBytes)
	return binary.BigEndian.Uint64(sum[:])
})
