// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"hairpin/maps/rule"
)

// DNSFormat is a kind of file that tells inside clients the inside addresses of
// hosts.
type DNSFormat string

// The formats, each for the server that reads it.
const (
	DNSHosts    DNSFormat = "hosts"     // lines of /etc/hosts
	DNSDnsmasq  DNSFormat = "dnsmasq"   // a file in the hostsdir of dnsmasq
	DNSUnbound  DNSFormat = "unbound"   // configuration of unbound
	DNSBindRPZ  DNSFormat = "bind-rpz"  // a response policy zone, as of BIND
	DNSBindView DNSFormat = "bind-view" // configuration of BIND: a view that has this zone
)

// DNSFormats lists the formats.
func DNSFormats() []DNSFormat {
	return []DNSFormat{DNSHosts, DNSDnsmasq, DNSUnbound, DNSBindRPZ, DNSBindView}
}

// DNSFormatNames lists the formats as they are written.
func DNSFormatNames() []string {
	var names []string
	for _, format := range DNSFormats() {
		names = append(names, string(format))
	}
	return names
}

// ParseDNSFormat reads a format.
func ParseDNSFormat(text string) (DNSFormat, error) {
	if format := DNSFormat(text); slices.Contains(DNSFormats(), format) {
		return format, nil
	}
	return "", fmt.Errorf("%s is not a format; %s", rule.Quote(text), rule.Suggest(text, DNSFormatNames()...))
}

// DNSFile is a file that the daemon keeps for a server, at most one per format.
type DNSFile struct {
	Format DNSFormat `json:"format"`
	Path   string    `json:"path"`             // absolute
	Reload []string  `json:"reload,omitempty"` // a program and its arguments, to be run when the file has changed
	Source string    `json:"source,omitempty"` // where it was written, such as FILE:LINE
}

// DNSPath is the path of the file of a format, "" if there is none.
func (c Config) DNSPath(format DNSFormat) string {
	for _, file := range c.DNS {
		if file.Format == format {
			return file.Path
		}
	}
	return ""
}

func (v *validator) dns() {
	paths := map[string]DNSFormat{}
	for _, file := range v.DNS {
		if file.Path == "" {
			v.check(-1, DNSReloadKey(file.Format), fmt.Errorf("no file is written to run it for; give the path in %s", DNSWriteKey(file.Format)))
			continue
		}
		_, err := ParseDNSFormat(string(file.Format))
		if err == nil {
			err = checkDNSPath(file.Path)
		}
		if other, taken := paths[file.Path]; err == nil && taken {
			err = fmt.Errorf("%s is the file of %s already", rule.Quote(file.Path), other)
		}
		paths[file.Path] = file.Format
		v.check(-1, DNSWriteKey(file.Format), err)
		if file.Reload != nil {
			v.check(-1, DNSReloadKey(file.Format), checkCommand(file.Reload))
		}
	}
}

// DNSWriteKey is the key of the configuration that has the path of a file.
func DNSWriteKey(format DNSFormat) string { return "dns.write." + string(format) }

// DNSReloadKey is the key of the configuration that has the command of a file.
func DNSReloadKey(format DNSFormat) string { return "dns.reload." + string(format) }

func checkDNSPath(path string) error {
	switch {
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f || r == '"' || r == '\\' }):
		return fmt.Errorf("%s has a character that a path in a configuration of a server cannot have", rule.Quote(path))
	case !filepath.IsAbs(path):
		return fmt.Errorf("%s is not the whole path of a file; it begins with a slash", rule.Quote(path))
	case filepath.Clean(path) != path:
		return fmt.Errorf("%s goes round; write %s", rule.Quote(path), rule.Quote(filepath.Clean(path)))
	case path == "/":
		return fmt.Errorf("%s is a directory", rule.Quote(path))
	}
	return nil
}

// checkCommand wants a program that does not depend on where the daemon runs.
func checkCommand(command []string) error {
	if len(command) == 0 || command[0] == "" {
		return errors.New("it names no program; leave the key out to run none")
	}
	for i, word := range command {
		if strings.Contains(word, "\x00") {
			return rule.OfItem(i, fmt.Errorf("%s has a NUL in it", rule.Quote(word)))
		}
	}
	if program := command[0]; strings.Contains(program, "/") && !filepath.IsAbs(program) {
		return fmt.Errorf("%s depends on the directory; write the whole path, or a name alone to have it looked for in PATH", rule.Quote(program))
	}
	if strings.ContainsAny(command[0], " \t") {
		return fmt.Errorf("%s is not the name of a program; write its arguments apart, as in [\"unbound-control\", \"reload\"]", rule.Quote(command[0]))
	}
	return nil
}
