// SPDX-License-Identifier: Apache-2.0

// Package setups runs what the pages for users say, as the pages say it: containers, ways to set up a router, and recipes.
package setups

import (
	"fmt"
	"os"
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(standInFiles); dir != "" {
		if err := standIn(dir, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "docker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	lab.Main(m)
}
