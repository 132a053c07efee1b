// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"hairpin/loader"
	"hairpin/maps/rule"
)

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print the completion script of bash, zsh or fish",
		Example: `  hairpin completion bash > /etc/bash_completion.d/hairpin
  hairpin completion zsh > "${fpath[1]}/_hairpin"
  hairpin completion fish > ~/.config/fish/completions/hairpin.fish`,
		Args:      cobra.MatchAll(needs("SHELL: bash, zsh or fish"), takes(1), knownShell),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(command *cobra.Command, args []string) error {
			root := command.Root()
			switch args[0] {
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			}
			return root.GenBashCompletionV2(a.out, true)
		},
	}
}

func knownShell(_ *cobra.Command, args []string) error {
	switch args[0] {
	case "bash", "zsh", "fish":
		return nil
	}
	return fmt.Errorf("no completion for shell %q; use bash, zsh or fish", clip(args[0]))
}

type completions = []cobra.Completion

// completeForwards offers the names of the running forwards.
func (a *app) completeForwards(*cobra.Command, []string, string) (completions, cobra.ShellCompDirective) {
	var names completions
	if s, err := a.open(); err == nil {
		defer s.Close()
		_ = s.Tables.EachForward(func(f *rule.Forward) bool {
			names = append(names, f.Name)
			return true
		})
	}
	disabled, directive := a.completeDisabled(nil, nil, "")
	return append(names, disabled...), directive
}

// completeDisabled offers the names of the disabled forwards.
func (a *app) completeDisabled(*cobra.Command, []string, string) (completions, cobra.ShellCompDirective) {
	var names completions
	if s, err := a.open(); err == nil {
		defer s.Close()
		cfg, _ := s.Tables.Settings()
		for _, f := range cfg.Disabled {
			names = append(names, f.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeForwardAdd offers the words of the grammar of "forward add". For the external address it offers
// interfaces.
func (a *app) completeForwardAdd(_ *cobra.Command, args []string, _ string) (completions, cobra.ShellCompDirective) {
	const nothing = cobra.ShellCompDirectiveNoFileComp
	switch len(args) {
	case 1:
		return append(rule.ProtocolNames(), "tcp,udp"), nothing
	case 2:
		return interfaceNames(":"), nothing | cobra.ShellCompDirectiveNoSpace
	case 3:
		return completions{"to"}, nothing
	case 5, 7, 9, 11, 13, 15, 17:
		return append(rule.ForwardOptions(), "weight", "to"), nothing
	}
	if len(args) > 5 && args[len(args)-1] == "reflect" {
		return rule.ReflectNames(), nothing
	}
	if len(args) > 5 && args[len(args)-1] == "clients" {
		return rule.ClientsNames(), nothing
	}
	return nil, nothing
}

// completeForwardReplace offers the names of the running forwards, and then the words of the grammar of "forward add".
func (a *app) completeForwardReplace(command *cobra.Command, args []string, word string) (completions, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeForwards(command, args, word)
	}
	return a.completeForwardAdd(command, args, word)
}

// completeSelector offers the words of a connection selector.
func (a *app) completeSelector(command *cobra.Command, args []string, word string) (completions, cobra.ShellCompDirective) {
	const nothing = cobra.ShellCompDirectiveNoFileComp
	words, value := rule.NextSelectorWords(args)
	switch value {
	case "":
		return words, nothing
	case "forward":
		return a.completeForwards(command, args, word)
	case "proto":
		return connectionProtocols(), nothing
	case "path":
		return rule.PathNames(), nothing
	case "state":
		return rule.StateNames(), nothing
	}
	return nil, nothing
}

func interfaceNames(suffix string) completions {
	links, err := loader.Links()
	if err != nil {
		return nil
	}
	var names completions
	for _, link := range links {
		names = append(names, link.Name+suffix)
	}
	return names
}
