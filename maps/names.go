// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"hairpin/bpf"
)

// labels are the words for the datapath's enum values, as its type information
// spells them: REASON_TABLE_FULL is "table_full".
type labels struct {
	paths, verdicts, reasons map[uint32]string
}

// embedded is the object file that this build carries; its specs must be
// copied before they are changed.
func embedded() (*ebpf.CollectionSpec, error) {
	spec, err := bpf.Spec()
	if err != nil {
		return nil, fmt.Errorf("read embedded object: %w", err)
	}
	return spec, nil
}

var names = sync.OnceValue(func() labels {
	spec, err := embedded()
	if err != nil {
		// The object is part of this very binary.
		panic(err)
	}
	return labels{
		paths:    enumNames(spec.Types, "conn_path"),
		verdicts: enumNames(spec.Types, "verdict"),
		reasons:  enumNames(spec.Types, "reason"),
	}
})

// enumNames reads the values of one enum. A value without an underscore, such
// as PATHS, only counts the others and has no name.
func enumNames(types *btf.Spec, enum string) map[uint32]string {
	var found *btf.Enum
	if err := types.TypeByName(enum, &found); err != nil {
		panic(fmt.Errorf("embedded object: enum %s: %w", enum, err))
	}
	words := make(map[uint32]string, len(found.Values))
	for _, value := range found.Values {
		if _, word, ok := strings.Cut(value.Name, "_"); ok {
			words[uint32(value.Value)] = strings.ToLower(word)
		}
	}
	return words
}

// word names a value, also one that a newer datapath may know and this build does not.
func word(words map[uint32]string, value uint32) string {
	if name, ok := words[value]; ok {
		return name
	}
	return fmt.Sprintf("unknown_%d", value)
}
