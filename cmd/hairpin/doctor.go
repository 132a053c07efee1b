// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/cmd/hairpin/presence"
	"hairpin/cmd/hairpin/router"
	"hairpin/loader"
	"hairpin/maps/config"
)

// doctorResult is the JSON form of the output of "hairpin doctor".
type doctorResult struct {
	Problems int                `json:"problems"`
	Warnings int                `json:"warnings"`
	Unknown  int                `json:"unknown"`
	Findings []diagnose.Finding `json:"findings"`
}

// shownFindings is the number of findings of one check that the text output shows, so that it stays on one screen.
const shownFindings = 8

func (a *app) doctorCommand() *cobra.Command {
	var probe bool
	command := &cobra.Command{
		Use:   "doctor [--probe]",
		Short: "Look for what keeps forwards from working, and say what cures it",
		Long: `Look for what keeps forwards from working, and say what cures it.

Each line has a level (ok, warning, problem, unknown), the name of the check, and
what was looked at. If hairpin does not run, the configuration file is checked.
Changes nothing. Exit code 1 if there is a problem, else 0.`,
		Args: takes(0),
		RunE: func(*cobra.Command, []string) error {
			findings, err := a.doctor(probe)
			if err != nil {
				return err
			}
			result := doctorResult{Findings: findings}
			for _, f := range findings {
				switch f.Level {
				case diagnose.Problem:
					result.Problems++
				case diagnose.Warning:
					result.Warnings++
				case diagnose.Unknown:
					result.Unknown++
				}
			}
			if a.json {
				err = a.printJSON("doctor", result)
			} else {
				a.printFindings(findings)
			}
			if err == nil && result.Problems > 0 {
				err = errProblems
			}
			return err
		},
	}
	command.Flags().BoolVar(&probe, "probe", false, fmt.Sprintf("connect from the router to the targets by TCP; takes up to %s", diagnose.ProbeTime))
	return command
}

func (a *app) doctor(probe bool) ([]diagnose.Finding, error) {
	d := &diagnose.Datapath{TooOld: loader.CheckKernel(), Missing: loader.MissingCapabilities()}
	ask := router.Diagnosis{Datapath: d, Probe: probe}
	var err error
	if d.Kernel, err = kernelRelease(); err != nil {
		return nil, err
	}
	s, err := a.open()
	if err != nil {
		return a.doctorFile(ask, err)
	}
	defer s.Close()
	cfg, err := s.Settings()
	if err != nil {
		return a.doctorFile(ask, err)
	}
	if d.Daemon, err = presence.Running(a.dir); err != nil {
		return nil, err
	}
	if d.Leases, err = diagnoseLeases(s, cfg); err != nil {
		return nil, err
	}
	findings, err := s.Diagnose(cfg, ask)
	if errors.Is(err, loader.ErrPermission) {
		// Without capabilities root can open the pins, but not ask which programs an interface has.
		return a.doctorFile(ask, err)
	}
	return findings, err
}

// doctorFile checks the configuration file, because no configuration runs, or this user may not look at it. stopped says why.
func (a *app) doctorFile(ask router.Diagnosis, stopped error) ([]diagnose.Finding, error) {
	d := ask.Datapath
	d.Stopped, d.File = stopped, configName(a.configFile)
	d.Unseen = errors.Is(stopped, loader.ErrPermission) || errors.Is(stopped, fs.ErrPermission)
	d.Foreign = errors.Is(stopped, loader.ErrSchema)
	if !d.Unseen && !d.Foreign && !errors.Is(stopped, loader.ErrNotLoaded) {
		return nil, stopped
	}
	cfg, err := a.readConfig(a.configFile)
	switch {
	case errors.Is(err, fs.ErrPermission):
		d.FileUnseen = err
	case err != nil:
		d.Invalid = []string{err.Error()}
	}
	if err != nil {
		cfg = config.Default()
	}
	return router.DiagnoseHere(cfg, ask)
}

// printFindings prints one line for each finding, and its cure on a line of its own.
func (a *app) printFindings(findings []diagnose.Finding) {
	shown := map[string]int{}
	for i, f := range findings {
		if shown[f.Check]++; shown[f.Check] <= shownFindings {
			fmt.Fprintf(a.out, "%-8s %-15s %s\n", f.Level, f.Check, printable(f.Body()))
			if f.Cure != "" {
				fmt.Fprintf(a.out, "%-8s %-15s cure: %s\n", "", "", printable(f.Cure))
			}
		}
		last := i+1 == len(findings) || findings[i+1].Check != f.Check
		if more := shown[f.Check] - shownFindings; last && more > 0 {
			fmt.Fprintf(a.out, "%-8s %-15s and %d more; -j shows all\n", "", "", more)
		}
	}
}
