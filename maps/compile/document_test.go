// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What lies in the kernel is read by other versions of hairpin: its keys are fixed, and nothing else is written.
func TestKeysOfTheDocument(t *testing.T) {
	text, err := (&Document{Chunks: 3, Added: 2}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(text), "\n")
	var keys map[string]json.RawMessage
	if err := json.Unmarshal([]byte(head), &keys); err != nil {
		t.Fatal(err)
	}
	want := []string{"config", "entries", "externals", "generation", "intercepts", "origins", "schema", "sources"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(keys))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
