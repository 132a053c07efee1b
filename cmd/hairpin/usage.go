// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hairpin/maps/rule"
)

// rootArgs returns the error for an unknown command, with the most similar command name.
func rootArgs(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return unknownCommand(root, args[0])
}

func unknownCommand(parent *cobra.Command, name string) error {
	var names []string
	for _, command := range parent.Commands() {
		if command.IsAvailableCommand() {
			names = append(names, command.Name())
		}
	}
	text := fmt.Sprintf("unknown command %q", strings.TrimSpace(commandName(parent)+" "+clip(name)))
	if hint := rule.Suggest(name, names...); hint != "" {
		text += ": " + hint
	}
	return errors.New(text)
}

// helpCommand replaces cobra's help command, which exits with 0 for a command that does not exist.
func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND..]",
		Short: "Show the help of a command",
		RunE: func(help *cobra.Command, args []string) error {
			command, rest, err := help.Root().Find(args)
			if err == nil && len(rest) > 0 {
				err = unknownCommand(command, rest[0])
			}
			if err != nil {
				a.started = false // a usage error
				return err
			}
			command.InitDefaultHelpFlag()
			return command.Help()
		},
		ValidArgsFunction: func(help *cobra.Command, args []string, _ string) (completions, cobra.ShellCompDirective) {
			var names completions
			if command, rest, err := help.Root().Find(args); err == nil && len(rest) == 0 {
				for _, sub := range command.Commands() {
					if sub.IsAvailableCommand() {
						names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// needs returns a check that fails if a command has no arguments; the error says what is missing.
func needs(what string) cobra.PositionalArgs {
	return func(command *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("%s needs %s", commandName(command), what)
		}
		return nil
	}
}

// takes returns a check that fails if there are more than n arguments; the error names the first extra
// argument.
func takes(n int) cobra.PositionalArgs {
	return func(command *cobra.Command, args []string) error {
		if len(args) > n {
			return fmt.Errorf("%s: %q is one argument too many", commandName(command), clip(args[n]))
		}
		return nil
	}
}

// flagError explains a negative number, which cobra takes for an option.
func flagError(_ *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		if short := unknown.GetSpecifiedShortnames(); short != "" && short[0] >= '0' && short[0] <= '9' {
			return fmt.Errorf("\"-%s\" is not an option, and no number here is negative", short)
		}
	}
	return err
}

// printUsage prints the part of a help text after the description. It does not use cobra's template: with
// text/template the linker keeps every exported method, and the binary grows by a sixth (16.6 MB instead of
// 14.2 MB).
func printUsage(command *cobra.Command) error {
	out := command.OutOrStdout()
	if command.HasParent() {
		fmt.Fprintf(out, "Usage:\n  %s %s\n", command.Parent().CommandPath(), command.Use)
	} else {
		fmt.Fprintf(out, "Usage:\n  %s [OPTION..] COMMAND\n", command.CommandPath())
	}
	if command.HasExample() {
		fmt.Fprintf(out, "\nExamples:\n%s\n", command.Example)
	}
	if command.HasAvailableSubCommands() {
		fmt.Fprint(out, "\nCommands:\n")
		for _, sub := range command.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(out, "  %-12s %s\n", sub.Name(), sub.Short)
			}
		}
	}
	printFlags(out, "Options", command.LocalFlags())
	printFlags(out, "Options of every command", command.InheritedFlags())
	return nil
}

// printFlags prints options. FlagSet.FlagUsages is not used, because it adds "[=true|false]" to each switch
// and leaves out zero defaults.
func printFlags(out io.Writer, title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(out, "\n%s:\n", title)
	flags.VisitAll(func(flag *pflag.Flag) {
		value, usage := pflag.UnquoteUsage(flag)
		name := "    --" + flag.Name
		if flag.Shorthand != "" {
			name = "-" + flag.Shorthand + ", --" + flag.Name
		}
		switch {
		case flag.Value.Type() == "bool":
			value = ""
		case flag.DefValue != "":
			usage += " (" + flag.DefValue + ")"
		}
		fmt.Fprintf(out, "  %-20s %s\n", name+" "+value, usage)
	})
}

// commandName returns the path of a command without the name of the program.
func commandName(command *cobra.Command) string {
	return strings.TrimPrefix(strings.TrimPrefix(command.CommandPath(), command.Root().Name()), " ")
}
