// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hairpin/maps"
	"hairpin/maps/rule"
)

// sortKey is a key by which a table can be sorted. compare puts rows in their order: the highest figure first, names and addresses from
// the lowest on.
type sortKey[R any] struct {
	name    string
	compare func(a, b *R) int
}

// highest orders by a figure, the highest first.
func highest[R any](figure func(*R) uint64) func(a, b *R) int {
	return func(a, b *R) int { return cmp.Compare(figure(b), figure(a)) }
}

var connectionKeys = []sortKey[maps.Connection]{
	{"packets", highest(func(c *maps.Connection) uint64 { return c.Packets })},
	{"bytes", highest(func(c *maps.Connection) uint64 { return c.Bytes })},
	{"age", highest(func(c *maps.Connection) uint64 { return c.AgeSeconds })},
	{"idle", highest(func(c *maps.Connection) uint64 { return c.IdleSeconds })},
	{"client", func(a, b *maps.Connection) int { return a.Client.Compare(b.Client) }},
	{"external", func(a, b *maps.Connection) int { return a.External.Compare(b.External) }},
	{"target", func(a, b *maps.Connection) int { return a.Target.Compare(b.Target) }},
	{"forward", func(a, b *maps.Connection) int { return cmp.Compare(a.Forward, b.Forward) }},
	{"state", func(a, b *maps.Connection) int { return cmp.Compare(stateOrder(a), stateOrder(b)) }},
	{"proto", func(a, b *maps.Connection) int { return cmp.Compare(a.Protocol, b.Protocol) }},
}

func stateOrder(c *maps.Connection) int { return slices.Index(rule.StateNames(), c.State) }

var forwardKeys = []sortKey[forwardRow]{
	{"connections", highest(func(r *forwardRow) uint64 { return uint64(r.Connections) })},
	{"packets", highest(func(r *forwardRow) uint64 { return r.Packets })},
	{"bytes", highest(func(r *forwardRow) uint64 { return r.Bytes })},
	{"refused", highest(func(r *forwardRow) uint64 { return r.Refused })},
	{"last-hit", compareLastHit},
	{"name", func(a, b *forwardRow) int { return cmp.Compare(a.Name, b.Name) }},
}

// compareLastHit orders by the last hit, the latest first. Forwards without one come last.
func compareLastHit(a, b *forwardRow) int {
	switch {
	case a.LastHit == nil && b.LastHit == nil:
		return 0
	case a.LastHit == nil:
		return 1
	case b.LastHit == nil:
		return -1
	}
	return cmp.Compare(*a.LastHit, *b.LastHit)
}

func sortKeyNames[R any](keys []sortKey[R]) (names []string) {
	for _, key := range keys {
		names = append(names, key.name)
	}
	return names
}

// findSortKey returns the comparison of a key, nil for "".
func findSortKey[R any](keys []sortKey[R], name string) (func(a, b *R) int, error) {
	if name == "" {
		return nil, nil
	}
	for _, key := range keys {
		if key.name == name {
			return key.compare, nil
		}
	}
	return nil, usageError{fmt.Errorf("--sort %s is not known; %s", rule.Quote(name), rule.Suggest(name, sortKeyNames(keys)...))}
}

// addSortFlag adds --sort with its completion.
func addSortFlag[R any](command *cobra.Command, value *string, keys []sortKey[R], usage string) {
	names := sortKeyNames(keys)
	command.Flags().StringVar(value, "sort", "", "sort by `KEY`: "+strings.Join(names, ", ")+usage)
	_ = command.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
}
