package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
)

// onePort is a port whose far end changes hands unnoticed: one stream for all links.
func onePort(t *testing.T) (*Port, net.Conn) {
	t.Helper()
	far, near := net.Pipe()
	t.Cleanup(func() { _ = far.Close() })
	t.Cleanup(func() { _ = near.Close() })
	return &Port{Open: func(context.Context) (net.Conn, error) { return unclosed{near}, nil }}, far
}

type unclosed struct{ net.Conn }

func (unclosed) Close() error { return nil }

func TestPortIsOpenedAnewInMidTransfer(t *testing.T) {
	port, far := onePort(t)
	opened := make(chan error, 1)
	for round := range 5 {
		conn, err := port.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			go func() { opened <- OpenLink(t.Context(), far) }()
		}
		if err := AcceptLink(conn); err != nil {
			t.Fatal(err)
		}
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
		// What the agent sent, and then a new agent's opening, without an end between.
		sent := make([]byte, 100_000)
		for i := range sent {
			sent[i] = byte(i)
		}
		go func() {
			if _, err := far.Write(sent); err != nil {
				opened <- err
				return
			}
			opened <- OpenLink(t.Context(), far)
		}()
		got, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) > len(sent) || string(got) != string(sent[:len(got)]) || len(sent)-len(got) > 64<<10 {
			t.Fatalf("round %d: read %d bytes of %d", round, len(got), len(sent))
		}
		if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("a link that is over gives %d bytes, %v", n, err)
		}
	}
}

func TestPortOpenFails(t *testing.T) {
	want := errors.New("no port")
	port := &Port{Open: func(context.Context) (net.Conn, error) { return nil, want }}
	if _, err := port.Dial(t.Context()); !errors.Is(err, want) {
		t.Fatal(err)
	}
}

func TestPortTellsAnOpeningFromItsBeginning(t *testing.T) {
	port, far := onePort(t)
	conn, err := port.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() { opened <- OpenLink(t.Context(), far) }()
	if err := errors.Join(AcceptLink(conn), <-opened); err != nil {
		t.Fatal(err)
	}
	// What only begins like a token comes through, however it is cut.
	near := append(magic[:suspicious+2:suspicious+2], "the rest of a message"...)
	go func() {
		for _, b := range near {
			if _, err := far.Write([]byte{b}); err != nil {
				opened <- err
				return
			}
		}
		opened <- OpenLink(t.Context(), far)
	}()
	got := make([]byte, len(near))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != string(near) {
		t.Fatalf("read %q, %v", got, err)
	}
	// A reader of frames' headers asks for nine bytes, and sees none of a token.
	if n, err := conn.Read(make([]byte, 9)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d bytes of an opening, %v", n, err)
	}
	if conn, err = port.Dial(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(AcceptLink(conn), <-opened); err != nil {
		t.Fatal(err)
	}
}
