// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"

	"hairpin/cmd/hairpin/man"
	"hairpin/test/record"
)

// TestManPages: the man pages say what the help texts and the comments of the installed configuration file say.
func TestManPages(t *testing.T) {
	root := newApp(env{stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}).rootCommand()
	record.Keep(t, "dist/hairpin.8", "make man", string(man.Commands(root)))

	file, err := os.ReadFile("dist/hairpin.toml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := man.Configuration(string(file))
	if err != nil {
		t.Fatal(err)
	}
	record.Keep(t, "dist/hairpin.toml.5", "make man", string(page))
}
