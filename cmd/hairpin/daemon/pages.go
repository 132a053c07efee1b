// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/singleflight"
)

// pages renders the metrics for all clients together. All waiting clients get one rendered page, so many scrapes cost as much as one.
// A scrape waits for the page whose rendering begins next: no figure is older than the request. Rendering takes at most half of the time.
//
// A client that reads slowly keeps its page. If such pages need too much memory, the clients of the oldest page lose their connections.
type pages struct {
	render func(io.Writer) error
	rest   time.Duration // at least so long nothing is rendered after a page
	kept   int           // bytes of earlier pages; the last earlier page may have more

	group singleflight.Group // by the number of pages begun before
	lock  chan struct{}      // full while a page is rendered
	// The goroutine that fills lock uses these.
	ended time.Time     // of the last rendering
	pause time.Duration // after ended
	calm  *time.Timer

	mu    sync.Mutex
	begun int
	held  []holding
}

// holding is a client that reads a page.
type holding struct {
	page   *page
	client *client
}

// calmAfter is the time after which memory goes back to the kernel when pages followed each other quickly.
const calmAfter = 2 * time.Second

func newPages(render func(io.Writer) error, limits serverLimits) *pages {
	s := &pages{render: render, rest: limits.rest, kept: limits.keptBytes, lock: make(chan struct{}, 1)}
	s.calm = time.AfterFunc(calmAfter, s.giveBack)
	s.calm.Stop()
	return s
}

// next waits for the next page. Another goroutine renders it, so it is not lost if ctx ends.
func (s *pages) next(ctx context.Context) (*page, error) {
	s.mu.Lock()
	next := s.group.DoChan(strconv.Itoa(s.begun), s.renderNext)
	s.mu.Unlock()
	select {
	case result := <-next:
		rendered, _ := result.Val.(*page)
		return rendered, result.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// renderNext renders a page. Calls of next that come after begun has changed belong to the page after this one.
func (s *pages) renderNext() (any, error) {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	time.Sleep(time.Until(s.ended.Add(s.pause)))
	s.mu.Lock()
	s.begun++
	s.mu.Unlock()
	began := time.Now()
	if began.Sub(s.ended) < calmAfter {
		s.calm.Reset(calmAfter)
	}
	rendered := new(page)
	err := rendered.fill(s.render)
	s.ended = time.Now()
	s.pause = max(s.rest, s.ended.Sub(began))
	if err != nil {
		return nil, fmt.Errorf("render the metrics: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trim()
	return rendered, nil
}

// giveBack gives memory back to the kernel when no client reads any more. Objects of a sync.Pool survive the first collection.
func (s *pages) giveBack() {
	s.mu.Lock()
	read := len(s.held) > 0
	s.mu.Unlock()
	if read {
		s.calm.Reset(calmAfter)
		return
	}
	debug.FreeOSMemory()
	debug.FreeOSMemory()
}

// hold notes that a client reads a page, until the returned function is called.
func (s *pages) hold(p *page, c *client) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = append(s.held, holding{p, c})
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.held = slices.DeleteFunc(s.held, func(h holding) bool { return h.client == c })
	}
}

// trim cuts off the clients of pages that are too much, oldest first. All pages that are held are earlier ones: the new page has no client
// yet. The caller has s.mu.
func (s *pages) trim() {
	sizes := make(map[*page]int) // of a page and of the later pages
	sum := 0
	for _, h := range slices.Backward(s.held) {
		if _, known := sizes[h.page]; !known {
			sum += h.page.size
			sizes[h.page] = sum
		}
		if last := s.held[len(s.held)-1].page; h.page != last && sizes[h.page] > s.kept {
			h.client.cut() // the write then fails
		}
	}
}

// page is a page compressed with gzip: about a tenth of the text. Clients share it, so it does not change once it is rendered.
type page struct {
	pieces [][]byte
	size   int
}

const pieceBytes = 64 << 10

// fill renders the page.
func (p *page) fill(render func(io.Writer) error) error {
	zip, err := gzip.NewWriterLevel(p, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := render(zip); err != nil {
		return err
	}
	return zip.Close()
}

// Write implements io.Writer. A buffer in one piece would be copied whenever it grows.
func (p *page) Write(text []byte) (int, error) {
	for rest := text; len(rest) > 0; {
		last := len(p.pieces) - 1
		if last < 0 || len(p.pieces[last]) == pieceBytes {
			p.pieces = append(p.pieces, make([]byte, 0, pieceBytes))
			continue
		}
		n := min(len(rest), pieceBytes-len(p.pieces[last]))
		p.pieces[last], rest = append(p.pieces[last], rest[:n]...), rest[n:]
	}
	p.size += len(text)
	return len(text), nil
}

// compressed writes the page as it is.
func (p *page) compressed(to io.Writer) error {
	for _, piece := range p.pieces {
		if _, err := to.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

// plain writes the text of the page.
func (p *page) plain(to io.Writer) error {
	readers := make([]io.Reader, len(p.pieces))
	for i, piece := range p.pieces {
		readers[i] = bytes.NewReader(piece)
	}
	text, err := gzip.NewReader(io.MultiReader(readers...))
	if err != nil {
		return err
	}
	_, err = io.Copy(to, text)
	return err
}
