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

// rootArgs refuses an unknown command, and suggests the nearest one.
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

// helpCommand replaces that of cobra, which exits 0 for a command that does not exist.
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

// needs refuses a command without arguments, naming what is missing.
func needs(what string) cobra.PositionalArgs {
	return func(command *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("%s needs %s", commandName(command), what)
		}
		return nil
	}
}

// takes refuses more than n arguments, naming the first that is too many.
func takes(n int) cobra.PositionalArgs {
	return func(command *cobra.Command, args []string) error {
		if len(args) > n {
			return fmt.Errorf("%s: %q is one argument too many", commandName(command), clip(args[n]))
		}
		return nil
	}
}

// flagError explains a negative port, which looks like an option.
func flagError(_ *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		if short := unknown.GetSpecifiedShortnames(); short != "" && short[0] >= '0' && short[0] <= '9' {
			return fmt.Errorf("\"-%s\" is neither an option nor a port: ports are 1 to 65535", short)
		}
	}
	return err
}

// printUsage prints the part of a help text that follows the description. It is no template of
// cobra's: with text/template the linker keeps every exported method that there is,
// and the binary is a sixth larger (16.6 MB for 14.2).
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

// printFlags does as FlagSet.FlagUsages, which would add "[=true|false]" to each
// switch and leave out defaults that are zero.
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

// commandName is how a command is called, without the name of the program.
func commandName(command *cobra.Command) string {
	return strings.TrimPrefix(strings.TrimPrefix(command.CommandPath(), command.Root().Name()), " ")
}
