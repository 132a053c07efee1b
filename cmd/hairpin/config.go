// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/daemon"
	"hairpin/cmd/hairpin/diagnose"
	"hairpin/cmd/hairpin/router"
	"hairpin/cmd/hairpin/toml"
	"hairpin/maps/config"
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
				err = errors.Join(a.checkNames(cfg), daemon.CheckWebConfig(cfg.MetricsWeb), router.CheckHere(cfg))
				a.noticeFindings(a.findings(cfg))
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

// findings looks at the datapath, too, if this user may open one.
func (a *app) findings(cfg config.Config) ([]diagnose.Finding, error) {
	s, err := a.open()
	if err != nil {
		return router.FindingsHere(cfg)
	}
	defer s.Close()
	return s.Findings(cfg)
}

// noticeFindings prints findings as warnings. What could not be looked at is a warning, too: a change that runs has not failed.
func (a *app) noticeFindings(findings []diagnose.Finding, err error) {
	a.notices(diagnose.Notices(findings)...)
	if err != nil {
		a.warn("cannot look for problems on this machine: %s", err)
	}
}

// checkNames warns of DNS files that the daemon could not write now. It fails for files that the daemon
// would never write.
func (a *app) checkNames(cfg config.Config) error {
	warnings, err := daemon.CheckNames(cfg)
	a.notices(warnings...)
	return err
}

// forwardsText returns the number of forwards as text, and the number of intercepts among them.
func forwardsText(cfg config.Config) string {
	text, intercepts := count(len(cfg.Forwards), "forward"), 0
	for _, f := range cfg.Forwards {
		if f.Intercept {
			intercepts++
		}
	}
	if intercepts > 0 {
		text += fmt.Sprintf(", %d of them %s", intercepts, map[bool]string{true: "an intercept", false: "intercepts"}[intercepts == 1])
	}
	if disabled := len(cfg.Disabled); disabled > 0 {
		text += fmt.Sprintf(", %d disabled", disabled)
	}
	return text
}

type checkResult struct {
	File     string   `json:"file"`
	Valid    bool     `json:"valid"`
	Forwards int      `json:"forwards"`
	Problems []string `json:"problems"`
}

func newCheckResult(path string, cfg config.Config, err error) checkResult {
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
		Short: "Show what apply would change; exit code 0 if nothing, else 3",
		Args:  takes(1),
		RunE: func(_ *cobra.Command, args []string) error {
			differs, err := a.printPlan(a.configPath(args))
			if err == nil && differs {
				err = errDiffers
			}
			return err
		},
	}
}

// Limits of --confirm: nobody could confirm within less than a second, and a change that waits for a day is forgotten.
const (
	shortestWait = time.Second
	longestWait  = 24 * time.Hour
)

func (a *app) applyCommand() *cobra.Command {
	var (
		dryRun bool
		wait   time.Duration
	)
	command := &cobra.Command{
		Use:   "apply [FILE|-] [--dry-run | --confirm TIME]",
		Short: "Apply a configuration file, wholly or not at all; - reads standard input",
		Long: `Apply a configuration file, wholly or not at all; - reads standard input. It says
how many connections end.

With --confirm the configuration of before runs again after TIME, unless "hairpin
confirm" comes before. This happens also if this command, the daemon or the terminal
is gone, and after a reboot. Until then no other change is accepted, except
"hairpin rollback", which returns to the configuration of before at once.
The files stay as they are: correct them, because a start of the daemon does not run
files that were not confirmed.`,
		Example: `  hairpin apply --confirm 60s && echo "still connected" && hairpin confirm`,
		Args:    takes(1),
		RunE: func(command *cobra.Command, args []string) error {
			path := a.configPath(args)
			confirm := command.Flags().Changed("confirm")
			switch {
			case confirm && dryRun:
				a.started = false // a usage error
				return errors.New("--dry-run changes nothing, so there is nothing to confirm; leave one of the two out")
			case confirm && (wait < shortestWait || wait > longestWait):
				a.started = false
				return fmt.Errorf("--confirm %s is out of range; it is 1s to 24h", wait)
			case dryRun:
				_, err := a.printPlan(path)
				return err
			}
			return a.applyFile(command, path, wait)
		},
	}
	command.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would change")
	command.Flags().DurationVar(&wait, "confirm", 0, "`TIME` after which the configuration of before runs again")
	command.Flags().Lookup("confirm").DefValue = ""
	return command
}

func (a *app) configPath(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return a.configFile
}

// configName returns the name of a configuration file for messages.
func configName(path string) string {
	if path == stdinPath {
		return stdinName
	}
	return path
}

// readConfig reads and checks a configuration; stdinPath is standard input. It refuses a file that other
// users may write, see toml.Load. It does not check the owner of standard input: the user of the command
// opened that file.
func (a *app) readConfig(path string) (config.Config, error) {
	if path != stdinPath {
		cfg, err := toml.Load(path)
		return cfg, invalid(err)
	}
	data, err := io.ReadAll(io.LimitReader(a.stdin, maxStdinSize+1))
	if err != nil {
		return config.Config{}, invalid(fmt.Errorf("read %s: %w", stdinName, err))
	}
	if len(data) > maxStdinSize {
		return config.Config{}, invalid(fmt.Errorf("%s: larger than %d MiB, the limit for a configuration", stdinName, maxStdinSize>>20))
	}
	cfg, err := toml.Parse(stdinName, data)
	return cfg, invalid(err)
}

// printPlan prints the changes that apply would make, and reports whether there are any.
func (a *app) printPlan(path string) (bool, error) {
	cfg, err := a.readConfig(path)
	if err != nil {
		return false, err
	}
	s, err := a.open()
	if err != nil {
		return false, err
	}
	defer s.Close()
	running, err := s.Running()
	if err != nil {
		return false, err
	}
	if err := s.Check(cfg); err != nil {
		return false, err
	}
	if cfg, err = (&change.Keeper{Router: s.Router}).WithLeases(cfg); err != nil {
		return false, err
	}
	change, err := s.Tables.Plan(cfg)
	if err != nil {
		return false, err
	}
	a.notices(s.ResizeWarning(cfg))
	a.noticeFindings(s.Findings(cfg))
	if a.json {
		return !change.Empty(), a.printJSON("diff", withEmptyLists(change))
	}
	a.printChange(running, cfg, change)
	if ends := change.EndsText(); ends != "" {
		a.say("%s", ends)
	}
	return !change.Empty(), nil
}

// applyResult is the JSON form of apply.
type applyResult struct {
	config.Change
	ConfirmWithin float64 `json:"confirm_within_seconds,omitempty"` // without a confirmation the change is taken back
}

// applyFile applies a file; with a wait other than 0, the change must be confirmed within it.
func (a *app) applyFile(command *cobra.Command, path string, wait time.Duration) error {
	cfg, err := a.readConfig(path)
	if err != nil {
		return err
	}
	w, err := a.openToChange(command.Context())
	if err != nil {
		return err
	}
	defer w.Close()
	name, waits := "apply "+path, false
	var out change.Outcome
	if wait == 0 {
		out, err = w.keeper.Apply(cfg, name)
	} else {
		out, waits, err = w.keeper.ApplyUntil(cfg, name, wait, a.startLater)
	}
	if waits {
		// Also if the change has an error: what runs is taken back.
		defer a.say("unless \"hairpin confirm\" comes within %s, the configuration of before runs again", wait)
	}
	if err != nil {
		return err
	}
	a.say("applied: %s", out.Summary())
	a.noticeUnkept(out.Unkept)
	a.afterChange(w.Session, cfg, path, out.Result)
	if a.json {
		done := applyResult{Change: withEmptyLists(out.Change)}
		if waits {
			done.ConfirmWithin = wait.Seconds()
		}
		return a.printJSON("apply", done)
	}
	return nil
}

// withEmptyLists replaces nil lists, so that JSON has [] instead of null.
func withEmptyLists(change config.Change) config.Change {
	if change.Ends == nil {
		change.Ends = map[string]int{}
	}
	for _, list := range []*[]string{&change.Added, &change.Removed, &change.Changed, &change.Settings} {
		if *list == nil {
			*list = []string{}
		}
	}
	return change
}

// printChange prints a change as lines: "-" before the running state, "+" before the new state.
func (a *app) printChange(running, file config.Config, change config.Change) {
	for _, key := range change.Settings {
		a.printChangeLine("-", key+" = "+settingText(running, key))
		a.printChangeLine("+", key+" = "+settingText(file, key))
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

func (a *app) printForwardLine(sign string, cfg config.Config, name string) {
	if f, ok := findForward(cfg, name); ok {
		state := ""
		if f.Disabled {
			state = " (disabled)"
		}
		a.printChangeLine(sign, fmt.Sprintf("%s %s%s", f.Kind(), f, state))
	}
}

// printChangeLine prints what is removed, with sign "-", or added, with "+".
func (a *app) printChangeLine(sign, text string) {
	look := styleGreen
	if sign == "-" {
		look = styleRed
	}
	fmt.Fprintln(a.out, a.styled.paint(look, sign+" "+printable(text)))
}
