//go:build linux

package main

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// far end of a relay that notes when bytes came.
type noted struct {
	mu     sync.Mutex
	data   bytes.Buffer
	at     []time.Time
	ended  bool
	failed error
}

func (n *noted) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.failed != nil {
		return 0, n.failed
	}
	n.at = append(n.at, time.Now())
	return n.data.Write(p)
}

func (n *noted) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	return nil
}

func TestRelayHoldsBytesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, feed := net.Pipe()
		dst := &noted{}
		delay := 25 * time.Millisecond
		done := make(chan struct{})
		go func() { defer close(done); relay(dst, src, func() time.Duration { return delay }) }()
		began := time.Now()
		_, _ = feed.Write([]byte("a"))
		<-time.After(10 * time.Millisecond)
		_, _ = feed.Write([]byte("b"))
		<-time.After(time.Second)
		// Shrinking must not let bytes overtake.
		_, _ = feed.Write([]byte("c"))
		synctest.Wait()
		delay = 0
		_, _ = feed.Write([]byte("d"))
		_ = feed.Close()
		<-done
		if got := dst.data.String(); got != "abcd" {
			t.Errorf("got %q", got)
		}
		want := []time.Duration{25, 35, 1035, 1035}
		for i, at := range dst.at {
			if got := at.Sub(began); got != want[i]*time.Millisecond {
				t.Errorf("chunk %d came after %s, want %d ms", i, got, want[i])
			}
		}
		if !dst.ended {
			t.Error("the end of the source did not reach the other side")
		}
	})
}

// Bytes on their way do not wait for each other: a megabyte takes one delay, not
// one for each chunk.
func TestRelayKeepsTheThroughput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := make([]byte, 1<<20)
		for i := range sent {
			sent[i] = byte(rand.Uint32())
		}
		dst := &noted{}
		began := time.Now()
		relay(dst, bytes.NewReader(sent), func() time.Duration { return 25 * time.Millisecond })
		if got := time.Since(began); got != 25*time.Millisecond {
			t.Errorf("a megabyte took %s", got)
		}
		if !bytes.Equal(dst.data.Bytes(), sent) {
			t.Error("the bytes are others")
		}
	})
}

func TestRelayDropsWhatNobodyTakes(t *testing.T) {
	dst := &noted{failed: net.ErrClosed}
	relay(dst, bytes.NewReader(make([]byte, (inFlight+10)*16)), func() time.Duration { return 0 })
	if !dst.ended {
		t.Error("the other side was not closed")
	}
}

func TestProxyPassesOnAndCounts(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = target.Close() }()
	go func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	p, err := newProxy(t.Context(), target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p.setRoundTrip(2 * time.Millisecond)
	for i := range 3 {
		c, err := net.Dial("tcp", p.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("hello"))
		_ = c.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "hello" {
			t.Errorf("got %q, %v", got, err)
		}
		_ = c.Close()
		if p.connections() != i+1 {
			t.Errorf("%d connections were counted, there were %d", p.connections(), i+1)
		}
	}
	open, err := net.Dial("tcp", p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p.close()
	_ = open.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := open.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection outlived the proxy: %v", err)
	}
}
