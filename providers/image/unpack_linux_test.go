package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// small limits make hostile archives small.
var small = limits{
	layers: 8, manifest: 1 << 20, config: 1 << 20, archive: 64 << 20,
	names: 64 << 10, entries: 1000, total: 8 << 20, file: 4 << 20, path: 1024, depth: 32, target: 1024,
	ratio: 20, free: 1 << 20, virtual: 1 << 40,
}

// unpackAll lays layers over a new tree and returns it with what is around it.
func unpackAll(t testing.TB, flat bool, layers ...[]byte) (root string, err error) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return root, unpackInto(t, root, flat, small, layers...)
}

func unpackInto(t testing.TB, root string, flat bool, l limits, layers ...[]byte) error {
	t.Helper()
	tr, err := openTree(root, flat, l)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.close() }()
	b := &budget{limits: l}
	for _, raw := range layers {
		plain, done, err := decompress(bytes.NewReader(raw))
		if err != nil {
			return err
		}
		content, err := io.ReadAll(plain)
		done()
		if err != nil {
			return err
		}
		if err := tr.unpack(t.Context(), b, bytes.NewReader(raw), sum(raw), int64(len(raw)), sum(content)); err != nil {
			return err
		}
	}
	return nil
}

// show lists a tree: what each name is, and what is in it.
func show(t testing.TB, root string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch d.Type() {
		case fs.ModeDir:
			name += "/"
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			name += "->" + target
		case 0:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name += "=" + string(content)
		default:
			name += "?" + d.Type().String()
		}
		all = append(all, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func TestUnpack(t *testing.T) {
	type layer = []tar.Header
	device := tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3}
	for name, c := range map[string]struct {
		layers []layer
		want   []string
	}{
		"files, folders and links": {
			[]layer{{folder("a/"), file("a/f", "1"), symlink("a/s", "f"), hardlink("a/h", "a/f")}},
			[]string{"a/", "a/f=1", "a/h=1", "a/s->f"},
		},
		"absolute names, dots and a name for the root": {
			[]layer{{folder("./"), file("/a", "1"), file("./b", "2"), file("x/../c", "3"), file("//d", "4")}},
			[]string{"a=1", "b=2", "c=3", "d=4"},
		},
		"parents that no entry names": {
			[]layer{{file("a/b/c", "1")}},
			[]string{"a/", "a/b/", "a/b/c=1"},
		},
		"a later layer wins": {
			[]layer{{file("a", "1")}, {file("a", "2")}},
			[]string{"a=2"},
		},
		"an entry twice": {
			[]layer{{file("a", "1"), file("a", "2"), folder("d/"), folder("d/")}},
			[]string{"a=2", "d/"},
		},
		"a whiteout": {
			[]layer{{file("a", "1"), file("d/b", "2"), file("d/c", "3")}, {file(".wh.a", ""), file("d/.wh.b", "")}},
			[]string{"d/", "d/c=3"},
		},
		"a whiteout of a folder": {
			[]layer{{file("d/e/b", "2"), file("k", "3")}, {file(".wh.d", "")}},
			[]string{"k=3"},
		},
		"a whiteout of what is not there": {
			[]layer{{file("k", "3")}, {file(".wh.d", "")}},
			[]string{"k=3"},
		},
		"a whiteout is about the layers below": {
			[]layer{{file("d/old", "1")}, {file("d/new", "2"), file(".wh.d", "")}},
			[]string{"d/", "d/new=2"},
		},
		"an opaque folder, said first": {
			[]layer{{file("d/old", "1"), file("d/e/old", "1")}, {folder("d/"), file("d/.wh..wh..opq", ""), file("d/new", "2")}},
			[]string{"d/", "d/new=2"},
		},
		"an opaque folder, said last": {
			[]layer{{file("d/old", "1"), file("d/e/old", "1")}, {folder("d/"), file("d/e/new", "2"), folder("d/e/"), file("d/.wh..wh..opq", "")}},
			[]string{"d/", "d/e/", "d/e/new=2"},
		},
		"an opaque folder through a link": {
			[]layer{{file("usr/bin/old", "1"), symlink("bin", "usr/bin")}, {folder("usr/bin/"), file("usr/bin/new", "2"), file("bin/.wh..wh..opq", "")}},
			[]string{"bin->usr/bin", "usr/", "usr/bin/", "usr/bin/new=2"},
		},
		"what aufs kept": {
			[]layer{{file(".wh..wh.plnk", "1"), file("a", "1")}},
			[]string{"a=1"},
		},
		"through the link of a merged /usr": {
			[]layer{{folder("usr/bin/"), symlink("bin", "usr/bin"), symlink("sbin", "/usr/bin")}, {file("bin/a", "1"), file("sbin/b", "2"), hardlink("bin/c", "bin/a")}},
			[]string{"bin->usr/bin", "sbin->/usr/bin", "usr/", "usr/bin/", "usr/bin/a=1", "usr/bin/b=2", "usr/bin/c=1"},
		},
		"through a link to what is not there": {
			[]layer{{symlink("var/run", "/run"), symlink("var/lock", "../run/lock")}, {file("var/run/a", "1"), file("var/lock/b", "2")}},
			[]string{"run/", "run/a=1", "run/lock/", "run/lock/b=2", "var/", "var/lock->../run/lock", "var/run->/run"},
		},
		"a folder takes the place of a link": {
			[]layer{{folder("usr/bin/"), symlink("bin", "usr/bin")}, {folder("bin/"), file("bin/a", "1")}},
			[]string{"bin/", "bin/a=1", "usr/", "usr/bin/"},
		},
		"a file takes the place of a folder": {
			[]layer{{file("d/e/f", "1")}, {file("d", "2")}},
			[]string{"d=2"},
		},
		"a folder takes the place of a file": {
			[]layer{{file("d", "2")}, {folder("d/"), file("d/f", "1")}},
			[]string{"d/", "d/f=1"},
		},
		"a folder stays when it is named again": {
			[]layer{{file("d/f", "1")}, {folder("d/")}},
			[]string{"d/", "d/f=1"},
		},
		"a link takes the place of a folder": {
			[]layer{{file("d/f", "1")}, {symlink("d", "e")}},
			[]string{"d->e"},
		},
		"a hard link to a file below": {
			[]layer{{file("a", "1")}, {hardlink("b", "/a")}},
			[]string{"a=1", "b=1"},
		},
		"a hard link to itself": {
			[]layer{{file("a", "1"), hardlink("a", "a")}},
			[]string{"a=1"},
		},
		"a hard link to a symbolic link": {
			[]layer{{symlink("s", "a"), hardlink("b", "s")}},
			[]string{"b->a", "s->a"},
		},
		"devices are left out": {
			[]layer{{file("dev/null", "1"), device, {Typeflag: tar.TypeBlock, Name: "dev/sda"}, {Typeflag: tar.TypeChar, Name: "hide"}}},
			[]string{"dev/"},
		},
		"a pipe": {
			[]layer{{{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o600}}},
			[]string{"p?p---------"},
		},
		"a link that leads out of the machine's root": {
			[]layer{{symlink("a", "../../../../../etc"), file("a/passwd", "1")}},
			[]string{"a->../../../../../etc", "etc/", "etc/passwd=1"},
		},
		"an absolute link, then through it": {
			[]layer{{symlink("a", "/etc"), file("a/passwd", "1"), hardlink("b", "a/passwd")}},
			[]string{"a->/etc", "b=1", "etc/", "etc/passwd=1"},
		},
		"a link gives way to a file of its name": {
			[]layer{{symlink("a", "/etc/passwd")}, {file("a", "1")}},
			[]string{"a=1"},
		},
	} {
		for _, flat := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, flat %t", name, flat), func(t *testing.T) {
				if !flat && os.Geteuid() != 0 {
					t.Skip("owners need root")
				}
				var layers [][]byte
				for i, entries := range c.layers {
					raw := layerOf(t, entries...)
					if i%2 == 0 {
						raw = gzipped(t, raw)
					}
					layers = append(layers, raw)
				}
				root, err := unpackAll(t, flat, layers...)
				if err != nil {
					t.Fatal(err)
				}
				if got := show(t, root); !slices.Equal(got, c.want) {
					t.Errorf("got  %q\nwant %q", got, c.want)
				}
				if around, err := os.ReadDir(filepath.Dir(root)); err != nil || len(around) != 1 {
					t.Errorf("beside the root: %v, %v", around, err)
				}
			})
		}
	}
}

func TestUnpackMetadata(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners need root")
	}
	then := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	caps := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service=ep
	entries := []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o711, Uid: 3, Gid: 4, ModTime: then},
		{Typeflag: tar.TypeDir, Name: "d", Mode: 0o1770, Uid: 1, Gid: 2, ModTime: then},
		{Name: "d/f", Mode: 0o4755, Uid: 1000, Gid: 100, ModTime: then, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability":   caps,
			"SCHILY.xattr.user.mine":             "yes",
			"SCHILY.xattr.user.overlay.opaque":   "y",
			"SCHILY.xattr.trusted.overlay.opq":   "y",
			"SCHILY.xattr.security.selinux":      "x",
			"SCHILY.xattr.system.posix_acl_none": "x",
		}},
		{Typeflag: tar.TypeSymlink, Name: "s", Linkname: "d/f", Uid: 7, Gid: 8, ModTime: then},
		{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o640, Uid: 7, Gid: 8, ModTime: then},
		{Name: "ancient", Mode: 0o600, ModTime: time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), Format: tar.FormatPAX},
	}
	type facts struct {
		mode     uint32
		uid, gid uint32
		mtime    int64
	}
	for _, c := range []struct {
		flat bool
		want map[string]facts
	}{
		{false, map[string]facts{
			".": {unix.S_IFDIR | 0o711, 3, 4, then.Unix()}, "d": {unix.S_IFDIR | 0o1770, 1, 2, then.Unix()},
			"d/f": {unix.S_IFREG | 0o4755, 1000, 100, then.Unix()}, "s": {unix.S_IFLNK | 0o777, 7, 8, then.Unix()},
			"p": {unix.S_IFIFO | 0o640, 7, 8, then.Unix()}, "ancient": {unix.S_IFREG | 0o600, 0, 0, 0},
		}},
		{true, map[string]facts{
			".": {unix.S_IFDIR | 0o711, 0, 0, then.Unix()}, "d": {unix.S_IFDIR | 0o1770, 0, 0, then.Unix()},
			"d/f": {unix.S_IFREG | 0o755, 0, 0, then.Unix()}, "s": {unix.S_IFLNK | 0o777, 0, 0, then.Unix()},
			"p": {unix.S_IFIFO | 0o640, 0, 0, then.Unix()}, "ancient": {unix.S_IFREG | 0o600, 0, 0, 0},
		}},
	} {
		root, err := unpackAll(t, c.flat, layerOf(t, entries...))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range c.want {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
				t.Fatal(err)
			}
			got := facts{st.Mode, st.Uid, st.Gid, st.Mtim.Sec}
			if name == "." {
				got.mtime = want.mtime // making things in it changed it; nobody minds
			}
			if got != want {
				t.Errorf("flat %t, %s: %+v, want %+v", c.flat, name, got, want)
			}
		}
		buffer := make([]byte, 4096)
		n, err := unix.Llistxattr(filepath.Join(root, "d/f"), buffer)
		if err != nil {
			t.Fatal(err)
		}
		names := strings.Split(strings.Trim(string(buffer[:n]), "\x00"), "\x00")
		slices.Sort(names)
		want := []string{"security.capability", "user.mine"}
		if c.flat {
			want = want[1:]
		}
		if !slices.Equal(names, want) {
			t.Errorf("flat %t: attributes %q, want %q", c.flat, names, want)
		}
	}
}

// TestUnpackFlatModes: an ordinary user can read, enter and remove it all.
func TestUnpackFlatModes(t *testing.T) {
	layer := layerOf(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0}, tar.Header{Name: "d/f", Mode: 0},
		tar.Header{Name: "s", Mode: 0o6111},
	)
	root, err := unpackAll(t, true, layer)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"d": fs.ModeDir | 0o700, "d/f": 0o600, "s": 0o711} {
		info, err := os.Lstat(filepath.Join(root, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
}

// hostile are archives that must be refused, each with a word of the reason.
func hostile(t testing.TB) map[string]struct {
	layers [][]byte
	why    string
} {
	one := func(why string, entries ...tar.Header) struct {
		layers [][]byte
		why    string
	} {
		return struct {
			layers [][]byte
			why    string
		}{[][]byte{layerOf(t, entries...)}, why}
	}
	deep := strings.Repeat("d/", small.depth+1) + "f"
	loop := []tar.Header{symlink("s", "d"), folder("d/")}
	for range 3 { // each passes through the link to where it is already
		loop = append(loop, folder("s/"+strings.Repeat("e/", small.depth-2)), symlink("t", "s/"+strings.Repeat("e/", small.depth-2)), folder("t/"+strings.Repeat("g/", small.depth-2)))
	}
	var many []tar.Header
	for i := range small.entries + 1 {
		many = append(many, file(fmt.Sprint(i), ""))
	}
	bomb := gzipped(t, layerOf(t, file("zero", strings.Repeat("\x00", 3<<20))))
	all := map[string]struct {
		layers [][]byte
		why    string
	}{
		"name climbs out":            one("outside", file("../evil", "x")),
		"name climbs out later":      one("outside", folder("a/"), file("a/../../evil", "x")),
		"absolute name climbs out":   one("outside", file("/../evil", "x")),
		"folder climbs out":          one("outside", folder("../evil/")),
		"whiteout climbs out":        one("outside", file("../.wh.victim", "")),
		"whiteout of ..":             one("whiteout of nothing", file("a/.wh...", "")),
		"whiteout of .":              one("whiteout of nothing", file("a/.wh..", "")),
		"whiteout of nothing":        one("whiteout of nothing", file(".wh.", "")),
		"hard link climbs out":       one("outside", hardlink("a", "../victim")),
		"hard link by a link":        one("does not have", symlink("s", "../.."), hardlink("a", "s/victim")),
		"hard link to nothing":       one("does not have", hardlink("a", "b")),
		"hard link to a folder":      one("folder", folder("d/"), hardlink("a", "d")),
		"hard link to the root":      one("folder", hardlink("a", "/")),
		"link loop":                  one("not a folder", symlink("a", "b"), symlink("b", "a"), file("a/f", "x")),
		"link to itself":             one("not a folder", symlink("a", "a"), file("a/f", "x")),
		"long chain of links":        one("not a folder", chain(60)...),
		"file in a file":             one("not a folder", file("a", "x"), file("a/b", "x")),
		"deep":                       one("deep", file(deep, "x")),
		"deep by links":              one("deep", loop...),
		"long name":                  one("bytes", file(strings.Repeat("n", 256), "x")),
		"long path":                  one("bytes", file(strings.Repeat("n/", 600)+"f", "x")),
		"long target":                one("symbolic link", symlink("s", strings.Repeat("t", 1025))),
		"no target":                  one("symbolic link", symlink("s", "")),
		"too many entries":           one("entries", many...),
		"too many entries in layers": {[][]byte{layerOf(t, many[:600]...), layerOf(t, many[600:]...)}, "entries"},
		"large file":                 one("file of", file("f", strings.Repeat("x", 4<<20+1))),
		"large in sum":               one("unpacks to", file("a", strings.Repeat("x", 3<<20)), file("b", strings.Repeat("x", 3<<20)), file("c", strings.Repeat("x", 3<<20))),
		"large in layers":            {[][]byte{layerOf(t, file("a", strings.Repeat("x", 4<<20))), layerOf(t, file("a", strings.Repeat("x", 4<<20))), layerOf(t, file("a", "x"))}, "unpacks to"},
		"too many names":             one("bytes of names", longNames()...),
		"ratio":                      {[][]byte{bomb}, "times its size"},
		"impossible owner":           one("id that does not exist", tar.Header{Name: "f", Uid: 1 << 40, Format: tar.FormatGNU}),
		"negative owner":             one("id that does not exist", tar.Header{Name: "f", Gid: -1, Format: tar.FormatGNU}),
	}
	for name, raw := range map[string][]byte{
		"not an archive":   []byte(strings.Repeat("this is not a tar file", 100)),
		"cut off":          layerOf(t, file("a", strings.Repeat("x", 4096)))[:1024],
		"cut off in gzip":  gzipped(t, layerOf(t, file("a", strings.Repeat("x", 4096))))[:40],
		"gzip of nonsense": append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{0xff}, 100)...),
		"gzip's beginning": {0x1f, 0x8b},
		"zstd of nonsense": []byte("\x28\xb5\x2f\xfd" + strings.Repeat("\xff", 100)),
	} {
		all[name] = struct {
			layers [][]byte
			why    string
		}{[][]byte{raw}, "damaged"}
	}
	return all
}

func longNames() []tar.Header {
	var all []tar.Header
	for i := range 100 {
		all = append(all, file(strings.Repeat(strings.Repeat("n", 200)+"/", 4)+fmt.Sprint(i), ""))
	}
	return all
}

// chain is n links, each to the next, and a file through them.
func chain(n int) []tar.Header {
	var all []tar.Header
	for i := range n {
		all = append(all, symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d/x", i+1)))
	}
	return append(all, file("l0/f", "x"))
}

func TestUnpackHostile(t *testing.T) {
	for name, c := range hostile(t) {
		t.Run(name, func(t *testing.T) {
			around := t.TempDir()
			write(t, filepath.Join(around, "victim"), []byte("mine"))
			root := filepath.Join(around, "a", "root")
			if err := os.MkdirAll(root, 0o755); err != nil {
				t.Fatal(err)
			}
			err := unpackRaw(t, root, c.layers...)
			var no *refused
			if !errors.As(err, &no) || !strings.Contains(no.why, c.why) {
				t.Errorf("got %v, want a refusal with %q", err, c.why)
			}
			if got, err := os.ReadFile(filepath.Join(around, "victim")); string(got) != "mine" {
				t.Errorf("the file beside is %q, %v", got, err)
			}
			if beside := append(names(t, around), names(t, filepath.Dir(root))...); !slices.Equal(beside, []string{"a", "victim", "root"}) {
				t.Errorf("beside the root: %q", beside)
			}
		})
	}
}

// unpackRaw is unpackInto for layers of which what they unpack to is not known.
func unpackRaw(t testing.TB, root string, layers ...[]byte) error {
	t.Helper()
	tr, err := openTree(root, os.Geteuid() != 0, small)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.close() }()
	b := &budget{limits: small}
	for _, raw := range layers {
		diff := sum(raw)
		if plain, done, err := decompress(bytes.NewReader(raw)); err == nil {
			if content, err := io.ReadAll(io.LimitReader(plain, 64<<20)); err == nil {
				diff = sum(content)
			}
			done()
		}
		if err := tr.unpack(t.Context(), b, bytes.NewReader(raw), sum(raw), int64(len(raw)), diff); err != nil {
			return err
		}
	}
	return nil
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func zstded(t testing.TB, raw []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(raw, nil)
}

func TestUnpackZstd(t *testing.T) {
	root, err := unpackAll(t, true, zstded(t, layerOf(t, file("a", "1"))))
	if err != nil {
		t.Fatal(err)
	}
	if got := show(t, root); !slices.Equal(got, []string{"a=1"}) {
		t.Errorf("got %q", got)
	}
}

// TestUnpackSparse: holes take nothing in a layer and much of a disk.
func TestUnpackSparse(t *testing.T) {
	root := t.TempDir()
	raw := sparseLayer(2 << 20)
	err := unpackRaw(t, root, raw)
	var no *refused
	if !errors.As(err, &no) || !strings.Contains(no.why, "times its size") {
		t.Errorf("got %v", err)
	}
	root = t.TempDir()
	if err := unpackRaw(t, root, sparseLayer(64<<10)); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(root, "f")); err != nil || info.Size() != 64<<10 {
		t.Errorf("%v, %v", info, err)
	}
}

// sparseLayer is an archive of one file that is a hole, as GNU tar writes it.
func sparseLayer(size int64) []byte {
	var block [512]byte
	copy(block[0:], "f")
	copy(block[100:], "0000644\x00")
	copy(block[108:], "0000000\x00")
	copy(block[116:], "0000000\x00")
	copy(block[124:], "00000000000\x00") // nothing is in the archive
	copy(block[136:], "00000000000\x00")
	block[156] = tar.TypeGNUSparse
	copy(block[257:], "ustar  \x00")
	copy(block[386:], fmt.Sprintf("%011o\x00%011o\x00", size, 0)) // an empty piece at the end
	copy(block[483:], fmt.Sprintf("%011o\x00", size))
	copy(block[148:], "        ")
	total := 0
	for _, b := range block {
		total += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", total))
	return append(block[:], make([]byte, 1024)...)
}
