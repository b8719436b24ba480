//go:build linux

package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

var stamp = time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)

func pack(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		text := []byte(h.PAXRecords["T.text"])
		h.PAXRecords = nil
		h.Size = int64(len(text))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.ModTime = stamp
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func regular(name, text string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, PAXRecords: map[string]string{"T.text": text}}
}

func dirEntry(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o750}
}

func linkEntry(kind byte, name, target string) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: name, Linkname: target}
}

func (r *rig) send(begin *guestv1.ImportBegin, data []byte) (*guestv1.ImportResponse, error) {
	r.t.Helper()
	stream, err := r.file.Import(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	err = stream.Send(&guestv1.ImportRequest{Part: &guestv1.ImportRequest_Begin{Begin: begin}})
	for chunk := range slices.Chunk(data, 1000) {
		if err == nil {
			err = stream.Send(&guestv1.ImportRequest{Part: &guestv1.ImportRequest_Data{Data: chunk}})
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.t.Fatal(err)
	}
	return stream.CloseAndReceive()
}

func TestImportExport(t *testing.T) {
	r := newRig(t)
	resp, err := r.send(&guestv1.ImportBegin{Path: "into"}, pack(t,
		dirEntry("./"), dirEntry("d/"), regular("d/run", "#!"), regular("e/f/deep", strings.Repeat("x", 5000)),
		linkEntry(tar.TypeSymlink, "d/up", "../../../outside"), linkEntry(tar.TypeLink, "hard", "d/run"), linkEntry(tar.TypeLink, "hard", "hard"),
		regular("d/run", "again"), linkEntry(tar.TypeSymlink, "turned", "d"), dirEntry("turned/"), regular("turned/x", ""),
	))
	if err != nil || resp.GetEntries() != 11 || resp.GetBytes() != 5007 {
		t.Fatalf("import: %v, %v", resp, err)
	}
	if r.text("into/d/run") != "again" || r.text("into/hard") != "#!" {
		t.Error("contents differ")
	}
	info, err := os.Stat(r.path("into/d"))
	if err != nil || info.Mode().Perm() != 0o750 || !info.ModTime().Equal(stamp) {
		t.Errorf("folder %v, %v", info, err)
	}
	stream, err := r.file.Export(t.Context(), &guestv1.ExportRequest{Path: "into"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	archive := tar.NewReader(exported(stream))
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name+h.Linkname)
	}
	want := []string{"into/", "into/d/", "into/d/run", "into/d/up../../../outside", "into/e/", "into/e/f/", "into/e/f/deep", "into/hard", "into/turned/", "into/turned/x"}
	if !slices.Equal(got, want) {
		t.Errorf("exported %q", got)
	}
	for path, code := range map[string]api.Code{"missing": api.NotFound, "../x": api.PermissionDenied, "/": api.InvalidArgument} {
		stream, err := r.file.Export(t.Context(), &guestv1.ExportRequest{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, exported(stream))
		wantCode(t, err, code)
	}
	for _, path := range []string{".", r.path("into/hard")} {
		stream, err := r.file.Export(t.Context(), &guestv1.ExportRequest{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if h, err := tar.NewReader(exported(stream)).Next(); err != nil || strings.TrimSuffix(h.Name, "/") != filepath.Base(filepath.Join(r.opts.ProjectDir, strings.TrimPrefix(path, r.opts.ProjectDir))) {
			t.Errorf("%s: %v, %v", path, h, err)
		}
	}
}

type exportStream interface {
	Receive() bool
	Msg() *guestv1.ExportResponse
	Err() error
	Close() error
}

// exported is the tar in an export's messages.
func exported(stream exportStream) io.Reader {
	r, w := io.Pipe()
	go func() {
		for stream.Receive() {
			if _, err := w.Write(stream.Msg().GetData()); err != nil {
				break
			}
		}
		err := stream.Err()
		_ = stream.Close()
		_ = w.CloseWithError(err)
	}()
	return r
}

func TestHostileArchives(t *testing.T) {
	outside := t.TempDir()
	whole := pack(t, regular("a", strings.Repeat("x", 3000)))
	cases := map[string]struct {
		data []byte
		code api.Code
	}{
		"absolute":            {pack(t, regular("/etc/evil", "x")), api.InvalidArgument},
		"dots":                {pack(t, regular("a/../../evil", "x")), api.InvalidArgument},
		"through a symlink":   {pack(t, linkEntry(tar.TypeSymlink, "l", outside), regular("l/evil", "x")), api.InvalidArgument},
		"through one inside":  {pack(t, dirEntry("d"), linkEntry(tar.TypeSymlink, "l", "d"), regular("l/evil", "x")), api.InvalidArgument},
		"through a file":      {pack(t, regular("f", "x"), regular("f/evil", "x")), api.InvalidArgument},
		"hard link out":       {pack(t, linkEntry(tar.TypeLink, "h", "../../etc/passwd")), api.InvalidArgument},
		"hard link to a link": {pack(t, linkEntry(tar.TypeSymlink, "l", outside), linkEntry(tar.TypeLink, "h", "l")), api.InvalidArgument},
		"hard link to none":   {pack(t, linkEntry(tar.TypeLink, "h", "none")), api.NotFound},
		"device":              {pack(t, &tar.Header{Typeflag: tar.TypeChar, Name: "dev"}), api.InvalidArgument},
		"fifo":                {pack(t, &tar.Header{Typeflag: tar.TypeFifo, Name: "fifo"}), api.InvalidArgument},
		"file over a folder":  {pack(t, dirEntry("d"), regular("d", "x")), api.FailedPrecondition},
		"the folder itself":   {pack(t, linkEntry(tar.TypeSymlink, ".", "x")), api.InvalidArgument},
		"empty target":        {pack(t, linkEntry(tar.TypeSymlink, "l", "")), api.InvalidArgument},
		"cut short":           {whole[:1500], api.InvalidArgument},
		"noise":               {bytes.Repeat([]byte("noise"), 500), api.InvalidArgument},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			_, err := r.send(&guestv1.ImportBegin{Path: "."}, c.data)
			wantCode(t, err, c.code)
			for _, evil := range []string{filepath.Join(outside, "evil"), r.path("../evil"), r.path("a"), r.path("l/evil")} {
				if _, err := os.Lstat(evil); err == nil {
					t.Errorf("%s was made", evil)
				}
			}
		})
	}
}

func TestImportProtocol(t *testing.T) {
	r := newRig(t)
	stream, err := r.file.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Send(&guestv1.ImportRequest{Part: &guestv1.ImportRequest_Data{Data: []byte("x")}})
	_, err = stream.CloseAndReceive()
	wantCode(t, err, api.InvalidArgument)
	if stream, err = r.file.Import(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = stream.CloseAndReceive()
	wantCode(t, err, api.InvalidArgument)
	if stream, err = r.file.Import(t.Context()); err != nil {
		t.Fatal(err)
	}
	begin := &guestv1.ImportRequest{Part: &guestv1.ImportRequest_Begin{Begin: &guestv1.ImportBegin{}}}
	_ = stream.Send(begin)
	_ = stream.Send(begin)
	_, err = stream.CloseAndReceive()
	wantCode(t, err, api.InvalidArgument)
	_, err = r.send(&guestv1.ImportBegin{Path: "../x"}, nil)
	wantCode(t, err, api.PermissionDenied)
	_, err = r.send(&guestv1.ImportBegin{Path: "elsewhere", Project: true}, nil)
	wantCode(t, err, api.InvalidArgument)
	if _, err := r.send(&guestv1.ImportBegin{Path: r.path("abs")}, pack(t, regular("x", "y"))); err != nil || r.text("abs/x") != "y" {
		t.Errorf("absolute: %v", err)
	}
}

// FuzzUnpack feeds arbitrary archives: nothing is made outside of the folder.
func FuzzUnpack(f *testing.F) {
	f.Add(pack(f, dirEntry("d"), regular("d/f", "x"), linkEntry(tar.TypeLink, "h", "d/f"), linkEntry(tar.TypeSymlink, "l", "..")))
	f.Add(pack(f, linkEntry(tar.TypeSymlink, "l", ".."), regular("l/evil", "x")))
	f.Fuzz(func(t *testing.T, data []byte) {
		above := t.TempDir()
		if err := os.Mkdir(filepath.Join(above, "in"), 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(filepath.Join(above, "in"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = root.Close() }()
		u := &unpacker{ctx: context.Background(), root: root, safe: map[string]bool{".": true}, owner: account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}}
		_ = u.unpack(bytes.NewReader(data))
		if names, err := filepath.Glob(filepath.Join(above, "*")); err != nil || len(names) != 1 {
			t.Fatalf("made %v", names)
		}
	})
}
