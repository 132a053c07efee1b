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

// DNSFormat is the format of a split DNS file. From such a file, a name server gives LAN clients the target addresses of
// hosts.
type DNSFormat string

// The formats, by the name server that reads the file.
const (
	DNSHosts    DNSFormat = "hosts"     // lines as in /etc/hosts
	DNSDnsmasq  DNSFormat = "dnsmasq"   // a file in the hostsdir of dnsmasq
	DNSUnbound  DNSFormat = "unbound"   // a configuration file of unbound
	DNSBindRPZ  DNSFormat = "bind-rpz"  // a response policy zone of BIND
	DNSBindView DNSFormat = "bind-view" // a configuration file of BIND: a view with this zone
)

// DNSFormats returns the formats.
func DNSFormats() []DNSFormat {
	return []DNSFormat{DNSHosts, DNSDnsmasq, DNSUnbound, DNSBindRPZ, DNSBindView}
}

// DNSFormatNames returns the names of the formats in a configuration file.
func DNSFormatNames() []string {
	var names []string
	for _, format := range DNSFormats() {
		names = append(names, string(format))
	}
	return names
}

// ParseDNSFormat returns the format with this name.
func ParseDNSFormat(text string) (DNSFormat, error) {
	if format := DNSFormat(text); slices.Contains(DNSFormats(), format) {
		return format, nil
	}
	return "", fmt.Errorf("%s is not a format; %s", rule.Quote(text), rule.Suggest(text, DNSFormatNames()...))
}

// DNSFile is a file that the daemon writes for a name server. There is at most one file for each format.
type DNSFile struct {
	Format DNSFormat `json:"format"`
	Path   string    `json:"path"`             // absolute path
	Reload []string  `json:"reload,omitempty"` // program and arguments that the daemon runs after it changed the file
	Source string    `json:"source,omitempty"` // where the user wrote the entry, such as FILE:LINE
}

// DNSPath returns the path of the file in this format, "" if no such file is configured.
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
			v.check(-1, DNSReloadKey(file.Format), fmt.Errorf("the command has no file; give the path of the file in %s", DNSWriteKey(file.Format)))
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

// DNSWriteKey returns the configuration key for the path of a file.
func DNSWriteKey(format DNSFormat) string { return "dns.write." + string(format) }

// DNSReloadKey returns the configuration key for the reload command of a file.
func DNSReloadKey(format DNSFormat) string { return "dns.reload." + string(format) }

func checkDNSPath(path string) error {
	switch {
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f || r == '"' || r == '\\' }):
		return fmt.Errorf("%s has a character that is not possible in the configuration of a name server", rule.Quote(path))
	case !filepath.IsAbs(path):
		return fmt.Errorf("%s is not an absolute path; begin it with a slash", rule.Quote(path))
	case filepath.Clean(path) != path:
		return fmt.Errorf("%s is not in its shortest form; write %s", rule.Quote(path), rule.Quote(filepath.Clean(path)))
	case path == "/":
		return fmt.Errorf("%s is a directory", rule.Quote(path))
	}
	return nil
}

// checkCommand returns an error for a command that cannot run or depends on the daemon's working directory.
func checkCommand(command []string) error {
	if len(command) == 0 || command[0] == "" {
		return errors.New("there is no program; remove the key to run none")
	}
	for i, word := range command {
		if strings.Contains(word, "\x00") {
			return rule.OfItem(i, fmt.Errorf("%s has a NUL in it", rule.Quote(word)))
		}
	}
	if program := command[0]; strings.Contains(program, "/") && !filepath.IsAbs(program) {
		return fmt.Errorf("%s depends on the working directory; write an absolute path, or only a name, which is searched in PATH", rule.Quote(program))
	}
	if strings.ContainsAny(command[0], " \t") {
		return fmt.Errorf("%s is not the name of a program; write each argument as a separate string, as in [\"unbound-control\", \"reload\"]", rule.Quote(command[0]))
	}
	return nil
}
