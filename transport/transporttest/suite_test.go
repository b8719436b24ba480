package transporttest

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
)

// The suite's own judgements find what is wrong.
func TestJudgements(t *testing.T) {
	t.Parallel()
	speak := func(answer string) net.Conn {
		near, far := net.Pipe()
		t.Cleanup(func() { _ = near.Close() })
		go func() {
			_, _ = io.ReadFull(far, make([]byte, len("hello")))
			_, _ = io.WriteString(far, answer)
			_ = far.Close()
		}()
		return near
	}
	for _, answer := range []string{"HELLO", "hel", ""} {
		if err := echoed(speak(answer), "hello"); err == nil {
			t.Errorf("%q passed for an echo", answer)
		}
	}
	if err := echoed(speak("hello"), "hello"); err != nil {
		t.Error(err)
	}
	closed, _ := net.Pipe()
	_ = closed.Close()
	if err := echoed(closed, "hello"); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a closed stream: %v", err)
	}
	if err := readFails(closed); err != nil {
		t.Error(err)
	}
	if err := fails("this", nil); err == nil || !strings.Contains(err.Error(), "this succeeded") {
		t.Errorf("got %v", err)
	}
	for _, err := range []error{nil, io.EOF} {
		if verdict := wantTimeout(1, err); verdict == nil || err != nil && !errors.Is(verdict, err) {
			t.Errorf("%v passed for a timeout", err)
		}
	}
	if err := wantTimeout(0, os.ErrDeadlineExceeded); err != nil {
		t.Error(err)
	}
}
