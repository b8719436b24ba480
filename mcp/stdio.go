package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"sync"
	"time"
)

// afterEnd is how long requests that were read before the end of the input get to
// be answered: enough for `echo '...' | vendetta mcp`, short enough for a client
// that closes the input and waits for the end.
const afterEnd = 5 * time.Second

// pending knows which requests are not answered yet. mcp-go drops them at the end
// of its input, so that end is kept from it until they are.
type pending struct {
	mu   sync.Mutex
	open map[string]bool
	// none is closed while nothing is open.
	none chan struct{}
}

func newPending() *pending {
	p := &pending{open: map[string]bool{}, none: make(chan struct{})}
	close(p.none)
	return p
}

func (p *pending) asked(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.open) == 0 {
		p.none = make(chan struct{})
	}
	p.open[id] = true
}

func (p *pending) answered(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[id] {
		delete(p.open, id)
		if len(p.open) == 0 {
			close(p.none)
		}
	}
}

// settle waits until nothing is open, but not for ever.
func (p *pending) settle(ctx context.Context) {
	p.mu.Lock()
	none := p.none
	p.mu.Unlock()
	over := time.NewTimer(afterEnd)
	defer over.Stop()
	select {
	case <-none:
	case <-over.C:
	case <-ctx.Done():
	}
}

// message is what tells requests, answers and notifications apart.
type message struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
}

// requestID is the id of a request that awaits an answer of its own. A request
// for a stream that never ends is none of these.
func (m message) requestID() string {
	if len(m.ID) == 0 || string(m.ID) == "null" || m.Method == "" || m.Method == "subscriptions/listen" {
		return ""
	}
	return string(m.ID)
}

func (p *pending) input(ctx context.Context, in io.Reader) io.Reader {
	return &inputReader{pending: p, ctx: ctx, in: in}
}

// inputReader passes the input on and notes the requests in it, line by line.
type inputReader struct {
	pending *pending
	ctx     context.Context //nolint:containedctx // an io.Reader has no other way to get one
	in      io.Reader
	line    []byte
}

func (r *inputReader) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		part, after, whole := bytes.Cut(rest, []byte("\n"))
		r.line = append(r.line, part...)
		if whole {
			r.note()
		}
		rest = after
	}
	if err != nil {
		r.pending.settle(r.ctx)
	}
	return n, err
}

func (r *inputReader) note() {
	var m message
	if json.Unmarshal(r.line, &m) == nil {
		if id := m.requestID(); id != "" {
			r.pending.asked(id)
		}
	}
	r.line = r.line[:0]
}

func (p *pending) output(out io.Writer) io.Writer { return &outputWriter{p, out} }

// outputWriter passes the output on, which comes in whole lines, and notes the answers.
type outputWriter struct {
	pending *pending
	out     io.Writer
}

func (w *outputWriter) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	var m message
	if json.Unmarshal(p, &m) == nil && m.Method == "" {
		w.pending.answered(string(m.ID))
	}
	return n, err
}
