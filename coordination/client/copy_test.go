package client_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

// plant makes files below dir: "name" with its own name as text, "name/" a
// folder, "name -> target" a symlink.
func plant(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		link, target, isLink := strings.Cut(name, " -> ")
		at := filepath.Join(dir, link)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		switch {
		case isLink:
			err = errors.Join(err, os.Symlink(target, at))
		case strings.HasSuffix(name, "/"):
			err = errors.Join(err, os.MkdirAll(at, 0o755))
		default:
			err = errors.Join(err, os.WriteFile(at, []byte(filepath.Base(name)), 0o640))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// planted lists what stands below dir, in the words of plant.
func planted(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, p)
		switch {
		case err != nil || name == ".":
			return err
		case d.IsDir():
			name += "/"
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			name += " -> " + target
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// destinations are the rules of docker cp, the same in both directions.
var destinations = map[string]struct {
	source, dest string
	has          []string // at the destination before
	want         []string // there afterwards
	code         api.Code
}{
	"file to a new name":             {source: "src/f", dest: "new", want: []string{"new"}},
	"file over a file":               {source: "src/f", dest: "old", has: []string{"old"}, want: []string{"old"}},
	"file into a folder":             {source: "src/f", dest: "dir", has: []string{"dir/"}, want: []string{"dir/", "dir/f"}},
	"file into a missing folder":     {source: "src/f", dest: "dir/", code: api.NotFound},
	"file below a missing folder":    {source: "src/f", dest: "no/such", code: api.NotFound},
	"file to a file with a slash":    {source: "src/f", dest: "old/", has: []string{"old"}, code: api.FailedPrecondition},
	"folder to a new name":           {source: "src", dest: "new", want: []string{"new/", "new/f", "new/link -> f", "new/sub/", "new/sub/g"}},
	"folder into a folder":           {source: "src", dest: "dir", has: []string{"dir/"}, want: []string{"dir/", "dir/src/", "dir/src/f", "dir/src/link -> f", "dir/src/sub/", "dir/src/sub/g"}},
	"folder's contents":              {source: "src/.", dest: "dir", has: []string{"dir/f"}, want: []string{"dir/", "dir/f", "dir/link -> f", "dir/sub/", "dir/sub/g"}},
	"folder's contents to a new one": {source: "src/sub/.", dest: "new", want: []string{"new/", "new/g"}},
	"folder over a file":             {source: "src", dest: "old", has: []string{"old"}, code: api.FailedPrecondition},
	"symlink":                        {source: "src/link", dest: "new", want: []string{"new -> f"}},
	"nothing":                        {source: "src/none", dest: "new", code: api.NotFound},
	"file named as a folder":         {source: "src/f/", dest: "new", code: api.FailedPrecondition},
}

var sourceTree = []string{"src/f", "src/link -> f", "src/sub/g"}

func TestCopyTo(t *testing.T) {
	t.Parallel()
	for name, c := range destinations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, guest, g := setup(t)
			local := t.TempDir()
			plant(t, local, sourceTree...)
			plant(t, guest.Dir, c.has...)
			err := g.CopyTo(t.Context(), local+"/"+c.source, "/workspace/"+c.dest)
			if api.CodeOf(err) != c.code {
				t.Fatalf("error = %v", err)
			}
			if c.code != "" {
				c.want = c.has
			}
			if got := planted(t, guest.Dir); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestCopyFrom(t *testing.T) {
	t.Parallel()
	for name, c := range destinations {
		if name == "file named as a folder" {
			continue // the guest's own answer
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, guest, g := setup(t)
			local := t.TempDir()
			plant(t, guest.Dir, sourceTree...)
			plant(t, local, c.has...)
			err := g.CopyFrom(t.Context(), c.source, local+"/"+c.dest)
			if api.CodeOf(err) != c.code {
				t.Fatalf("error = %v", err)
			}
			if c.code != "" {
				c.want = c.has
			}
			if got := planted(t, local); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestCopyKeepsModesAndTimes(t *testing.T) {
	t.Parallel()
	_, guest, g := setup(t)
	local := t.TempDir()
	plant(t, local, "f")
	when := time.Unix(1_000_000_000, 0)
	if err := errors.Join(os.Chmod(local+"/f", 0o751), os.Chtimes(local+"/f", when, when)); err != nil {
		t.Fatal(err)
	}
	if err := g.CopyTo(t.Context(), local+"/f", "g"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(guest.Dir+"/g", when, when); err != nil {
		t.Fatal(err)
	}
	if err := g.CopyFrom(t.Context(), "g", local); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(local + "/g")
	if err != nil || info.Mode().Perm() != 0o751 || !info.ModTime().Equal(when) {
		t.Errorf("%v, %v", info, err)
	}
}

func TestCopyErrors(t *testing.T) {
	t.Parallel()
	s, guest, g := setup(t)
	local := t.TempDir()
	plant(t, local, "f", "tree/sub/g")
	plant(t, guest.Dir, "file")
	if err := g.CopyTo(t.Context(), local+"/f", "file/below"); api.CodeOf(err) != api.FailedPrecondition && api.CodeOf(err) != api.Internal {
		t.Errorf("below a file: %v", err)
	}
	socket, err := net.Listen("unix", local+"/tree/s")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := g.CopyTo(t.Context(), local+"/tree", "tree"); api.CodeOf(err) != api.InvalidArgument {
		t.Errorf("a socket: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.CopyTo(ctx, local+"/f", "f"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := g.CopyFrom(t.Context(), "file", local+"/f/below"); err == nil {
		t.Error("below a local file")
	}
	s.Lock()
	s.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
		if refused := strings.HasSuffix(r.URL.Path, "port"); refused {
			http.Error(w, "", http.StatusForbidden)
			return true
		}
		return false
	}
	s.Unlock()
	if err := g.CopyTo(t.Context(), local+"/f", "f"); api.CodeOf(err) != api.PermissionDenied {
		t.Errorf("refused import: %v", err)
	}
	if err := g.CopyFrom(t.Context(), "file", local); api.CodeOf(err) != api.PermissionDenied {
		t.Errorf("refused export: %v", err)
	}
}

func TestImportCutOffByItsWriter(t *testing.T) {
	t.Parallel()
	_, guest, g := setup(t)
	broken := errors.New("disk read error")
	_, err := g.Import(t.Context(), &guestv1.ImportBegin{Path: "/workspace", Project: true}, func(w io.Writer) error {
		_, _ = w.Write(make([]byte, 1<<20))
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("error = %v", err)
	}
	_ = guest
}

// entry is one header of a hostile archive.
type entry struct {
	name, link string
	kind       byte
	mode       int64
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode | 0o600, ModTime: time.Unix(1, 0)}
		if e.kind == tar.TypeReg {
			h.Size = 4
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := w.Write([]byte("evil")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func hostileArchives(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"dot dot":              archive(t, entry{name: "src/../../out/victim", kind: tar.TypeReg}),
		"plain dot dot":        archive(t, entry{name: "../out/victim", kind: tar.TypeReg}),
		"absolute":             archive(t, entry{name: "/out/victim", kind: tar.TypeReg}),
		"through a symlink":    archive(t, entry{name: "src/", kind: tar.TypeDir}, entry{name: "src/l", link: "../../out", kind: tar.TypeSymlink}, entry{name: "src/l/victim", kind: tar.TypeReg}),
		"symlink inside":       archive(t, entry{name: "src/d/", kind: tar.TypeDir}, entry{name: "src/l", link: "d", kind: tar.TypeSymlink}, entry{name: "src/l/x", kind: tar.TypeReg}),
		"over a symlink":       archive(t, entry{name: "src/l", link: "../../out/victim", kind: tar.TypeSymlink}, entry{name: "src/l", kind: tar.TypeReg}),
		"the user's symlink":   archive(t, entry{name: "src/users/victim", kind: tar.TypeReg}),
		"folder for a symlink": archive(t, entry{name: "src/users/", kind: tar.TypeDir}),
		"symlink for a folder": archive(t, entry{name: "src/kept", link: "../../out", kind: tar.TypeSymlink}),
		"root is a symlink":    archive(t, entry{name: "src", link: "../out", kind: tar.TypeSymlink}, entry{name: "src/victim", kind: tar.TypeReg}),
		"another top":          archive(t, entry{name: "src/", kind: tar.TypeDir}, entry{name: "users/victim", kind: tar.TypeReg}),
		"hard link":            archive(t, entry{name: "src/h", link: "../../out/victim", kind: tar.TypeLink}),
		"device":               archive(t, entry{name: "src/null", kind: tar.TypeChar}),
		"set-id":               archive(t, entry{name: "src/su", kind: tar.TypeReg, mode: 0o6755}),
		"empty":                archive(t),
		"no archive":           []byte("no archive at all"),
		"folder without write": archive(t, entry{name: "src/", kind: tar.TypeDir}, entry{name: "src/ro/", kind: tar.TypeDir, mode: 0o500}, entry{name: "src/ro/x", kind: tar.TypeReg}),
	}
}

// unharmed checks that nothing outside dest was touched and no set-id bit is inside.
func unharmed(t *testing.T, base string) {
	t.Helper()
	if got := planted(t, base+"/out"); !slices.Equal(got, []string{"victim"}) {
		t.Fatalf("outside: %q", got)
	}
	if text, err := os.ReadFile(base + "/out/victim"); err != nil || string(text) != "victim" {
		t.Fatalf("the victim reads %q, %v", text, err)
	}
	entries, err := os.ReadDir(base)
	if err != nil || len(entries) != 2 {
		t.Fatalf("beside: %v, %v", entries, err)
	}
	_ = filepath.WalkDir(base+"/dest", func(p string, d fs.DirEntry, _ error) error {
		if i, err := d.Info(); err == nil && (i.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeDevice) != 0) {
			t.Fatalf("%s has mode %v", p, i.Mode())
		}
		return nil
	})
}

// hunted is a destination with the user's own files, and a victim beside it.
func hunted(t *testing.T) string {
	t.Helper()
	base := t.TempDir()
	plant(t, base, "out/victim", "dest/src/kept/file", "dest/src/users -> ../../out", "dest/src/own")
	return base
}

func TestHostileArchives(t *testing.T) {
	t.Parallel()
	refused := map[string]bool{"over a symlink": true, "set-id": true, "folder without write": true}
	for name, data := range hostileArchives(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, guest, g := setup(t)
			plant(t, guest.Dir, "src/f")
			guest.SetExport(data)
			base := hunted(t)
			err := g.CopyFrom(t.Context(), "src", base+"/dest")
			if (err == nil) != refused[name] {
				t.Errorf("error = %v", err)
			}
			unharmed(t, base)
		})
	}
}

func FuzzUnpack(f *testing.F) {
	for _, data := range hostileArchives(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		base := hunted(t)
		_ = client.Unpack(t.Context(), base+"/dest", "src", bytes.NewReader(data))
		unharmed(t, base)
	})
}
