// SPDX-License-Identifier: Apache-2.0

// Package man writes the man pages hairpin(8) and hairpin.toml(5): the first from the help texts of the commands, the second from the
// comments of the configuration file that is installed. A test keeps the pages in package dist equal to what this package writes.
package man

import (
	"fmt"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Commands returns hairpin(8) in the format of man(7), for the commands below root that help shows.
func Commands(root *cobra.Command) []byte {
	var page strings.Builder
	title(&page, "hairpin 8", "Administration")
	section(&page, "NAME")
	fmt.Fprintf(&page, "hairpin - %s\n\n", plain(root.Short))
	section(&page, "SYNOPSIS")
	fmt.Fprintf(&page, "**hairpin** [OPTION..] COMMAND\n\n")
	section(&page, "DESCRIPTION")
	prose(&page, strings.TrimSpace(strings.TrimPrefix(root.Long, root.Short+".")))
	section(&page, "OPTIONS")
	fmt.Fprint(&page, "These are options of every command.\n\n")
	options(&page, root.PersistentFlags())
	section(&page, "COMMANDS")
	commands(&page, root)
	section(&page, "FILES")
	for _, file := range [][2]string{
		{"/etc/hairpin/hairpin.toml", "the configuration: see **hairpin.toml**(5)"},
		{"/etc/hairpin/forwards.d/*.toml", "more forwards; **hairpin save** writes 50-cli.toml"},
		{"/var/lib/hairpin", "earlier configurations, for **hairpin rollback**"},
		{"/sys/fs/bpf/hairpin", "the pinned maps, programs and links"},
	} {
		item(&page, plain(file[0]), file[1])
	}
	section(&page, "SEE ALSO")
	page.WriteString("**hairpin.toml**(5), **nft**(8), **ip**(8), **bpftool**(8)\n")
	return md2man.Render([]byte(page.String()))
}

// commands writes a part for each command that has a function of its own, depth first: in the order of the help.
func commands(page *strings.Builder, parent *cobra.Command) {
	for _, command := range parent.Commands() {
		if !command.IsAvailableCommand() {
			continue
		}
		fmt.Fprintf(page, "### %s %s\n\n", plain(parent.CommandPath()), plain(command.Use))
		text := command.Long
		if text == "" {
			text = command.Short + "."
		}
		prose(page, text)
		if command.HasExample() {
			fmt.Fprintf(page, "Examples:\n\n")
			code(page, command.Example)
		}
		options(page, command.LocalNonPersistentFlags())
		commands(page, command)
	}
}

func options(page *strings.Builder, flags *pflag.FlagSet) {
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Hidden || flag.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(flag)
		name := "--" + flag.Name
		if flag.Shorthand != "" {
			name = "-" + flag.Shorthand + ", " + name
		}
		if flag.Value.Type() == "bool" {
			value = ""
		} else if flag.DefValue != "" {
			usage += " (" + flag.DefValue + ")"
		}
		item(page, plain(strings.TrimSpace(name+" "+value)), plain(usage))
	})
}

// The functions below write Markdown, which the library turns into man(7).

func title(page *strings.Builder, name, manual string) {
	fmt.Fprintf(page, "%% %s \"\" \"hairpin\" \"%s\"\n\n", name, manual)
}

func section(page *strings.Builder, name string) { fmt.Fprintf(page, "# %s\n\n", name) }

// item writes one element of a list of definitions.
func item(page *strings.Builder, term, text string) {
	fmt.Fprintf(page, "**%s**\n: %s\n\n", term, text)
}

func code(page *strings.Builder, text string) {
	fmt.Fprintf(page, "```\n%s\n```\n\n", strings.Trim(text, "\n"))
}

// prose writes paragraphs. A paragraph with an indented line, such as a table, keeps its lines.
func prose(page *strings.Builder, text string) {
	for paragraph := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if strings.HasPrefix(paragraph, " ") || strings.Contains(paragraph, "\n ") || strings.Contains(paragraph, ":=") {
			code(page, paragraph)
			continue
		}
		fmt.Fprintf(page, "%s\n\n", plain(paragraph))
	}
}

var special = strings.NewReplacer(`\`, `\\`, "*", `\*`, "_", `\_`, "`", "\\`", "<", `\<`, "[", `\[`, "]", `\]`, "#", `\#`)

// plain escapes what Markdown would take for markup.
func plain(text string) string { return special.Replace(text) }
