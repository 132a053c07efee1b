// SPDX-License-Identifier: Apache-2.0

package history

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/maps/config"
	"hairpin/maps/mapstest"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	return New(filepath.Join(t.TempDir(), "state"))
}

// everything is a configuration with as many different fields as possible.
func everything(t *testing.T) config.Config {
	t.Helper()
	c := mapstest.Config(t,
		"web tcp,udp wan0:443 to 192.168.1.20:8443 from 10.0.0.0/8,192.0.2.1 reflect router rate 100/s rate_per_source 5/min host www.example.org comment shop",
		"six tcp [2001:db8::1]:80-90 to [fd00::20]:8080 clients router", "all any 203.0.113.7:any to 192.168.1.40", "off tcp 443 to 192.168.1.21")
	c.Forwards[3].Disabled = true
	c.Split()
	c.MSSClamp, c.MaxPerSource = []string{}, 7
	c.DNS = []config.DNSFile{{Format: config.DNSHosts, Path: "/h", Reload: []string{"a", "b c"}, Source: "x:1"}}
	c.Digest = "one"
	return c
}

var values = []cmp.Option{mapstest.NetipValues, cmpopts.EquateEmpty()}

func TestKeptConfigurationIsReadBack(t *testing.T) {
	s := newStore(t)
	want := everything(t)
	if err := s.Keep(want, "apply x"); err != nil {
		t.Fatal(err)
	}
	got, g, there, err := s.Newest()
	if err != nil || !there || g.Number != 1 || g.Command != "apply x" || time.Since(g.Time) > time.Hour {
		t.Errorf("%+v, %v, %v", g, there, err)
	}
	if diff := cmp.Diff(want, got, values...); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got.MSSClamp == nil {
		t.Error("an empty list became an absent one")
	}
	// The same again is no new generation, nor is a forward that drains.
	want.Forwards = append(want.Forwards, mapstest.Forward(t, "gone tcp 1 to 10.0.0.1"))
	want.Forwards[len(want.Forwards)-1].DrainUntil = time.Hour
	if err := s.Keep(want, "again"); err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, path := range []string{s.Dir(), filepath.Join(s.Dir(), generationsDir)} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func TestLastGenerationsAreKept(t *testing.T) {
	s := newStore(t)
	for i := range 2*Limit + 1 {
		if err := s.Keep(mapstest.Config(t, fmt.Sprintf("a tcp %d to 10.0.0.1", i+1)), strings.Repeat("x", 10_000)); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.List()
	if err != nil || len(list) != Limit || list[0].Number != 2*Limit+1 || list[Limit-1].Number != Limit+2 {
		t.Fatalf("%d kept: %+v, %v", len(list), list, err)
	}
	if cfg, err := s.Config(list[3]); err != nil || int(cfg.Forwards[0].Ports.First) != 2*Limit-2 {
		t.Errorf("%+v, %v", cfg.Forwards, err)
	}
	// A file that cannot be read is left out and named; it keeps no other from being written.
	broken := filepath.Join(s.Dir(), generationPath(list[0].Number))
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(); len(list) != Limit-1 || !mapstest.Contains(err, broken) {
		t.Errorf("%d kept, %v", len(list), err)
	}
	if err := s.Keep(everything(t), "next"); err != nil {
		t.Error(err)
	}
}

func TestPendingIsReadBack(t *testing.T) {
	s := newStore(t)
	if p, err := s.Pending(); p != nil || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
	want := Pending{Schema: schema, Command: "apply x", Boot: "b", Deadline: time.Hour + 1, Generation: 7, Digest: "two", Before: everything(t)}
	if err := s.SetPending(want); err != nil {
		t.Fatal(err)
	}
	p, err := s.Pending()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, *p, values...); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if refused, err := s.Refused(); refused != nil || err != nil {
		t.Errorf("refused %+v, %v", refused, err)
	}
	if err := s.RefusePending(); err != nil {
		t.Fatal(err)
	}
	p, err = s.Pending()
	refused, failed := s.Refused()
	if p != nil || err != nil || refused == nil || refused.Digest != "two" || failed != nil {
		t.Errorf("pending %+v, %v, refused %+v, %v", p, err, refused, failed)
	}
	if err := errors.Join(s.Allow(), s.Allow(), s.ClearPending()); err != nil {
		t.Error(err)
	}
	if refused, err := s.Refused(); refused != nil || err != nil {
		t.Errorf("refused %+v, %v", refused, err)
	}
}

func TestFilesThatAreNotOurs(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		mode fs.FileMode
		want string
	}{
		"writable by others": {`{"schema":1}` + "\n{}\n", 0o646, "can be written by others than its owner"},
		"another schema":     {`{"schema":2}` + "\n{}\n", 0o600, "written by another version of hairpin (schema 2, this version reads 1)"},
		"no JSON":            {"version = 1\n", 0o600, "invalid character"},
		"cut short":          {`{"schema":1}` + "\n{\"wan\":[\"wa", 0o600, "not a configuration that this version reads"},
		"invalid":            {`{"schema":1}` + "\n{\"wan\":[\"wan0\"],\"mode\":\"x\"}\n", 0o600, `"x" is not a mode`},
		"empty":              {"", 0o600, "unexpected end of JSON input"},
	} {
		s := newStore(t)
		if err := os.MkdirAll(s.Dir(), 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(s.Dir(), pendingFile)
		if err := errors.Join(os.WriteFile(path, []byte(test.text), 0o600), os.Chmod(path, test.mode)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Pending(); !mapstest.Contains(err, test.want) || !mapstest.Contains(err, path) {
			t.Errorf("%s: %v, want %q and the path", name, err, test.want)
		}
	}
}

// A store in a directory that others can write keeps nothing there.
func TestDirectoryOfOthers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	s := New(dir)
	if err := s.Keep(everything(t), "x"); !mapstest.Contains(err, "can be written by others") {
		t.Error(err)
	}
	if err := s.SetPending(Pending{}); !mapstest.Contains(err, "can be written by others") {
		t.Error(err)
	}
}
