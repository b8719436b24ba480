//go:build linux

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

const (
	stdout = guestv1.OutputStream_OUTPUT_STREAM_STDOUT
	stderr = guestv1.OutputStream_OUTPUT_STREAM_STDERR
)

// readAll reads a spool as runs like "o:text e:text gap:5".
func readAll(t *testing.T, s *spool, from uint64) string {
	t.Helper()
	r := s.attach(from, false)
	defer r.close()
	var runs []string
	buf := make([]byte, 1000)
	for {
		err := r.ready(t.Context())
		if errors.Is(err, io.EOF) {
			return strings.Join(runs, " ")
		}
		c, err := r.read(buf)
		if err != nil {
			t.Fatal(err)
		}
		kind := map[guestv1.OutputStream]string{stdout: "o:", stderr: "e:"}[c.stream]
		if c.gap > 0 {
			runs = append(runs, fmt.Sprint("gap:", c.gap))
		} else {
			runs = append(runs, kind+string(c.data))
		}
		r.advance(c.offset + uint64(len(c.data)) + c.gap)
	}
}

func TestSpoolKeepsStreamsApart(t *testing.T) {
	dir := t.TempDir()
	s := newSpool(dir, 0)
	for i, text := range []string{"one", "two", "three", "four"} {
		if err := s.write(t.Context(), []guestv1.OutputStream{stdout, stderr}[i%2], []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	want := "o:one e:two o:three e:four"
	if got := readAll(t, s, 0); got != want {
		t.Errorf("while written: %q", got)
	}
	if got := readAll(t, s, 4); got != "e:wo o:three e:four" {
		t.Errorf("from the middle: %q", got)
	}
	s.finish()
	if err := s.write(t.Context(), stdout, []byte("x")); !errors.Is(err, errEnded) {
		t.Errorf("after the end: %v", err)
	}
	again, err := loadSpool(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*spool{s, again} {
		if got := readAll(t, s, 0); got != want {
			t.Errorf("closed: %q", got)
		}
	}
	if err := os.Remove(filepath.Join(dir, "0000000000000000.idx")); err != nil {
		t.Fatal(err)
	}
	r := again.attach(0, false)
	defer r.close()
	if _, err := r.read(make([]byte, 10)); err == nil {
		t.Error("a lost index went unnoticed")
	}
}

// Streams that take turns with every byte begin new segments before the index
// grows too large, and its size counts against the cap.
func TestSpoolManySwitches(t *testing.T) {
	dir := t.TempDir()
	s := newSpool(dir, 256<<10)
	const total = 40_000
	for i := range total {
		if err := s.write(t.Context(), []guestv1.OutputStream{stdout, stderr}[i%2], []byte{byte('a' + i%26)}); err != nil {
			t.Fatal(err)
		}
	}
	s.finish()
	size := int64(0)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	from, end := s.bounds()
	if end != total || from == 0 || size > 256<<10+markMost*markSize {
		t.Errorf("%d to %d in %d bytes", from, end, size)
	}
	if got := readAll(t, s, end-3); got != "o:n e:o" && !strings.Contains(got, "o:") {
		t.Errorf("tail %q", got)
	}
}

func TestSpoolLosesItsFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	s := newSpool(dir, 0)
	if err := s.write(t.Context(), stdout, []byte("12345")); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, s, 0); got != "gap:5" {
		t.Errorf("got %q", got)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadSpool(file); err == nil {
		t.Error("a file was loaded as a spool")
	}
	if _, err := loadProcess(file, "file"); err == nil {
		t.Error("a file was loaded as a process")
	}
}

func TestUsedIDs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "used")
	u, err := loadUsedIDs(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2*usedMost + 1 {
		if i < usedMost { // as if loaded
			u.list = append(u.list, fmt.Sprint("old", i))
			continue
		}
		if err := u.add(fmt.Sprint("id", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.add("id12000"); err != nil {
		t.Fatal(err)
	}
	again, err := loadUsedIDs(path)
	if err != nil || !again.has("id20000") || again.has("old1") || len(again.list) > usedMost {
		t.Errorf("%d ids, %v", len(again.list), err)
	}
	if _, err := loadUsedIDs(filepath.Dir(path)); err == nil {
		t.Error("a folder was read")
	}
	u.path = filepath.Dir(path)
	if u.add("more") == nil {
		t.Error("a folder was written")
	}
}

func TestErrorsOfFiles(t *testing.T) {
	for err, code := range map[error]api.Code{
		fs.ErrNotExist: api.NotFound, fs.ErrExist: api.AlreadyExists, fs.ErrPermission: api.PermissionDenied, syscall.ENOSPC: api.ResourceExhausted,
		syscall.EISDIR: api.FailedPrecondition, syscall.ELOOP: api.FailedPrecondition, syscall.EROFS: api.PermissionDenied,
		syscall.EIO: api.Internal, context.DeadlineExceeded: api.DeadlineExceeded,
	} {
		wantCode(t, fsError("read", "x", err), code)
	}
	c := &command{id: "x", argv: []string{"x"}, dir: "/"}
	for err, code := range map[error]api.Code{syscall.EAGAIN: api.ResourceExhausted, syscall.EPERM: api.FailedPrecondition, syscall.E2BIG: api.InvalidArgument} {
		why, err := c.failed(err)
		if why != nil {
			t.Errorf("%v", why)
		}
		wantCode(t, err, code)
	}
	if why, err := c.failed(syscall.EIO); err != nil || why.code != exitNotExecutable {
		t.Errorf("%v, %v", why, err)
	}
}
