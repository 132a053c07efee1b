// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"

	"hairpin/test/bench/measure"
)

// options are the flags of the command line.
type options struct {
	base   string // object, tree or revision to compare with; "": do not compare
	kind   string // measure only the kinds whose name contains this
	cpu    int
	loads  int // how often each object is loaded
	rounds int // slices of each kind after each load
}

// subject is an object to measure, and the build of this program that loads it.
type subject struct{ name, binary, object string }

// compare measures the programs of this tree, in turn with the programs of the base if there is a base.
func compare(ctx context.Context, opts options, out io.Writer) (err error) {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	subjects := []subject{{"this", self, ownObject}}
	if opts.base != "" {
		dir, err := os.MkdirTemp("", "hairpin-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		base, err := prepareBase(opts.base, self, dir)
		if err != nil {
			return err
		}
		subjects = append(subjects, base)
	}
	r := results{values: make(map[request][][]float64)}
	for load := range opts.loads {
		if err := r.measure(ctx, subjects, opts, load); err != nil {
			return err
		}
	}
	return r.print(out)
}

// results has the results of all subjects.
type results struct {
	greetings []greeting
	names     []string
	order     []request
	values    map[request][][]float64 // by subject, one value for each load
}

// measure loads each subject once and measures all kinds. The addresses of code and tables differ from load to load. Their effect
// may be larger than the difference between two objects, so compare calls measure several times.
func (r *results) measure(ctx context.Context, subjects []subject, opts options, load int) (err error) {
	var all []*instance
	defer func() {
		for _, s := range all {
			err = errors.Join(err, s.stop())
		}
	}()
	for i := range subjects {
		if load%2 == 1 {
			i = len(subjects) - 1 - i
		}
		s, err := startInstance(ctx, subjects[i], opts.cpu)
		if err != nil {
			return err
		}
		all = append(all, s)
	}
	if load%2 == 1 {
		slices.Reverse(all)
	}
	if load == 0 {
		for i, s := range all {
			r.greetings, r.names = append(r.greetings, s.greeting), append(r.names, subjects[i].name)
		}
	}
	for _, hook := range hooks {
		for i, kind := range r.greetings[0].Kinds {
			if !strings.Contains(kind, opts.kind) {
				continue
			}
			if err := r.ask(all, request{hook, i}, opts.rounds); err != nil {
				return fmt.Errorf("measure %s, %s: %w", hook, kind, err)
			}
		}
	}
	return nil
}

// ask measures one kind of packet for all subjects in turn, and keeps the lowest value of each subject: other work on the
// machine can only make a value higher.
func (r *results) ask(all []*instance, what request, rounds int) error {
	values, err := inTurn(all, what, rounds)
	if err != nil {
		return err
	}
	if r.values[what] == nil {
		r.order = append(r.order, what)
		r.values[what] = make([][]float64, len(all))
	}
	for i, v := range values {
		r.values[what][i] = append(r.values[what][i], slices.Min(v))
	}
	return nil
}

func (r *results) print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "HOOK\tOBJECT\tVERIFIED INSTRUCTIONS\tXLATED BYTES\tJITED BYTES")
	for _, hook := range hooks {
		for i, g := range r.greetings {
			size := g.Sizes[hook]
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\n", hook, r.names[i], size.Verified, size.Xlated, size.Jited)
		}
	}
	fmt.Fprint(t, "\nHOOK\tPACKET\tNS A RUN\t95 % INTERVAL")
	if len(r.names) > 1 {
		fmt.Fprint(t, "\tBASE\t95 % INTERVAL\tTHIS/BASE\t95 % INTERVAL")
	}
	fmt.Fprintln(t)
	for _, what := range r.order {
		fmt.Fprintf(t, "%s\t%s", what.Hook, r.greetings[0].Kinds[what.Kind])
		values := r.values[what]
		for _, v := range values {
			fmt.Fprint(t, cells(v, 1))
		}
		if len(values) > 1 {
			fmt.Fprint(t, cells(measure.Ratios(values[0], values[1]), 3))
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// cells returns the median and the interval of values; fewer than six loads have no interval.
func cells(values []float64, digits int) string {
	s := measure.SpreadOf(values)
	if !s.HasInterval() {
		return fmt.Sprintf("\t%.*f\t", digits, s.Median)
	}
	return fmt.Sprintf("\t%.*f\t%.*f - %.*f", digits, s.Median, digits, s.Low, digits, s.High)
}

// inTurn asks each instance for one slice in each round, and returns the values of each instance.
func inTurn(all []*instance, r request, rounds int) ([][]float64, error) {
	values := make([][]float64, len(all))
	for round := -1; round < rounds; round++ {
		for i := range all {
			if round%2 == 1 {
				i = len(all) - 1 - i
			}
			ns, err := all[i].slice(r)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", all[i].name, err)
			}
			if round >= 0 { // round -1 only warms up
				values[i] = append(values[i], ns)
			}
		}
	}
	return values, nil
}

// instance is a running process that measures one object.
type instance struct {
	greeting
	name    string
	process *exec.Cmd
	in      io.Closer
	ask     *json.Encoder
	answers *bufio.Scanner
}

func startInstance(ctx context.Context, what subject, cpu int) (*instance, error) {
	s := &instance{name: what.name, process: exec.CommandContext(ctx, what.binary, "--cpu", strconv.Itoa(cpu), "--serve", what.object)}
	s.process.Stderr = os.Stderr
	s.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must reach only the parent, which then stops its instances
	in, err := s.process.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := s.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.process.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", what.name, err)
	}
	s.in, s.ask, s.answers = in, json.NewEncoder(in), bufio.NewScanner(out)
	if err := s.read(&s.greeting); err != nil {
		return nil, fmt.Errorf("%s: %w", what.name, errors.Join(err, s.stop()))
	}
	return s, nil
}

func (s *instance) slice(r request) (float64, error) {
	if err := s.ask.Encode(r); err != nil {
		return 0, err
	}
	var answer slice
	if err := s.read(&answer); err != nil {
		return 0, err
	}
	if answer.Error != "" {
		return 0, errors.New(answer.Error)
	}
	return answer.Nanoseconds, nil
}

func (s *instance) read(into any) error {
	if !s.answers.Scan() {
		return errors.Join(errors.New("it has ended"), s.answers.Err())
	}
	return json.Unmarshal(s.answers.Bytes(), into)
}

// stop closes the process's input; the process then ends.
func (s *instance) stop() error {
	s.in.Close()
	return s.process.Wait()
}

// prepareBase returns the subject of the base: an object with this tree's maps, another tree, or a revision. It builds the
// program for a tree or a revision.
func prepareBase(base, self, dir string) (subject, error) {
	info, err := os.Stat(base)
	if err == nil && !info.IsDir() {
		return subject{"base", self, base}, nil
	}
	tree := base
	if err != nil {
		tree = filepath.Join(dir, "tree")
		if err := checkOut(base, tree); err != nil {
			return subject{}, err
		}
	}
	binary := filepath.Join(dir, "run")
	return subject{"base", binary, ownObject}, buildIn(tree, dir, binary)
}

// checkOut writes the files of a revision of this repository into a directory.
func checkOut(revision, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	archive := exec.Command("git", "archive", "--format=tar", revision)
	unpack := exec.Command("tar", "-x", "-C", dir)
	var problems bytes.Buffer
	archive.Stderr, unpack.Stderr = &problems, &problems
	pipe, err := archive.StdoutPipe()
	if err != nil {
		return err
	}
	unpack.Stdin = pipe
	if err := archive.Start(); err != nil {
		return fmt.Errorf("check out %s: %w", revision, err)
	}
	if err := errors.Join(unpack.Run(), archive.Wait()); err != nil {
		return fmt.Errorf("%s is not an object file, a tree or a revision: %w\n%s", revision, err, problems.Bytes())
	}
	return nil
}

// buildIn builds this program with the datapath of another tree: it copies the sources of this program and of the lab over
// that tree.
func buildIn(tree, dir, binary string) error {
	tree, err := filepath.Abs(tree)
	if err != nil {
		return err
	}
	own, err := os.Getwd()
	if err != nil {
		return err
	}
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	for _, name := range []string{"go.mod", "go.sum", "test/bench", "test/lab"} {
		err := filepath.WalkDir(filepath.Join(own, name), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			relative, err := filepath.Rel(own, path)
			overlay.Replace[filepath.Join(tree, relative)] = path
			return err
		})
		if err != nil {
			return fmt.Errorf("find the sources of this program: %w; run this from the top of the tree", err)
		}
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-C", tree, "-overlay", file, "-buildvcs=false", "-o", binary, "./test/bench/run")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build with the datapath of %s: %w\n%s", tree, err, out)
	}
	return nil
}
