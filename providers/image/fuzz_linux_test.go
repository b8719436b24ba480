package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fuzzLimits keep one try short.
var fuzzLimits = limits{
	layers: 8, manifest: 64 << 10, config: 64 << 10, archive: 1 << 20,
	names: 32 << 10, entries: 200, total: 1 << 20, file: 256 << 10, path: 512, depth: 16, target: 256,
	ratio: 50, free: 256 << 10, virtual: 1 << 40,
}

// FuzzUnpack lays two arbitrary layers over a tree: whatever they are, nothing
// beside the tree is touched, and what is in it keeps to the limits.
func FuzzUnpack(f *testing.F) {
	for _, c := range hostile(f) {
		if len(c.layers[0]) > 64<<10 {
			continue
		}
		f.Add(c.layers[0], layerOf(f, file("a", "x")), true)
		f.Add(layerOf(f, folder("d/"), symlink("l", "d"), file("a", "x")), c.layers[0], false)
	}
	f.Add(layerOf(f, symlink("bin", "usr/bin"), file("bin/a", "1")), layerOf(f, file("bin/.wh.a", ""), file("usr/.wh..wh..opq", "")), false)
	f.Fuzz(func(t *testing.T, first, second []byte, flat bool) {
		around, err := os.MkdirTemp("", "vfuzz") // t.TempDir is slow
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(around) }()
		root := filepath.Join(around, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(around, "victim"), []byte("mine"))
		past := time.Unix(1, 0)
		if err := os.Chtimes(filepath.Join(around, "victim"), past, past); err != nil {
			t.Fatal(err)
		}
		tr, err := openTree(root, flat || os.Geteuid() != 0, fuzzLimits)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tr.close() }()
		b := &budget{limits: fuzzLimits}
		for _, raw := range [][]byte{first, second} {
			_ = tr.unpack(t.Context(), b, bytes.NewReader(raw), sum(raw), int64(len(raw)), sum(raw)) // most are refused
		}
		if beside := names(t, around); !slices.Equal(beside, []string{"root", "victim"}) {
			t.Fatalf("beside the root: %q", beside)
		}
		info, err := os.Lstat(filepath.Join(around, "victim"))
		if err != nil || info.Mode() != 0o600 || !info.ModTime().Equal(past) || string(readFile(t, filepath.Join(around, "victim"))) != "mine" {
			t.Fatalf("the file beside was touched: %v, %v", info, err)
		}
		entries, total := 0, int64(0)
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			entries++
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				total += st.Size
			case unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO:
			default:
				t.Errorf("%s is a %v", path, d.Type())
			}
			if flat && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 && st.Mode&unix.S_IFMT == unix.S_IFREG {
				t.Errorf("%s is set-uid", path)
			}
			if rel := strings.TrimPrefix(path, root); strings.Count(rel, "/") > fuzzLimits.depth+2 {
				t.Errorf("%s is too deep", rel)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		// Each entry may make the folders above it, and a hard link counts again.
		if entries > fuzzLimits.entries*(fuzzLimits.depth+1) || total > fuzzLimits.total*int64(fuzzLimits.entries) {
			t.Errorf("%d entries, %d bytes", entries, total)
		}
	})
}

// FuzzLayout reads an arbitrary index, manifest and config.
func FuzzLayout(f *testing.F) {
	image := imageOf(f, nil, layerOf(f, file("f", "x")))
	config := image.blobs[image.manifest.Config.Digest.String()]
	f.Add([]byte(`{"manifests":[]}`), image.blobs[image.digest], config)
	f.Add([]byte(`{"manifests":[{"digest":"sha256:..","size":-1}]}`), image.blobs[image.digest], config)
	f.Add([]byte(`[{"Config":"../../etc/passwd","Layers":["/etc/passwd"]}]`), []byte("null"), []byte(`{"rootfs":{"diff_ids":["sha256:x"]}}`))
	f.Fuzz(func(_ *testing.T, index, manifest, config []byte) {
		for _, entries := range []map[string][]byte{
			{layoutIndex: index, "blobs/sha256/" + sum(manifest)[7:]: manifest, "blobs/sha256/" + sum(config)[7:]: config},
			{dockerManifest: index, "c": config, sum(config)[7:] + ".json": config},
			{layoutIndex: manifest, "blobs/sha256/" + sum(config)[7:]: config},
		} {
			l := &layout{files: memory(entries), limits: fuzzLimits}
			_, _ = look(context.Background(), l, "", "linux/amd64", fuzzLimits)
			_, _ = look(context.Background(), l, sum(manifest), "linux/amd64", fuzzLimits)
			_ = l.names()
		}
	})
}

// memory is files that lie nowhere.
type memory map[string][]byte

func (m memory) open(name string) (io.ReadCloser, int64, error) {
	raw, ok := m[name]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
}

func (m memory) Close() error { return nil }

// FuzzArchive looks for an image in an arbitrary archive.
func FuzzArchive(f *testing.F) {
	image := imageOf(f, nil, layerOf(f, file("f", "x")))
	f.Add(image.savedOf(f, "some/image:1"))
	f.Add(tarOf(f, image.layout(f)))
	f.Add(layerOf(f, symlink("index.json", "/etc/passwd"), tar.Header{Typeflag: tar.TypeLink, Name: "manifest.json", Linkname: "index.json"}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "a.tar")
		write(t, path, raw)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		l := &layout{limits: fuzzLimits}
		l.files, err = filesOf(f, fuzzLimits)
		if err != nil {
			return
		}
		_, _ = look(t.Context(), l, "", "linux/amd64", fuzzLimits)
		_ = l.names()
		if err := l.close(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzDisk never takes an image that leads to another file.
func FuzzDisk(f *testing.F) {
	for _, c := range hostileDisks() {
		f.Add(c.content)
	}
	f.Add(qcow2(nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		format, err := formatOf(bytes.NewReader(raw), int64(len(raw)), 1<<40)
		if err != nil {
			return
		}
		isCow := bytes.HasPrefix(raw, []byte(qcowMagic))
		if (format == "qcow2") != isCow {
			t.Errorf("format %s", format)
		}
		if isCow && !bytes.Equal(raw[8:20], make([]byte, 12)) {
			t.Error("it has a backing file")
		}
	})
}

// FuzzReference: a reference that is taken says where it is from and has a key.
func FuzzReference(f *testing.F) {
	for _, ref := range []string{"debian:12", "/a/b", "oci:/a:tag", "https://u:p@h/x.img?q#f", "/../etc/passwd.img", "x@sha256:" + strings.Repeat("0", 64)} {
		f.Add(ref)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parse(text)
		if err != nil {
			return
		}
		if r.from() == "" && r.path != "" || len(r.key("linux/amd64")) != 64 {
			t.Errorf("%q: from %q", text, r.from())
		}
		if r.path != "" && (!filepath.IsAbs(r.path) || r.path != filepath.Clean(r.path)) {
			t.Errorf("%q: path %q", text, r.path)
		}
		if again, err := parse(r.text); err == nil && r.address == nil && again.key("x") != r.key("x") {
			t.Errorf("%q is another when it is written %q", text, r.text)
		}
		if IsDisk(text) != (r.kind == kindDisk) {
			t.Errorf("%q: IsDisk does not say what parse does", text)
		}
	})
}
