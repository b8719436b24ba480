package image

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

// rawDisk is a disk that is mostly holes.
func rawDisk(text string) []byte {
	raw := make([]byte, 1<<20)
	copy(raw[512<<10:], text)
	return raw
}

// qcow2 is the beginning of an image, changed by edit.
func qcow2(edit func(head []byte)) []byte {
	head := make([]byte, 1024)
	copy(head, qcowMagic)
	binary.BigEndian.PutUint32(head[4:], 3)
	binary.BigEndian.PutUint32(head[20:], 16)
	binary.BigEndian.PutUint64(head[24:], 1<<30)
	binary.BigEndian.PutUint32(head[100:], 104)
	if edit != nil {
		edit(head)
	}
	return head
}

func sum512(raw []byte) string {
	digest := sha512.Sum512(raw)
	return "sha512:" + hex.EncodeToString(digest[:])
}

// web serves one file that may change.
type web struct {
	url      string
	content  atomic.Pointer[[]byte]
	requests atomic.Int32
	answer   atomic.Pointer[http.HandlerFunc]
}

func newWeb(t *testing.T, content []byte) *web {
	t.Helper()
	w := &web{}
	w.content.Store(&content)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.requests.Add(1)
		if answer := w.answer.Load(); answer != nil {
			(*answer)(rw, r)
			return
		}
		content := *w.content.Load()
		rw.Header().Set("ETag", fmt.Sprintf("%q", sum(content)[:20]))
		http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(server.Close)
	w.url = server.URL + "/disk.qcow2"
	return w
}

func TestGetDisk(t *testing.T) {
	raw, cow := rawDisk("hello"), qcow2(nil)
	w := newWeb(t, raw)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "d.img"), raw)
	write(t, filepath.Join(dir, "d.qcow2"), cow)
	for name, c := range map[string]struct {
		ref, checksum, format string
		content               []byte
	}{
		"address":                {w.url, "", "raw", raw},
		"address, sha256":        {w.url, sum(raw)[:7] + strings.ToUpper(sum(raw)[7:]), "raw", raw},
		"address, sha512":        {w.url, sum512(raw), "raw", raw},
		"file, raw":              {filepath.Join(dir, "d.img"), "", "raw", raw},
		"file, qcow2":            {filepath.Join(dir, "d.qcow2"), sum(cow), "qcow2", cow},
		"file, named carelessly": {dir + "/./d.qcow2", "", "qcow2", cow},
	} {
		t.Run(name, func(t *testing.T) {
			s := quick(t)
			got, err := s.GetDisk(t.Context(), c.ref, c.checksum, "", "vm")
			if err != nil {
				t.Fatal(err)
			}
			if got.Format != c.format || got.Digest != sum(c.content) || got.Bytes <= 0 {
				t.Errorf("got %+v", got)
			}
			if !bytes.Equal(readFile(t, got.Path), c.content) {
				t.Error("other bytes")
			}
			if c.format == "raw" && got.Bytes >= int64(len(raw)) {
				t.Errorf("%d bytes on disk: the holes were written", got.Bytes)
			}
			if info, err := os.Stat(got.Path); err != nil || info.Mode().Perm()&0o222 != 0 {
				t.Errorf("%v, %v: somebody may write to it", info, err)
			}
			if held, err := s.HeldDisk(got.Digest); err != nil || held != got {
				t.Errorf("held: %+v, %v", held, err)
			}
			if _, err := s.Held(got.Digest); !isAbsent(err) {
				t.Errorf("a disk is an image: %v", err)
			}
			again, err := s.GetDisk(t.Context(), c.ref, sum512(c.content), got.Digest, "vm2")
			if err != nil || again != got {
				t.Errorf("pinned: %+v, %v", again, err)
			}
			images, err := s.List(t.Context())
			if err != nil || len(images) != 1 || images[0].Used != 2 {
				t.Errorf("list: %+v, %v", images, err)
			}
		})
	}
}

func TestDiskIsFetchedWhenNeeded(t *testing.T) {
	old, latest := rawDisk("old"), rawDisk("new")
	w := newWeb(t, old)
	s := quick(t)
	get := func(checksum, digest, want string, asked int32) {
		t.Helper()
		before := w.requests.Load()
		got, err := s.GetDisk(t.Context(), w.url, checksum, digest, "vm")
		if err != nil {
			t.Fatal(err)
		}
		if got.Digest != want {
			t.Errorf("got %s, want %s", got.Digest, want)
		}
		if n := w.requests.Load() - before; n != asked {
			t.Errorf("asked %d times, want %d", n, asked)
		}
	}
	get("", "", sum(old), 1)
	w.content.Store(&latest)
	get("", "", sum(old), 0) // known
	get(sum512(old), "", sum(old), 0)
	get(sum(latest), "", sum(latest), 1) // the checksum says that it is another
	get("", "", sum(latest), 0)
	get("", sum(old), sum(old), 0) // the digest counts
	get(sum(old), "", sum(old), 0) // and so does a checksum of what is here
	get(sum512(old), sum(old), sum(old), 0)
	// Pull asks whether it changed, and is told in a word that it did not.
	if got, err := s.Pull(t.Context(), w.url, nil); err != nil || got.Digest != sum(latest) || got.Ref != w.url {
		t.Errorf("pull: %+v, %v", got, err)
	}
	if err := s.Release("vm"); err != nil {
		t.Fatal(err)
	}
	newest := rawDisk("newest")
	w.content.Store(&newest)
	var lines []string
	if got, err := s.Pull(t.Context(), w.url, func(line string) { lines = append(lines, line) }); err != nil || got.Digest != sum(newest) {
		t.Errorf("pull: %+v, %v", got, err)
	}
	if gone, err := s.Prune(t.Context()); err != nil || len(gone) != 3 {
		t.Errorf("prune: %+v, %v", gone, err)
	}
	// A file on this machine is read again when it changed.
	path := filepath.Join(t.TempDir(), "d.img")
	write(t, path, old)
	for range 2 {
		if got, err := s.GetDisk(t.Context(), path, "", "", "vm"); err != nil || got.Digest != sum(old) {
			t.Errorf("file: %s, %v", got.Digest, err)
		}
	}
	write(t, path, append(latest, make([]byte, 512)...))
	if got, err := s.GetDisk(t.Context(), path, "", "", "vm"); err != nil || got.Digest == sum(old) {
		t.Errorf("changed file: %s, %v", got.Digest, err)
	}
}

func TestDiskOnce(t *testing.T) {
	w := newWeb(t, rawDisk("x"))
	s := quick(t)
	var wait sync.WaitGroup
	for i := range 4 {
		wait.Go(func() {
			if _, err := s.GetDisk(t.Context(), w.url, "", "", fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if n := w.requests.Load(); n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

func TestDiskTrouble(t *testing.T) {
	raw := rawDisk("x")
	w := newWeb(t, raw)
	for name, c := range map[string]struct {
		answer   http.HandlerFunc
		checksum string
		kind     error
		words    []string
	}{
		"401":            {status(401), "", providers.ErrImage, []string{"refuses it (401)", "no login"}},
		"403":            {status(403), "", providers.ErrImage, []string{"refuses it (403)"}},
		"404":            {status(404), "", providers.ErrImage, []string{"(404)", "check the address"}},
		"429":            {status(429), "", providers.ErrImage, []string{"(429)"}},
		"500":            {status(500), "", providers.ErrImage, []string{"(500)", "absolute path"}},
		"other checksum": {nil, sum(nil), providers.ErrImage, []string{sum(raw), sum(nil), "not kept"}},
		"other sha512":   {nil, sum512(nil), providers.ErrImage, []string{sum512(raw), "not kept"}},
		"no checksum":    {nil, "md5:12", providers.ErrInvalid, []string{"sha512"}},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "4096")
			_, _ = io.WriteString(w, "x")
		}, "", providers.ErrImage, []string{"ended after 1 of 4096 bytes"}},
		"cut off, no length": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(raw)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, "", providers.ErrImage, []string{"middle"}},
		"web page":   {text("<!DOCTYPE html>"), "", providers.ErrImage, []string{"a web page", "qemu-img convert"}},
		"packed":     {text("\xfd7zXZ\x00"), "", providers.ErrImage, []string{"unpack it first"}},
		"not a disk": {text("hello"), "", providers.ErrImage, []string{"number of sectors"}},
		"empty":      {text(""), "", providers.ErrImage, []string{"number of sectors"}},
		"redirect to file": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, "", providers.ErrImage, nil},
		"redirects without end": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }, "", providers.ErrImage, []string{"too often"}},
		"redirect to plain http": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://example.com/", http.StatusFound)
		}, "", providers.ErrImage, []string{"plain http"}},
	} {
		t.Run(name, func(t *testing.T) {
			w.answer.Store(nil)
			if c.answer != nil {
				w.answer.Store(&c.answer)
			}
			s := quick(t)
			_, err := s.GetDisk(t.Context(), w.url, c.checksum, "", "vm")
			wantError(t, err, c.kind, c.words...)
			wantNothing(t, s)
		})
	}
	w.answer.Store(nil)
	s := quick(t)
	_, err := s.GetDisk(t.Context(), w.url, "", sum(nil), "vm")
	wantError(t, err, providers.ErrImage, sum(nil))
	_, err = s.GetDisk(t.Context(), w.url, "", "sha256:0", "vm")
	wantError(t, err, providers.ErrInvalid)
	_, err = s.GetDisk(t.Context(), "debian:12", "", "", "vm")
	wantError(t, err, providers.ErrInvalid, "not a disk image")
	_, err = s.GetDisk(t.Context(), "", "", "", "vm")
	wantError(t, err, providers.ErrInvalid)
	dir := t.TempDir()
	_, err = s.GetDisk(t.Context(), filepath.Join(dir, "none.img"), "", "", "vm")
	wantError(t, err, providers.ErrImage, "no such file", "one of the node")
	if err := os.Mkdir(filepath.Join(dir, "folder.img"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = s.GetDisk(t.Context(), filepath.Join(dir, "folder.img"), "", "", "vm")
	wantError(t, err, providers.ErrImage, "not a regular file")
	wantNothing(t, s)
	for _, limit := range []int64{1000, int64(len(raw)) - 1} {
		s.limits.archive = limit
		_, err = s.GetDisk(t.Context(), w.url, "", "", "vm")
		wantError(t, err, providers.ErrImage, "more than")
	}
	endless := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			if _, err := w.Write(raw); err != nil {
				return
			}
		}
	})
	w.answer.Store(&endless)
	s.limits.archive = 1 << 20
	_, err = s.GetDisk(t.Context(), w.url, "", "", "vm")
	wantError(t, err, providers.ErrImage, "more than")
	wantNothing(t, s)
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", code) }
}

func text(content string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, content) }
}

// hostileDisks are images that would make QEMU open what is not theirs, or choke.
func hostileDisks() map[string]struct {
	content []byte
	word    string
} {
	put32 := func(at int, v uint32) func([]byte) {
		return func(head []byte) { binary.BigEndian.PutUint32(head[at:], v) }
	}
	put64 := func(at int, v uint64) func([]byte) {
		return func(head []byte) { binary.BigEndian.PutUint64(head[at:], v) }
	}
	type disk = struct {
		content []byte
		word    string
	}
	return map[string]disk{
		"backing file":           {qcow2(put64(8, 512)), "backing file"},
		"length of backing file": {qcow2(put32(16, 11)), "backing file"},
		"external data":          {qcow2(put64(72, qcowExternalData)), "external data"},
		"name of external data":  {qcow2(put32(104, qcowDataFileName)), "external data"},
		"later name of external data": {qcow2(func(head []byte) {
			binary.BigEndian.PutUint32(head[104:], 0x6803f857)
			binary.BigEndian.PutUint32(head[108:], 5)
			binary.BigEndian.PutUint32(head[120:], qcowDataFileName)
		}), "external data"},
		"corrupt bit":        {qcow2(put64(72, 2)), "damaged"},
		"unknown feature":    {qcow2(put64(72, 1<<40)), "unknown"},
		"version":            {qcow2(put32(4, 4)), "version 4"},
		"clusters":           {qcow2(put32(20, 63)), "clusters"},
		"no size":            {qcow2(put64(24, 0)), "0 bytes"},
		"large":              {qcow2(put64(24, 1<<62)), "may have up to"},
		"encrypted":          {qcow2(put32(32, 1)), "encrypted"},
		"header of no sense": {qcow2(put32(100, 8)), "8 bytes long"},
		"long header":        {qcow2(put32(100, 1<<20)), "bytes long"},
		"cut off":            {qcow2(nil)[:60], "cut off"},
		"cut off after it":   {qcow2(nil)[:108], "cut off"},
		"endless extensions": {qcow2(func(head []byte) {
			for at := 104; at < len(head); at += 8 {
				binary.BigEndian.PutUint32(head[at:], 1)
			}
		}), "extensions"},
		"long extension": {qcow2(func(head []byte) {
			binary.BigEndian.PutUint32(head[104:], 1)
			binary.BigEndian.PutUint32(head[108:], 1<<31)
		}), "extension of"},
		"vmdk": {[]byte("KDMV" + strings.Repeat("\x00", 508)), "VMDK"},
	}
}

func TestHostileDisks(t *testing.T) {
	dir := t.TempDir()
	for name, c := range hostileDisks() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "d.qcow2")
			write(t, path, c.content)
			s := quick(t)
			_, err := s.GetDisk(t.Context(), path, "", "", "vm")
			wantError(t, err, providers.ErrImage, c.word)
			wantNothing(t, s)
		})
	}
	// An older version has no features.
	if format, err := formatOf(bytes.NewReader(qcow2(func(head []byte) { binary.BigEndian.PutUint32(head[4:], 2) })), 1024, 1<<40); format != "qcow2" || err != nil {
		t.Errorf("version 2: %s, %v", format, err)
	}
	if _, err := formatOf(bytes.NewReader(make([]byte, 1024)), 1024, 512); err == nil {
		t.Error("a raw disk past the limit is taken")
	}
}
