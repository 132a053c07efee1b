// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/toml"
	"hairpin/loader"
	"hairpin/maps"
)

const (
	stdinPath    = "-"
	stdinName    = "<stdin>"
	maxStdinSize = 16 << 20
)

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration file; changes nothing, needs no privilege",
		Args:  takes(1),
		RunE: func(_ *cobra.Command, args []string) error {
			path := a.configPath(args)
			cfg, err := a.readConfig(path)
			if err == nil {
				err = errors.Join(a.checkDNSFiles(cfg), checkMachine(cfg))
			}
			if a.json {
				return errors.Join(a.printJSON("check", newCheckResult(path, cfg, err)), err)
			}
			if err != nil {
				return err
			}
			a.say("%s: valid, %s", configName(path), forwardsText(cfg))
			return nil
		},
	}
}

// forwardsText counts forwards, and the intercepts among them.
func forwardsText(cfg maps.Config) string {
	text, intercepts := count(len(cfg.Forwards), "forward"), 0
	for _, f := range cfg.Forwards {
		if f.Intercept {
			intercepts++
		}
	}
	if intercepts > 0 {
		text += fmt.Sprintf(", %d of them %s", intercepts, map[bool]string{true: "an intercept", false: "intercepts"}[intercepts == 1])
	}
	return text
}

// checkMachine looks whether cfg can work with the addresses of the machine at hand. One that has none of its
// interfaces is not the one it is for.
func checkMachine(cfg maps.Config) error {
	here := router{links: loader.Links, routes: loader.Routes}
	links, err := here.links()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	if !slices.ContainsFunc(links, func(link loader.Link) bool {
		return slices.Contains(cfg.WAN, link.Name) || slices.Contains(cfg.LAN, link.Name)
	}) {
		return nil
	}
	return here.check(cfg)
}

type checkResult struct {
	File     string   `json:"file"`
	Valid    bool     `json:"valid"`
	Forwards int      `json:"forwards"`
	Problems []string `json:"problems"`
}

func newCheckResult(path string, cfg maps.Config, err error) checkResult {
	result := checkResult{File: path, Valid: err == nil, Forwards: len(cfg.Forwards), Problems: []string{}}
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			result.Problems = append(result.Problems, strings.TrimSuffix(line, "\n"))
		}
	}
	return result
}

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff [FILE]",
		Short: "Show what apply would change; exit code 0 if nothing, 3 if something",
		Args:  takes(1),
		RunE: func(_ *cobra.Command, args []string) error {
			differs, err := a.plan(a.configPath(args))
			if err == nil && differs {
				err = errDiffers
			}
			return err
		},
	}
}

func (a *app) applyCommand() *cobra.Command {
	var dryRun bool
	command := &cobra.Command{
		Use:   "apply [FILE|-] [--dry-run]",
		Short: "Apply a configuration file in one step; - reads standard input",
		Args:  takes(1),
		RunE: func(command *cobra.Command, args []string) error {
			path := a.configPath(args)
			if dryRun {
				_, err := a.plan(path)
				return err
			}
			return a.applyFile(command, path)
		},
	}
	command.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would change")
	return command
}

func (a *app) configPath(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return a.configFile
}

// configName is how messages call a configuration.
func configName(path string) string {
	if path == stdinPath {
		return stdinName
	}
	return path
}

// readConfig reads and checks a configuration; stdinPath is stdin. Files that others could
// have written are refused, see toml.Load. Stdin is taken whoever owns the file
// behind it: whoever runs the command has opened that file and hands it over.
func (a *app) readConfig(path string) (maps.Config, error) {
	if path != stdinPath {
		cfg, err := toml.Load(path)
		return cfg, invalid(err)
	}
	data, err := io.ReadAll(io.LimitReader(a.stdin, maxStdinSize+1))
	if err != nil {
		return maps.Config{}, invalid(fmt.Errorf("read %s: %w", stdinName, err))
	}
	if len(data) > maxStdinSize {
		return maps.Config{}, invalid(fmt.Errorf("%s: more than %d MiB", stdinName, maxStdinSize>>20))
	}
	cfg, err := toml.Parse(stdinName, data)
	return cfg, invalid(err)
}

// plan prints what to apply path would change, and reports whether it is anything.
func (a *app) plan(path string) (bool, error) {
	cfg, err := a.readConfig(path)
	if err != nil {
		return false, err
	}
	s, err := a.open()
	if err != nil {
		return false, err
	}
	defer s.Close()
	running, err := s.running()
	if err != nil {
		return false, err
	}
	if err := s.check(cfg); err != nil {
		return false, err
	}
	change, err := s.tables.Plan(cfg)
	if err != nil {
		return false, err
	}
	a.notices(s.resizeNotice(cfg))
	if a.json {
		return !change.Empty(), a.printJSON("diff", listed(change))
	}
	a.printChange(running, cfg, change)
	return !change.Empty(), nil
}

func (a *app) applyFile(command *cobra.Command, path string) error {
	cfg, err := a.readConfig(path)
	if err != nil {
		return err
	}
	s, err := a.openLocked(command.Context())
	if err != nil {
		return err
	}
	defer s.Close()
	result, err := s.apply(cfg)
	if err != nil {
		return err
	}
	a.say("applied: %s", changeText(result.change))
	daemon, err := daemonRuns(a.dir)
	if err != nil {
		return err
	}
	if daemon && slices.Contains(result.change.Settings, "metrics.listen") {
		a.say("metrics.listen: takes effect when the daemon reloads")
	}
	a.notices(s.resizeNotice(cfg), unconfigured(cfg, path), pendingNotice(result.ports, daemon))
	a.notices(notForwarding(serves6(cfg), result.ports, forwards)...)
	if a.json {
		return a.printJSON("apply", listed(result.change))
	}
	return nil
}

// changeText sums a change up.
func changeText(change maps.Change) string {
	if change.Empty() {
		return count(change.Unchanged, "forward") + ", nothing to do"
	}
	text := fmt.Sprintf("%d added, %d removed, %d changed, %d unchanged",
		len(change.Added), len(change.Removed), len(change.Changed), change.Unchanged)
	if len(change.Settings) > 0 {
		text += "; settings: " + strings.Join(change.Settings, ", ")
	}
	return text
}

// listed makes empty lists of absent ones: JSON tells null from [].
func listed(change maps.Change) maps.Change {
	for _, list := range []*[]string{&change.Added, &change.Removed, &change.Changed, &change.Settings} {
		if *list == nil {
			*list = []string{}
		}
	}
	return change
}

// settingText is a setting as a configuration has it, by its key in the file.
func settingText(cfg maps.Config, key string) string {
	switch key {
	case "interfaces.wan":
		return listText(cfg.WAN)
	case "interfaces.lan":
		return listText(cfg.LAN)
	case "datapath.mode":
		return strconv.Quote(cfg.Mode)
	case "datapath.max_connections":
		return strconv.FormatUint(uint64(cfg.MaxConnections), 10)
	case "datapath.max_per_source":
		return strconv.FormatUint(uint64(cfg.PerSource()), 10)
	case "datapath.mss_clamp":
		if cfg.MSSClamp == nil {
			return "(absent: PPP devices)" // no value means this
		}
		return listText(cfg.MSSClamp)
	case "timeouts.tcp_established":
		return durationText(cfg.Timeouts.TCPEstablished)
	case "timeouts.tcp_transitory":
		return durationText(cfg.Timeouts.TCPTransitory)
	case "timeouts.tcp_opening":
		return durationText(cfg.Timeouts.Opening())
	case "timeouts.tcp_closing":
		return durationText(cfg.Timeouts.Closing())
	case "timeouts.udp":
		return durationText(cfg.Timeouts.UDP)
	case "timeouts.icmp":
		return durationText(cfg.Timeouts.ICMP)
	case "timeouts.port_hold":
		return durationText(cfg.Timeouts.PortHold)
	case "icmp.refuse":
		return listText(cfg.ICMP.Refuse)
	case "icmp.rate":
		return strconv.FormatUint(uint64(cfg.ICMP.Rate), 10)
	case "reflection.default":
		return strconv.Quote(string(cfg.Reflection))
	case "reflection.prefixes":
		return standInsText(cfg.StandIns)
	case "metrics.listen":
		return strconv.Quote(cfg.MetricsListen)
	case "dns.write":
		return dnsText(cfg, func(file maps.DNSFile) string { return strconv.Quote(file.Path) })
	case "dns.reload":
		return dnsText(cfg, func(file maps.DNSFile) string {
			if file.Reload == nil {
				return ""
			}
			return listText(file.Reload)
		})
	}
	return "(differs)"
}

// dnsText is something of each file of names, if it is there, as a configuration has it.
func dnsText(cfg maps.Config, text func(maps.DNSFile) string) string {
	var entries []string
	for _, file := range cfg.DNS {
		if value := text(file); value != "" {
			entries = append(entries, string(file.Format)+" = "+value)
		}
	}
	if entries == nil {
		return "{}"
	}
	return "{ " + strings.Join(entries, ", ") + " }"
}

func durationText(duration time.Duration) string { return strconv.Quote(duration.String()) }

// listText is a list of strings as a configuration has it.
func listText(list []string) string {
	quoted := make([]string, len(list))
	for i, text := range list {
		quoted[i] = strconv.Quote(text)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// standInsText is a table of networks as a configuration has it.
func standInsText(list []maps.StandIn) string {
	if len(list) == 0 {
		return "{}"
	}
	pairs := make([]string, len(list))
	for i, s := range list {
		pairs[i] = fmt.Sprintf("%q = %q", s.Clients, s.Network)
	}
	return "{ " + strings.Join(pairs, ", ") + " }"
}

// printChange prints a change as lines of -, what runs, and +, what would.
func (a *app) printChange(running, file maps.Config, change maps.Change) {
	for _, key := range change.Settings {
		fmt.Fprintf(a.out, "- %s = %s\n+ %s = %s\n", key, settingText(running, key), key, settingText(file, key))
	}
	for _, name := range change.Removed {
		a.printForwardLine("-", running, name)
	}
	for _, name := range change.Changed {
		a.printForwardLine("-", running, name)
		a.printForwardLine("+", file, name)
	}
	for _, name := range change.Added {
		a.printForwardLine("+", file, name)
	}
}

func (a *app) printForwardLine(sign string, cfg maps.Config, name string) {
	if f, ok := findForward(cfg, name); ok {
		fmt.Fprintln(a.out, printable(fmt.Sprintf("%s %s %s", sign, f.Kind(), f)))
	}
}

func (a *app) saveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "save",
		Short: "Write forwards that were added at run time to forwards.d/50-cli.toml",
		Args:  takes(0),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.save(command)
		},
	}
}

// savePath is the one file that save writes, beside the configuration file.
func (a *app) savePath() string {
	return filepath.Join(filepath.Dir(a.configFile), toml.DropInDir, "50-cli.toml")
}

func (a *app) save(command *cobra.Command) error {
	if a.configFile == stdinPath {
		a.started = false // a usage error
		return errors.New("save writes beside the configuration file, and -c - is standard input; name the file")
	}
	s, err := a.openLocked(command.Context())
	if err != nil {
		return err
	}
	defer s.Close()
	running, err := s.running()
	if err != nil {
		return err
	}
	files, err := a.readConfig(a.configFile)
	if err != nil {
		return err
	}
	change, err := s.tables.Plan(files)
	if err != nil {
		return err
	}
	path := a.savePath()
	own, err := unsaved(running, files, change, path)
	if err != nil {
		return err
	}
	if len(change.Added)+len(change.Removed)+len(change.Changed) == 0 {
		a.say("nothing to do: the files define every running forward")
		return a.printSaved(path, len(own), false)
	}
	if err := toml.Write(path, own); err != nil {
		return err
	}
	a.say("saved %s in %s", count(len(own), "forward"), path)
	return a.printSaved(path, len(own), true)
}

// printSaved tells what is in the file that save writes, and whether it wrote it.
func (a *app) printSaved(path string, forwards int, written bool) error {
	if !a.json {
		return nil
	}
	return a.printJSON("save", map[string]any{"file": path, "forwards": forwards, "written": written})
}

// unsaved lists the running forwards that belong in the file at path: those
// that no other file defines. What another file defines must run as it is
// there, because save edits no file that somebody wrote. Change is the way from
// what runs to the files.
func unsaved(running, files maps.Config, change maps.Change, path string) ([]maps.Forward, error) {
	var errs []error
	elsewhere := make(map[string]bool)
	deleted, changed := set(change.Added), set(change.Changed)
	for _, f := range files.Forwards {
		if isFrom(f.Source, path) {
			continue
		}
		elsewhere[f.Name] = true
		switch {
		case deleted[f.Name]:
			errs = append(errs, fmt.Errorf("%s: %s %q was deleted at run time; delete it from the file, then save again", f.Source, f.Kind(), f.Name))
		case changed[f.Name]:
			now, _ := findForward(running, f.Name)
			errs = append(errs, fmt.Errorf("%s: %s %q was changed at run time to: %s; change the file likewise, then save again", f.Source, f.Kind(), f.Name, now))
		}
	}
	var own []maps.Forward
	for _, f := range running.Forwards {
		if !elsewhere[f.Name] {
			own = append(own, f)
		}
	}
	return own, invalid(errors.Join(errs...))
}

func set(names []string) map[string]bool {
	members := make(map[string]bool, len(names))
	for _, name := range names {
		members[name] = true
	}
	return members
}

// isFrom reports whether a source, FILE:LINE, is in the file at path.
func isFrom(source, path string) bool {
	line, ok := strings.CutPrefix(source, path)
	return ok && (line == "" || line[0] == ':')
}
