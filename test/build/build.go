// SPDX-License-Identifier: Apache-2.0

// Package build builds hairpin for tests: as it is, and with a change in one file.
package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Hairpin builds hairpin from this tree as make build does, with additional flags of go build. The architecture is that of GOARCH, by default
// this machine's.
func Hairpin(path string, flags ...string) error {
	arguments := append([]string{"build", "-o", path}, flags...)
	build := exec.Command("go", append(arguments, "hairpin/cmd/hairpin")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// Variant is hairpin with other contents of one file.
type Variant struct {
	Name   string // of the binary
	file   string // a path from the top of the tree
	change func(contents string) string
}

var (
	// AnotherBuild has the same programs with another fingerprint. A loader of ELF files does not read what follows the last section.
	AnotherBuild = Variant{"hairpin-build", "bpf/hairpin_bpfel.o", func(object string) string { return object + "another build" }}
	// AnotherSchema has a layout with another number, as a release that changes the maps.
	AnotherSchema = Variant{"hairpin-schema", "bpf/hairpin_bpfel.go", func(source string) string {
		head, rest, _ := strings.Cut(source, "HairpinSchemaSCHEMA HairpinSchema = ")
		number, tail, _ := strings.Cut(rest, "\n")
		return head + "HairpinSchemaSCHEMA HairpinSchema = 1" + number + "\n" + tail
	}}
	// AnotherMap has another map, but the same number of the layout, which was forgotten.
	AnotherMap = Variant{"hairpin-map", "bpf/gen.go", func(source string) string {
		return strings.Replace(source, "func Spec() (*ebpf.CollectionSpec, error) { return spec() }", `func Spec() (*ebpf.CollectionSpec, error) {
	s, err := spec()
	if err == nil {
		s.Maps[HairpinMapEpochs].ValueSize = 8
	}
	return s, err
}`, 1)
	}}

	// Variants has all of them.
	Variants = []Variant{AnotherBuild, AnotherSchema, AnotherMap}
)

// In builds the variant in a directory, which gets the changed file, too. It returns the path of the binary.
func (v Variant) In(dir string) (string, error) {
	path := filepath.Join(dir, v.Name)
	if err := v.build(dir, path); err != nil {
		return "", fmt.Errorf("build hairpin with another %s: %w", v.file, err)
	}
	return path, nil
}

func (v Variant) build(dir, path string) error {
	module, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return err
	}
	file := filepath.Join(filepath.Dir(string(module)), v.file)
	contents, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	changed := v.change(string(contents))
	if changed == string(contents) {
		return errors.New("its contents are the same")
	}
	replacement, overlay := filepath.Join(dir, v.Name+filepath.Ext(file)), filepath.Join(dir, v.Name+".json")
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{file: replacement}})
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(replacement, []byte(changed), 0o600), os.WriteFile(overlay, list, 0o600)); err != nil {
		return err
	}
	return Hairpin(path, "-overlay", overlay, "-ldflags", "-s -w")
}
