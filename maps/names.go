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

// labels has the names of the datapath's enum values from its BTF, without the prefix and in lower case:
// REASON_TABLE_FULL is "table_full".
type labels struct {
	paths, verdicts, reasons map[uint32]string
}

// embedded returns the object file in this binary. Callers share the result: copy a spec before changing it.
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
		// The object is part of this binary, so an error is a mistake of the build.
		panic(err)
	}
	return labels{
		paths:    enumNames(spec.Types, "conn_path"),
		verdicts: enumNames(spec.Types, "verdict"),
		reasons:  enumNames(spec.Types, "reason"),
	}
})

// enumNames returns the names of the values of one enum. It leaves out values without an underscore, such as PATHS: they
// are the number of values.
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

// ReasonName returns the name of a reason of the datapath, as in the metrics; "" for REASON_NONE.
func ReasonName(reason uint32) string {
	if reason == 0 {
		return ""
	}
	return word(names().reasons, reason)
}

// VerdictName returns the name of a verdict of the datapath.
func VerdictName(verdict uint32) string { return word(names().verdicts, verdict) }

// PathName returns the name of a path by which a connection reaches its forward.
func PathName(path uint32) string { return word(names().paths, path) }

// word returns the name of a value, or "unknown_N" for a value that only a newer datapath has.
func word(words map[uint32]string, value uint32) string {
	if name, ok := words[value]; ok {
		return name
	}
	return fmt.Sprintf("unknown_%d", value)
}
