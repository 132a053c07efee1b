// SPDX-License-Identifier: Apache-2.0

package floods

import (
	"os"
	"testing"

	"hairpin/test/record"
)

// TestFloods runs all floods and writes FLOODS.md. Without -rewrite it runs those of the short form, and writes nothing; `make test` runs
// these as a scenario of test/torture.
func TestFloods(t *testing.T) {
	cases, s := Short(), Setup{Idle: 1000}
	if *record.Rewrite {
		cases = All()
	}
	var rows []Row
	want := 0
	for _, c := range cases {
		want += c.Rows()
		rows = append(rows, c.Run(t, s)...)
	}
	report := Report(s, rows)
	t.Logf("\n%s", report)
	if !*record.Rewrite || len(rows) != want {
		return
	}
	if err := os.WriteFile("FLOODS.md", []byte(report), 0o644); err != nil {
		t.Fatalf("write table: %v", err)
	}
}
