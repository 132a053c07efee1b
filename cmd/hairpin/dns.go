// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/dns"
	"hairpin/cmd/hairpin/toml"
	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

type dnsOptions struct {
	format string
	path   string
	strict bool
}

func (a *app) dnsCommand() *cobra.Command {
	var o dnsOptions
	command := &cobra.Command{
		Use:   "dns --format FORMAT [--strict] [--write PATH]",
		Short: "Split DNS: print the host names of forwards for the name server of the LAN",
		Long: `Split DNS: print the host names of forwards with the addresses of their targets, for
the name server of the LAN. LAN clients then reach the targets directly. The command
reads the configuration file only: it needs no privilege, and hairpin need not be
attached. With [dns] in the file the daemon writes such files by itself, from the
running forwards.

FORMAT is
  hosts      lines for /etc/hosts
  dnsmasq    a file for the hostsdir of dnsmasq, which follows changes by itself
  unbound    a file to be included by unbound.conf
  bind-rpz   the file of a response policy zone, for BIND and others
  bind-view  a file to be included by named.conf: a view "inside" with that zone

It warns of names that do not lead LAN clients to the same service, for instance if
the target listens on another port: DNS carries no port. -j prints the names as JSON.`,
		Example: `  hairpin dns --format hosts
  hairpin dns --format dnsmasq --write /run/hairpin/hosts.d/hairpin
  hairpin dns --format unbound --strict > /etc/unbound/unbound.conf.d/hairpin.conf`,
		Args: takes(0),
		RunE: func(*cobra.Command, []string) error {
			return a.dns(o)
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.format, "format", "", "`FORMAT` of the file")
	flags.BoolVar(&o.strict, "strict", false, "treat warnings as errors")
	flags.StringVar(&o.path, "write", "", "replace the file at `PATH` if it differs, instead of printing it")
	// This fails only if the flag does not exist.
	_ = command.RegisterFlagCompletionFunc("format", func(*cobra.Command, []string, string) (completions, cobra.ShellCompDirective) {
		return config.DNSFormatNames(), cobra.ShellCompDirectiveNoFileComp
	})
	return command
}

func (a *app) dns(o dnsOptions) error {
	format, err := a.dnsFormat(o)
	if err != nil {
		return err
	}
	cfg, err := a.readConfig(a.configFile)
	if err != nil {
		return err
	}
	names, warnings := dns.Names(cfg.Forwards, dns.Options{Format: format, Reach: reachFromLAN(cfg)})
	lines := dns.Lines(warnings)
	if o.strict && len(lines) > 0 {
		return invalid(errors.New(strings.Join(lines, "\n")))
	}
	a.notices(lines...)
	if len(names) == 0 {
		a.say("no forward has hosts")
	}
	file := dns.File{Format: format, Zone: cfg.DNSPath(config.DNSBindRPZ)}
	switch {
	case o.path != "":
		return a.writeDNS(o.path, file, names, warnings)
	case a.json:
		return a.printJSON("dns", newDNSResult(names, warnings))
	}
	file.Serial, err = a.dnsSerial()
	if err != nil {
		return err
	}
	_, err = a.out.Write(file.Render(names))
	return err
}

// dnsFormat parses the format. The format may be missing if the output is JSON and no file is written.
func (a *app) dnsFormat(o dnsOptions) (config.DNSFormat, error) {
	if o.format == "" && a.json && o.path == "" {
		return "", nil
	}
	format, err := config.ParseDNSFormat(o.format)
	if err != nil {
		err = fmt.Errorf("--format: %w", err)
	}
	if o.format == "" {
		err = fmt.Errorf("dns needs --format; %s", rule.Suggest("", config.DNSFormatNames()...))
	}
	if err != nil {
		a.started = false // a usage error
	}
	return format, err
}

// dnsSerial returns the serial number of a printed zone. It is the time of the last change of the
// configuration files, so it rises when a file changes.
func (a *app) dnsSerial() (uint32, error) {
	if a.configFile == stdinPath {
		return uint32(time.Now().Unix()), nil
	}
	modified, err := toml.Modified(a.configFile)
	return uint32(modified.Unix()), err
}

// reachFromLAN returns a function that returns the reason why LAN clients cannot reach a target, nil if
// they can. If this machine cannot know, reachFromLAN itself returns nil: interfaces cannot be listed, or
// no LAN interface exists here, because the file is for another machine.
func reachFromLAN(cfg config.Config) func(netip.Addr) error {
	links, err := loader.Links()
	if err != nil {
		return nil
	}
	names := make(map[int]string, len(links))
	router := false
	for _, link := range links {
		names[link.Index] = link.Name
		router = router || slices.Contains(cfg.LAN, link.Name)
	}
	if !router {
		return nil
	}
	return func(target netip.Addr) error {
		index, err := loader.RouteTo(target)
		if err != nil {
			return err
		}
		if !slices.Contains(cfg.LAN, names[index]) {
			return fmt.Errorf("%s is reached through %s, which is not in interfaces.lan", target, names[index])
		}
		return nil
	}
}

type dnsResult struct {
	Names    []dns.Name `json:"names"`
	Warnings []string   `json:"warnings"`
	File     string     `json:"file,omitempty"`
	Written  *bool      `json:"written,omitempty"` // whether File was written
}

func newDNSResult(names []dns.Name, warnings []dns.Warning) dnsResult {
	result := dnsResult{Names: names, Warnings: []string{}}
	for _, warning := range warnings {
		result.Warnings = append(result.Warnings, warning.String())
	}
	return result
}

func (a *app) writeDNS(path string, file dns.File, names []dns.Name, warnings []dns.Warning) error {
	path, err := absolutePath(path)
	if err != nil {
		return err
	}
	written, err := file.Write(path, names, time.Now())
	if err != nil {
		return err
	}
	if written {
		a.say("wrote %s to %s", count(len(names), "name"), path)
	} else {
		a.say("nothing to do: %s holds %s", path, count(len(names), "name"))
	}
	if !a.json {
		return nil
	}
	result := newDNSResult(names, warnings)
	result.File, result.Written = path, &written
	return a.printJSON("dns", result)
}

// absolutePath makes a path absolute. It resolves symbolic links in the working directory, because the user
// did not type them.
func absolutePath(path string) (string, error) {
	if filepath.IsAbs(path) {
		return filepath.Clean(path), nil
	}
	dir, err := os.Getwd()
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return "", fmt.Errorf("find the working directory: %w", err)
	}
	return filepath.Join(dir, path), nil
}
