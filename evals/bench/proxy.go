//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc"
)

// proxy passes TCP connections on to one address and holds every byte back for
// half of a round trip, in each direction. The order is kept, and so is the
// throughput, since bytes on their way do not wait for each other.
type proxy struct {
	target   string
	listener net.Listener
	half     atomic.Int64
	accepted atomic.Int64
	running  conc.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newProxy(ctx context.Context, target string) (*proxy, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the delay proxy: %w", err)
	}
	p := &proxy{target: target, listener: listener, conns: map[net.Conn]bool{}}
	p.running.Go(func() { p.accept(ctx) })
	return p, nil
}

func (p *proxy) port() int { return p.listener.Addr().(*net.TCPAddr).Port }

// setRoundTrip holds for bytes that arrive from now on.
func (p *proxy) setRoundTrip(d time.Duration) { p.half.Store(int64(d / 2)) }

func (p *proxy) delay() time.Duration { return time.Duration(p.half.Load()) }

// connections is how many were accepted so far.
func (p *proxy) connections() int { return int(p.accepted.Load()) }

// close ends all connections and waits for their goroutines.
func (p *proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	for c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
	p.mu.Unlock()
	p.running.Wait()
}

// keep notes a connection so that close ends it; false when close was called.
func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	_ = c.Close()
}

func (p *proxy) accept(ctx context.Context) {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.accepted.Add(1)
		if !p.keep(near) {
			return
		}
		p.running.Go(func() {
			defer p.drop(near)
			far, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.target)
			if err != nil || !p.keep(far) {
				return
			}
			defer p.drop(far)
			var both conc.WaitGroup
			both.Go(func() { relay(far, near, p.delay) })
			both.Go(func() { relay(near, far, p.delay) })
			both.Wait()
		})
	}
}

// chunk is what was read at once, and when it may be written.
type chunk struct {
	due  time.Time
	data []byte
}

// inFlight bounds the chunks on their way in one direction: 64 MiB at most.
const (
	inFlight  = 2048
	chunkSize = 32 << 10
)

// relay copies src to dst, each byte delayed, until src ends, and ends dst's
// writing side then.
func relay(dst io.WriteCloser, src io.Reader, delay func() time.Duration) {
	way := make(chan chunk, inFlight)
	var writer conc.WaitGroup
	writer.Go(func() { deliver(dst, way) })
	defer writer.Wait()
	defer close(way)
	buf := make([]byte, chunkSize)
	var last time.Time
	for {
		n, err := src.Read(buf)
		if n > 0 {
			// A delay that shrinks must not make bytes overtake others.
			due := time.Now().Add(delay())
			if due.Before(last) {
				due = last
			}
			last = due
			way <- chunk{due, append([]byte(nil), buf[:n]...)}
		}
		if err != nil {
			return
		}
	}
}

// deliver writes chunks when they are due. After a failed write the rest is
// dropped, so that the reading side never blocks.
func deliver(dst io.WriteCloser, way <-chan chunk) {
	var failed error
	for c := range way {
		if failed != nil {
			continue
		}
		if wait := time.Until(c.due); wait > 0 {
			timer := time.NewTimer(wait)
			<-timer.C
		}
		_, failed = dst.Write(c.data)
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok && failed == nil {
		_ = half.CloseWrite()
		return
	}
	_ = dst.Close()
}
