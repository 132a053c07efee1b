// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Colours of the bars: hairpin, bare hooks, other translators.
var (
	colourOurs  = color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}
	colourBare  = color.RGBA{R: 0xbb, G: 0xbb, B: 0xbb, A: 0xff}
	colourPeers = color.RGBA{R: 0xd6, G: 0x75, B: 0x2b, A: 0xff}
)

func colour(contender string) color.Color {
	switch contender {
	case nameHairXDP, nameHairTC:
		return colourOurs
	case nameXDPTx, nameXDPRedir, nameTC, nameDirect:
		return colourBare
	}
	return colourPeers
}

// plot draws one SVG for each task that has several contenders, and returns the names of the files.
func (r *report) plot(dir string) (drawn []string, err error) {
	plot.DefaultFont.Variant, plotter.DefaultFont.Variant = "Sans", "Sans"
	for _, p := range []struct{ file, title, task, axis string }{
		{"packets-1.svg", "Reflected packets, 1 flow", course{hairpinned, toServer, 1}.String(), "ns of one core a packet, less is better"},
		{"packets-60000.svg", "Reflected packets, 60,000 flows", course{hairpinned, toServer, manyFlows}.String(), "ns of one core a packet, less is better"},
		{"forwarded.svg", "Packets from the Internet, 1 flow", course{forwarded, toServer, 1}.String(), "ns of one core a packet, less is better"},
		{"openings.svg", "UDP connections opened", taskAnswered, "ns of one core a connection, less is better"},
		{"requests.svg", "Web requests, one a connection", taskRequests, "requests a second, more is better"},
		{"bulk.svg", "One TCP connection, as fast as it can", taskBulk, "Gbit/s, more is better"},
	} {
		there, err := r.bars(filepath.Join(dir, p.file), p.title, p.task, p.axis)
		if err != nil {
			return drawn, fmt.Errorf("draw %s: %w", p.file, err)
		}
		if there {
			drawn = append(drawn, p.file)
		}
	}
	return drawn, nil
}

// bars draws the contenders of a task. It returns false, and draws nothing, if the task was not measured.
func (r *report) bars(file, title, task, axis string) (bool, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text = title, axis
	p.Title.Padding = vg.Points(6)
	p.Y.Padding, p.Y.LineStyle.Width = vg.Points(12), 0
	p.X.Min = 0
	var names []string
	for i := len(r.Costs) - 1; i >= 0; i-- {
		s := r.Costs[i]
		if s.Task != task || strings.HasSuffix(s.Contender, second) {
			continue
		}
		bar, err := plotter.NewBarChart(plotter.Values{s.Spread.Median}, vg.Points(16))
		if err != nil {
			return false, err
		}
		bar.Horizontal, bar.XMin, bar.Color, bar.LineStyle.Width = true, float64(len(names)), colour(s.Contender), 0
		label, err := plotter.NewLabels(plotter.XYLabels{
			XYs:    plotter.XYs{{X: s.Spread.Median, Y: float64(len(names))}},
			Labels: []string{" " + number(s.Spread.Median, "")},
		})
		if err != nil {
			return false, err
		}
		label.TextStyle[0].YAlign = draw.YCenter
		p.Add(bar, label)
		p.X.Max = max(p.X.Max, s.Spread.High*1.15)
		names = append(names, s.Contender)
	}
	if len(names) == 0 {
		return false, nil
	}
	p.NominalY(names...)
	p.Y.Min, p.Y.Max = -0.6, float64(len(names))-0.4
	return true, save(p, file, vg.Length(len(names))*vg.Points(26)+vg.Points(70))
}

func save(p *plot.Plot, file string, height vg.Length) (err error) {
	canvas := vgsvg.New(16*vg.Centimeter, height)
	// Leave a margin: a viewer's font may be wider than the font used here.
	p.Draw(draw.Crop(draw.New(canvas), vg.Points(24), -vg.Points(12), vg.Points(4), -vg.Points(4)))
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := canvas.WriteTo(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
