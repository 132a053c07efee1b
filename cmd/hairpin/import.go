// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/importer"
	"hairpin/maps/rule"
)

type importOptions struct {
	wan, lan, router []string
}

func (a *app) importCommand() *cobra.Command {
	var o importOptions
	command := &cobra.Command{
		Use:   "import FORMAT FILE",
		Short: "Translate the port forwards of another program into a configuration file",
		Long: `Translate the port forwards of another program into a configuration file, which is
printed. Nothing on the machine is read or changed. FILE - is standard input.

FORMAT is
  nft        the output of "nft -j list ruleset"
  iptables   the output of iptables-save, of ip6tables-save, or of both
  uci        the output of "uci export firewall" of OpenWrt; with "uci export network"
             behind it, the interfaces are known, too
  pfsense    config.xml of pfSense or OPNsense; interfaces have other names on Linux:
             name them by --wan and --lan

Comments in the file say what could not be translated, with the place and the reason,
and how to remove the rules that hairpin replaces. A rule is translated only if
hairpin does the same with its packets. Interfaces whose side the rules do not show
are named by --wan and --lan. -j prints the translation as JSON.`,
		Example: `  nft -j list ruleset | hairpin import nft - --lan lan0 > import.toml
  hairpin -c import.toml check
  hairpin import nft rules.json --wan wan0 --lan lan0,lan1`,
		Args: cobra.MatchAll(needs("FORMAT: "+strings.Join(importer.Formats(), ", ")), knownFormat, takes(2)),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) (completions, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return importer.Formats(), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(_ *cobra.Command, args []string) error {
			return a.importRules(args[0], args[1], o)
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.StringSliceVar(&o.wan, "wan", nil, "interfaces that lead to the Internet: `IF`[,IF..]")
	flags.StringSliceVar(&o.lan, "lan", nil, "interfaces of LANs: `IF`[,IF..]")
	flags.StringSliceVar(&o.router, "router", nil, "the router's address in the LAN, one of each family: `ADDR`[,ADDR]; \"redirect\" becomes an intercept to it")
	for _, flag := range []string{"wan", "lan"} {
		_ = command.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) (completions, cobra.ShellCompDirective) {
			return interfaceNames(""), cobra.ShellCompDirectiveNoFileComp
		})
	}
	return command
}

func knownFormat(_ *cobra.Command, args []string) error {
	if err := importer.CheckFormat(args[0]); err != nil {
		return err
	}
	if len(args) == 1 {
		return errors.New("import needs FILE; - is standard input")
	}
	return nil
}

func (o importOptions) check() (importer.Options, error) {
	options := importer.Options{WAN: o.wan, LAN: o.lan}
	for i, name := range slices.Concat(o.wan, o.lan) {
		if err := rule.CheckInterfaceName(name); err != nil {
			return options, err
		}
		if slices.Contains(slices.Concat(o.wan, o.lan)[:i], name) {
			return options, fmt.Errorf("%s is named twice; an interface has one side", rule.Quote(name))
		}
	}
	for _, text := range o.router {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" || addr.Is4In6() {
			return options, fmt.Errorf("--router: %s is not an address", rule.Quote(text))
		}
		if slices.ContainsFunc(options.Router, func(other netip.Addr) bool { return other.Is6() == addr.Is6() }) {
			return options, fmt.Errorf("--router: %s is a second address of its family", addr)
		}
		options.Router = append(options.Router, addr)
	}
	return options, nil
}

// importRules prints nothing if the rules cannot be read as a whole.
func (a *app) importRules(format, file string, o importOptions) error {
	options, err := o.check()
	if err != nil {
		a.started = false // a usage error
		return err
	}
	name, data, err := a.readRules(file)
	if err != nil {
		return err
	}
	result, err := importer.Import(format, name, data, options)
	if err != nil {
		return invalid(err)
	}
	if a.json {
		err = a.printJSON("import", newImportResult(result))
	} else {
		var text []byte
		if text, err = result.TOML(format); err == nil {
			_, err = a.out.Write(text)
		}
	}
	if err != nil {
		return err
	}
	if len(result.Left) > 0 {
		a.warn("%s not translated; the end of the output says why", count(result.LeftRules(), "rule"))
	}
	a.say("translated %s", count(len(result.Forwards), "forward"))
	return nil
}

func (a *app) readRules(file string) (name string, data []byte, err error) {
	in := a.stdin
	name = stdinName
	if file != stdinPath {
		f, err := os.Open(file)
		if err != nil {
			return file, nil, invalid(fmt.Errorf("read rules: %w", err))
		}
		defer f.Close()
		in, name = f, file
	}
	data, err = io.ReadAll(io.LimitReader(in, importer.MaxSize+1))
	if err != nil {
		err = invalid(fmt.Errorf("read rules: %w", err))
	}
	return name, data, err
}

type importResult struct {
	WAN           []string          `json:"wan"`
	LAN           []string          `json:"lan"`
	Forwards      []importedForward `json:"forwards"`
	NotTranslated []importer.Left   `json:"not_translated"`
	Remove        []string          `json:"remove"`         // commands
	RemoveByHand  []string          `json:"remove_by_hand"` // rules without a command
	Notes         []string          `json:"notes"`
}

type importedForward struct {
	rule.Forward
	Places []string `json:"places"` // the rules that it replaces
	Notes  []string `json:"notes,omitempty"`
}

func newImportResult(r *importer.Result) importResult {
	result := importResult{
		WAN: nonNil(r.WAN), LAN: nonNil(r.LAN), Forwards: []importedForward{}, NotTranslated: nonNil(r.Left),
		Remove: nonNil(r.Removals), RemoveByHand: nonNil(r.Names), Notes: nonNil(r.Notes),
	}
	for _, f := range r.Forwards {
		result.Forwards = append(result.Forwards, importedForward{f.Forward, f.Places, f.Notes})
	}
	return result
}

// nonNil returns a list that JSON writes as [].
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
