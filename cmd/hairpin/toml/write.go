// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"

	"hairpin/cmd/hairpin/atomicfile"
	"hairpin/maps/rule"
)

// header is a comment for people who open the file.
const header = "# Written by `hairpin save`, which replaces it as a whole.\n\n"

// fileForwards is the content of a file in DropInDir.
type fileForwards struct {
	Version int `toml:"version"`
	fileTables
}

type fileTables struct {
	Forwards   []fileForward   `toml:"forward,omitempty"`
	Intercepts []fileIntercept `toml:"intercept,omitempty"`
}

type fileForward struct {
	Name     string   `toml:"name"`
	Protocol []string `toml:"protocol"`
	External string   `toml:"external,omitempty"`
	Port     string   `toml:"port,omitempty"`
	To       any      `toml:"to"` // a string, or a list of strings and of fileServers
	Affinity string   `toml:"affinity,omitempty"`
	From     []string `toml:"from,omitempty"`
	Reflect  string   `toml:"reflect,omitempty"`
	Clients  string   `toml:"clients,omitempty"`
	Rate     string   `toml:"rate,omitempty"`
	Each     string   `toml:"rate_per_source,omitempty"`
	Hosts    []string `toml:"hosts,omitempty"`
	Comment  string   `toml:"comment,omitempty"`
	Enabled  *bool    `toml:"enabled,omitempty"`
}

type fileIntercept struct {
	Name     string   `toml:"name"`
	Protocol []string `toml:"protocol"`
	Port     string   `toml:"port"`
	To       any      `toml:"to"` // a string, or a list of strings and of fileServers
	Affinity string   `toml:"affinity,omitempty"`
	LAN      []string `toml:"lan,omitempty"`
	Except   []string `toml:"except,omitempty"`
	Reflect  string   `toml:"reflect,omitempty"`
	Comment  string   `toml:"comment,omitempty"`
	Enabled  *bool    `toml:"enabled,omitempty"`
}

// Write replaces the file at path, in DropInDir, with these forwards; see atomicfile.Write. It makes the
// directory if it does not exist.
func Write(path string, forwards []rule.Forward) error {
	data, err := format(forwards)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := atomicfile.Write(path, data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func format(forwards []rule.Forward) ([]byte, error) {
	file := fileForwards{Version: version, fileTables: tables(forwards)}
	text := bytes.NewBufferString(header)
	if err := toml.NewEncoder(text).Encode(file); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}

// Table returns a forward or intercept as a table of a configuration file.
func Table(f rule.Forward) ([]byte, error) {
	return toml.Marshal(tables([]rule.Forward{f}))
}

func tables(forwards []rule.Forward) (file fileTables) {
	for _, f := range forwards {
		if f.Intercept {
			file.Intercepts = append(file.Intercepts, fileIntercept{
				Name:     f.Name,
				Protocol: texts(f.Protocols),
				Port:     f.Ports.String(),
				To:       target(&f),
				Affinity: affinity(&f),
				LAN:      f.LAN,
				Except:   texts(f.Except),
				Reflect:  string(f.Reflect),
				Comment:  f.Comment,
				Enabled:  enabled(f),
			})
			continue
		}
		file.Forwards = append(file.Forwards, fileForward{
			Name:     f.Name,
			Protocol: texts(f.Protocols),
			External: f.External.Written(),
			Port:     f.Ports.String(),
			To:       target(&f),
			Affinity: affinity(&f),
			From:     texts(f.From),
			Reflect:  string(f.Reflect),
			Clients:  string(f.Clients),
			Rate:     f.Rate.String(),
			Each:     f.RatePerSource.String(),
			Hosts:    f.Hosts,
			Comment:  f.Comment,
			Enabled:  enabled(f),
		})
	}
	return file
}

type fileServer struct {
	Target string `toml:"target"`
	Weight uint16 `toml:"weight"`
}

// target returns the value of the key to.
func target(f *rule.Forward) any {
	if !f.Balanced() {
		return f.TargetString()
	}
	servers := make([]any, len(f.Servers()))
	for i, s := range f.Servers() {
		servers[i] = f.ServerString(s)
		if s.Weight != rule.DefaultWeight {
			servers[i] = fileServer{f.ServerString(s), s.Weight}
		}
	}
	return servers
}

// affinity returns the value of the key; "" leaves the key out.
func affinity(f *rule.Forward) string {
	if f.Affinity() == 0 {
		return ""
	}
	return f.Affinity().String()
}

// enabled returns the value of the key: nil leaves the key out, which means true.
func enabled(f rule.Forward) *bool {
	if !f.Disabled {
		return nil
	}
	return new(bool)
}

func texts[T fmt.Stringer](list []T) (out []string) {
	for _, item := range list {
		out = append(out, item.String())
	}
	return out
}
