// SPDX-License-Identifier: Apache-2.0

package setups

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"text/template"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// standInFiles is the environment variable with the directory of a stand-in for docker: its containers and its events.
const standInFiles = "HAIRPIN_SETUPS_ENGINE"

// container has what a container engine says of a container that runs.
type container struct {
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
	Image  string
	Config labels
}

type labels struct {
	Labels map[string]string
}

// images has what a container engine says of the images.
var images = map[string]struct{ Config *labels }{
	"plain":    {},
	"labelled": {&labels{map[string]string{"hairpin.forward": "image tcp 22 2222"}}},
}

// standIn answers the commands that hairpin-containers gives to docker, and no others.
func standIn(dir string, args []string) error {
	running := make(map[string]container)
	if text, err := os.ReadFile(filepath.Join(dir, "running.json")); err != nil {
		return err
	} else if err := json.Unmarshal(text, &running); err != nil {
		return err
	}
	switch {
	case slices.Equal(args, []string{"ps", "--quiet", "--filter", "label=hairpin.forward"}):
		for _, id := range slices.Sorted(maps.Keys(running)) {
			fmt.Println(id)
		}
		return nil
	case len(args) == 4 && args[0] == "inspect" && args[1] == "--format":
		found, there := running[args[3]]
		if !there {
			return fmt.Errorf("no such container: %s", args[3])
		}
		return show(args[2], found)
	case len(args) == 6 && slices.Equal(args[:4], []string{"inspect", "--type", "image", "--format"}):
		found, there := images[args[5]]
		if !there {
			return fmt.Errorf("no such image: %s", args[5])
		}
		return show(args[4], found)
	case len(args) > 3 && args[0] == "events" && args[1] == "--since":
		events, err := os.Open(filepath.Join(dir, "events"))
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, events)
		return err
	}
	return fmt.Errorf("unexpected arguments %q", args)
}

func show(format string, of any) error {
	parsed, err := template.New("").Parse(format + "\n")
	if err != nil {
		return err
	}
	return parsed.Execute(os.Stdout, of)
}

// docker is a stand-in for a container engine, and hairpin-containers beside it.
type docker struct {
	dir     string
	running map[string]container
	events  *os.File
	script  *lab.Process
}

// follow starts hairpin-containers on the router, with a stand-in for docker. every is how often it looks without an event.
func follow(t *testing.T, h *lab.Host, hp *lab.Hairpin, every string, running map[string]container) *docker {
	t.Helper()
	d := &docker{dir: t.TempDir(), running: running}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	events := filepath.Join(d.dir, "events")
	for name, text := range map[string]string{
		"docker":  fmt.Sprintf("#!/bin/sh\n%s=%s exec %s \"$@\"\n", standInFiles, d.dir, self),
		"hairpin": fmt.Sprintf("#!/bin/sh\nexec %s -c %s --bpffs %s \"$@\"\n", lab.Binary(t), hp.File, hp.Dir),
	} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(events, 0o600); err != nil {
		t.Fatal(err)
	}
	// Also for reading: then the stand-in's end stays open between two events.
	if d.events, err = os.OpenFile(events, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.events.Close() })
	d.write(t)
	environment := []string{"PATH=" + d.dir + ":" + os.Getenv("PATH"), "EVERY=" + every, "STATE=" + filepath.Join(d.dir, "state")}
	// Everything that the script has started ends with it.
	d.script = h.StartWith(environment, "", "unshare", "--pid", "--fork", "--kill-child", "../../cmd/hairpin/dist/containers/hairpin-containers", "docker")
	return d
}

func (d *docker) write(t *testing.T) {
	t.Helper()
	text, err := json.Marshal(d.running)
	if err == nil {
		// The stand-in never reads half a file.
		err = errors.Join(os.WriteFile(filepath.Join(d.dir, "new"), text, 0o600), os.Rename(filepath.Join(d.dir, "new"), filepath.Join(d.dir, "running.json")))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// happens changes the containers that run, and says so.
func (d *docker) happens(t *testing.T, id, address, label string) {
	t.Helper()
	delete(d.running, id)
	if address != "" {
		d.running[id] = newContainer(address, label)
	}
	d.write(t)
	if _, err := d.events.WriteString("container\n"); err != nil {
		t.Fatal(err)
	}
}

func newContainer(address, label string) (c container) {
	c.NetworkSettings.Networks = map[string]struct{ IPAddress string }{"bridge": {address}}
	c.Image = "plain"
	c.Config.Labels = map[string]string{"hairpin.forward": label}
	return c
}

// targets are the running forwards, with their targets.
func targets(t *testing.T, hp *lab.Hairpin) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for _, f := range home.Show(t, hp, "forward", "show").Forwards {
		found[f.Name] = f.Target
	}
	return found
}

// become waits until these forwards run, and no others.
func become(t *testing.T, hp *lab.Hairpin, want map[string]string) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if got := targets(t, hp); !maps.Equal(got, want) {
			return fmt.Errorf("forwards and targets %v, want %v", got, want)
		}
		return nil
	})
}

// TestContainerAddressChanges: hairpin-containers keeps the forward of a container on its address. A forward whose container has stopped is
// gone, as its address may be another container's. Forwards that the script has not made stay.
func TestContainerAddressChanges(t *testing.T) {
	t.Parallel()
	h := newHost(t, engines[0])
	h.bridgeFilter(false)
	serveWeb(t, h.Other, ":8080", "second")
	hp := lab.NewHairpin(h.Router, h.configuration(t, "tc"))
	hp.Start()
	files := targets(t, hp)
	with := func(more map[string]string) map[string]string {
		all := maps.Clone(files)
		maps.Copy(all, more)
		return all
	}

	label := "shop tcp 8443 8080 reflect router; dns udp 53 5353"
	d := follow(t, h.Router, hp, "3600", map[string]container{"aaa": newContainer(h.web(), label)})
	become(t, hp, with(map[string]string{"shop": h.web() + ":8080", "dns": h.web() + ":5353"}))
	wantAnswer(t, h.Client, lab.External+":8443", saysTo("forward", h.gateway()))

	// It stops and starts again before the script has looked, with another address.
	d.happens(t, "aaa", h.other(), label)
	become(t, hp, with(map[string]string{"shop": h.other() + ":8080", "dns": h.other() + ":5353"}))
	wantAnswer(t, h.Client, lab.External+":8443", saysTo("second", h.gateway()))

	// Another container wants a forward that has a container, and one that a file has.
	d.happens(t, "bbb", h.web(), "shop tcp 8443 9090; web tcp 80 9090; own tcp 81 8080")
	become(t, hp, with(map[string]string{"shop": h.other() + ":8080", "dns": h.other() + ":5353", "own": h.web() + ":8080"}))

	d.happens(t, "aaa", "", "")
	d.happens(t, "bbb", "", "")
	become(t, hp, files)
}

// TestContainerForwardsAfterReload: a reload deletes forwards that no file has. hairpin-containers makes them again without an event.
func TestContainerForwardsAfterReload(t *testing.T) {
	t.Parallel()
	h := newHost(t, engines[0])
	hp := lab.NewHairpin(h.Router, h.configuration(t, "tc"))
	hp.Start()
	want := targets(t, hp)
	want["shop"] = h.web() + ":8080"
	follow(t, h.Router, hp, "0.5", map[string]container{"aaa": newContainer(h.web(), "shop tcp 8443 8080")})
	become(t, hp, want)
	hp.Reload()
	become(t, hp, want)
}

// TestContainerLabelOfImage: a container engine gives a container the labels of its image. Such a label makes no forward: who writes an image
// must not get a port of the router. A label that the container itself has does make a forward. Without an answer about the image there is
// no forward.
func TestContainerLabelOfImage(t *testing.T) {
	t.Parallel()
	h := newHost(t, engines[0])
	hp := lab.NewHairpin(h.Router, h.configuration(t, "tc"))
	hp.Start()
	want := targets(t, hp)
	want["shop"] = h.web() + ":8080"
	running := make(map[string]container)
	// The script looks at the containers in this order, so the last forward is there after all the others.
	for _, c := range []struct{ id, image, label string }{
		{"aaa", "labelled", images["labelled"].Config.Labels["hairpin.forward"]},
		{"bbb", "removed", "removed tcp 23 2323"},
		{"ccc", "labelled", "shop tcp 8443 8080"},
	} {
		one := newContainer(h.web(), c.label)
		one.Image = c.image
		running[c.id] = one
	}
	follow(t, h.Router, hp, "3600", running)
	become(t, hp, want)
}
