//go:build linux

package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// someUser is nobody's id on any distribution.
const someUser = 61234

// TestAsOrdinaryUser runs the tests of this package once more without root.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the tests run as an ordinary user already")
	}
	home := t.TempDir()
	for dir := home; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(home, someUser, someUser); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(home, "tree.test")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.v", "-test.short", "-test.count=1", "-rapid.checks=20")
	cmd.Dir = home
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someUser, Gid: someUser}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"TestCopyRandomTrees", "TestCopyKinds", "TestRemoveClosedTrees"} {
		if !strings.Contains(string(out), "--- PASS: "+name+" ") {
			t.Errorf("%s did not run:\n%s", name, out)
		}
	}
}

// told describes everything below dir that a copy has to keep.
func told(t testing.TB, dir string, ids *IDs) map[string]string {
	t.Helper()
	all := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		uid, gid := st.Uid, st.Gid
		if ids != nil {
			uid, gid = uid-ids.From+ids.To, gid-ids.From+ids.To
		}
		said := fmt.Sprintf("%o %d:%d %d.%09d %#x", st.Mode, uid, gid, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			said += fmt.Sprintf(" %d %s", st.Size, digest(path))
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			said += " " + to
		case unix.S_IFSOCK:
			return nil
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			said += " is " + first[st.Ino]
		}
		all[name] = said + attributes(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// digest reads a file, unless that is not allowed.
func digest(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "unreadable"
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

func attributes(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.EACCES) {
		return ""
	}
	if err != nil {
		t.Fatal(path, err)
	}
	var all []string
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			continue // unreadable
		}
		all = append(all, fmt.Sprintf(" %s=%x", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

func same(t testing.TB, want, got map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if want[name] != got[name] {
			t.Errorf("%s is\n%s, want\n%s", name, got[name], want[name])
		}
	}
	for name := range got {
		if _, known := want[name]; !known {
			t.Errorf("%s is new", name)
		}
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// copied copies a tree and returns the copy, which has to equal it.
func copied(t testing.TB, from string) string {
	t.Helper()
	to := from + ".copy"
	want := told(t, from, nil)
	done, err := Copy(t.Context(), from, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, want, told(t, to, nil))
	same(t, want, told(t, from, nil)) // nothing was changed
	if done.Entries != int64(len(want)) {
		t.Errorf("%d entries, want %d", done.Entries, len(want))
	}
	if _, err := os.Lstat(to + ".links"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the folder of links stays")
	}
	return to
}

func TestCopyKinds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "from")
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t,
		os.MkdirAll(at("a/b"), 0o755),
		os.WriteFile(at("a/file"), []byte("text"), 0o640),
		os.WriteFile(at("a/empty"), nil, 0o400),
		os.WriteFile(at("a/closed"), []byte("closed"), 0o600),
		os.Symlink("/etc/passwd", at("out")),
		os.Symlink("absent", at("a/nowhere")),
		os.Link(at("out"), at("a/b/out too")),
		os.Link(at("a/file"), at("a/b/hard")),
		os.Link(at("a/file"), at("again")),
		unix.Mkfifo(at("pipe"), 0o620),
		unix.Mknod(at("whiteout"), unix.S_IFCHR, 0),
		os.Mkdir(at("sticky"), 0o700), os.Chmod(at("sticky"), 0o777|fs.ModeSticky),
		os.WriteFile(at("set"), []byte("#"), 0o755), os.Chmod(at("set"), 0o755|fs.ModeSetuid|fs.ModeSetgid),
		unix.Setxattr(at("a/file"), "user.note", []byte("kept"), 0),
		unix.Setxattr(at("a"), "user.overlay.opaque", []byte("y"), 0),
		os.Chmod(at("a/closed"), 0),
		os.Chtimes(at("a/file"), time.Unix(1, 5), time.Unix(1000000000, 123456789)),
		os.Chtimes(at("a/b"), time.Unix(7, 0), time.Unix(9, 0)),
	)
	listener, err := syscall.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer func() { _ = syscall.Close(listener) }()
	// Through the folder's descriptor, since paths of sockets are short.
	fd, err := unix.Open(dir, unix.O_PATH, 0)
	must(t, err, syscall.Bind(listener, &syscall.SockaddrUnix{Name: self(fd) + "/socket"}), unix.Close(fd))
	if os.Geteuid() == 0 {
		capabilities := make([]byte, 24)
		binary.LittleEndian.PutUint32(capabilities, 0x03000000|1)
		binary.LittleEndian.PutUint32(capabilities[4:], 1<<unix.CAP_NET_BIND_SERVICE)
		binary.LittleEndian.PutUint32(capabilities[20:], 70000)
		must(t,
			unix.Setxattr(at("a/empty"), capability, capabilities, 0),
			unix.Setxattr(at("a/b"), "trusted.overlay.opaque", []byte("y"), 0),
			unix.Lsetxattr(at("out"), "trusted.overlay.origin", []byte("x"), 0),
			unix.Lsetxattr(at("whiteout"), "trusted.overlay.origin", []byte("x"), 0),
			os.Lchown(at("set"), 12, 13), os.Chmod(at("set"), 0o755|fs.ModeSetuid|fs.ModeSetgid),
			os.Lchown(at("out"), 14, 15),
		)
	}
	to := copied(t, dir)
	if _, err := os.Lstat(filepath.Join(to, "socket")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket was copied: %v", err)
	}
	var one, two unix.Stat_t
	must(t, unix.Stat(filepath.Join(to, "a/file"), &one), unix.Stat(at("a/file"), &two))
	if one.Nlink != 3 || one.Ino == two.Ino || two.Nlink != 3 {
		t.Errorf("%d names of inode %d, %d of the original's %d", one.Nlink, one.Ino, two.Nlink, two.Ino)
	}
	must(t, os.Chmod(at("a/closed"), 0o400), os.Chmod(filepath.Join(to, "a/closed"), 0o400))
	if raw, err := os.ReadFile(filepath.Join(to, "a/closed")); err != nil || string(raw) != "closed" {
		t.Errorf("%q, %v", raw, err)
	}
	if _, err := Copy(t.Context(), dir, to, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("copied over a copy: %v", err)
	}
}

// Folders that their own user cannot enter are copied, and closed again.
func TestCopyClosedFolders(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "from")
	must(t,
		os.MkdirAll(filepath.Join(dir, "a/b"), 0o700),
		os.WriteFile(filepath.Join(dir, "a/b/c"), []byte("x"), 0o200),
		os.Chmod(filepath.Join(dir, "a/b"), 0o100), os.Chmod(filepath.Join(dir, "a"), 0),
	)
	to := dir + ".copy"
	// As an ordinary user's process does it; root would be let in anyway.
	ordinary := func(ctx context.Context, to string) error {
		_, err := (&copier{ctx: ctx}).copy(dir, to)
		return err
	}
	must(t, ordinary(t.Context(), to))
	for _, top := range []string{dir, to} {
		for _, c := range []struct {
			name string
			mode fs.FileMode
		}{{"a", 0}, {"a/b", 0o100}, {"a/b/c", 0o200}} {
			path := filepath.Join(top, c.name)
			info, err := os.Lstat(path)
			if err != nil || info.Mode().Perm() != c.mode {
				t.Fatalf("%s: %v, %v", path, info, err)
			}
			must(t, os.Chmod(path, 0o700))
		}
	}
	// And also when the copy goes wrong below.
	must(t, os.Chmod(filepath.Join(dir, "a/b"), 0o100), os.Chmod(filepath.Join(dir, "a"), 0))
	ctx := &endsAfter{Context: t.Context(), looks: 3}
	if err := ordinary(ctx, dir+".part"); !errors.Is(err, context.Canceled) {
		t.Errorf("a copy that was cancelled: %v", err)
	}
	info, err := os.Lstat(filepath.Join(dir, "a"))
	if err != nil || info.Mode().Perm() != 0 {
		t.Errorf("%v, %v", info, err)
	}
	must(t, Remove(t.Context(), dir), Remove(t.Context(), to), Remove(t.Context(), dir+".part"))
}

// endsAfter is a context that ends at a moment that does not hang on time.
type endsAfter struct {
	context.Context //nolint:containedctx // a test's
	looks           int
}

func (e *endsAfter) Err() error {
	if e.looks--; e.looks < 0 {
		return context.Canceled
	}
	return nil
}

func TestCopyRandomTrees(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		top := filepath.Join(dir, fmt.Sprint(n))
		must(t, os.Mkdir(top, 0o755))
		folders, files := []string{top}, []string{}
		name := func() string {
			in := rapid.SampledFrom(folders).Draw(rt, "in")
			return filepath.Join(in, rapid.StringMatching(`[a-c \n'"*ä\\-]{1,4}`).Draw(rt, "name"))
		}
		for range rapid.IntRange(0, 40).Draw(rt, "entries") {
			path := name()
			if _, err := os.Lstat(path); err == nil {
				continue
			}
			mode := fs.FileMode(rapid.Uint32Range(0, 0o777).Draw(rt, "mode"))
			switch kind := rapid.IntRange(0, 6).Draw(rt, "kind"); kind {
			case 0, 1:
				must(t, os.Mkdir(path, 0o700))
				folders = append(folders, path)
			case 2:
				must(t, os.Symlink(rapid.SampledFrom([]string{"/", "..", "a", "/etc/shadow", strings.Repeat("x/", 2000)}).Draw(rt, "to"), path))
			case 3:
				must(t, unix.Mkfifo(path, 0o600), os.Chmod(path, mode))
			case 4:
				if len(files) > 0 {
					must(t, os.Link(rapid.SampledFrom(files).Draw(rt, "file"), path))
				}
			default:
				must(t, os.WriteFile(path, rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(rt, "content"), 0o600))
				if rapid.Bool().Draw(rt, "hole") {
					f, err := os.OpenFile(path, os.O_WRONLY, 0)
					must(t, err)
					_, err = f.WriteAt([]byte("end"), rapid.Int64Range(0, 1<<20).Draw(rt, "at"))
					must(t, err, f.Truncate(rapid.Int64Range(0, 1<<21).Draw(rt, "size")), f.Close())
				}
				must(t, os.Chmod(path, mode|0o400), os.Chtimes(path, time.Unix(1, 1), time.Unix(rapid.Int64Range(0, 1<<31).Draw(rt, "time"), 7)))
				files = append(files, path)
			}
		}
		to := copied(t, top)
		must(t, Remove(t.Context(), top), Remove(t.Context(), to))
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Fatal(left, err)
		}
	})
}

// Holes stay holes, whichever way the file system offers to copy.
func TestCopyHoles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sparse")
	f, err := os.Create(path)
	must(t, err)
	for _, at := range []int64{0, 10 << 20, 200 << 20} {
		_, err := f.WriteAt(bytes.Repeat([]byte("data"), 1024), at)
		must(t, err)
	}
	must(t, f.Truncate(230<<20))
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	for name, c := range map[string]*copier{
		"any":   {ctx: t.Context()},
		"range": {ctx: t.Context(), noReflink: true},
		"plain": {ctx: t.Context(), noReflink: true, noRange: true},
	} {
		to, err := os.Create(filepath.Join(dir, name))
		must(t, err, c.content(int(f.Fd()), int(to.Fd()), &st))
		var made unix.Stat_t
		must(t, unix.Fstat(int(to.Fd()), &made), to.Close())
		if made.Size != st.Size || made.Blocks > st.Blocks+16 {
			t.Errorf("%s: %d bytes in %d blocks, want %d in %d", name, made.Size, made.Blocks, st.Size, st.Blocks)
		}
		if digest(to.Name()) != digest(path) {
			t.Errorf("%s: another content", name)
		}
	}
	// It became shorter while it was copied, and larger: what was told first counts.
	must(t, f.Truncate(5))
	for _, c := range []*copier{{ctx: t.Context()}, {ctx: t.Context(), noReflink: true, noRange: true}} {
		to, err := os.Create(filepath.Join(dir, "short"))
		must(t, err)
		c.noReflink = true
		st.Blocks = st.Size
		must(t, c.content(int(f.Fd()), int(to.Fd()), &st))
		if info, err := to.Stat(); err != nil || info.Size() != st.Size {
			t.Error(info, err)
		}
		must(t, to.Close())
	}
	must(t, f.Close())
}

// inMemory is a folder on another file system, and a quicker one.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "v")
	must(t, err)
	t.Cleanup(func() { must(t, Remove(context.Background(), dir)) })
	return dir
}

// Between two file systems nothing but reading and writing is left.
func TestCopyToAnotherFileSystem(t *testing.T) {
	from := filepath.Join(t.TempDir(), "from")
	must(t, os.Mkdir(from, 0o750), os.WriteFile(filepath.Join(from, "f"), bytes.Repeat([]byte("x"), 3<<20), 0o640),
		os.Link(filepath.Join(from, "f"), filepath.Join(from, "g")))
	to := filepath.Join(inMemory(t), "to")
	_, err := Copy(t.Context(), from, to, nil)
	must(t, err)
	same(t, told(t, from, nil), told(t, to, nil))
}

func TestCopyShiftsOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user has one id")
	}
	from := filepath.Join(t.TempDir(), "from")
	ids := &IDs{From: 100000, To: 300000, Count: 65536}
	path := filepath.Join(from, "f")
	list := []byte{2, 0, 0, 0} // version 2, then the owner, a user, the group, the mask, others
	for _, e := range [][3]uint32{{0x01, 6, 1<<32 - 1}, {0x02, 4, 100007}, {0x04, 4, 1<<32 - 1}, {0x08, 4, 100008}, {0x10, 6, 1<<32 - 1}, {0x20, 0, 1<<32 - 1}} {
		list = binary.LittleEndian.AppendUint16(list, uint16(e[0]))
		list = binary.LittleEndian.AppendUint16(list, uint16(e[1]))
		list = binary.LittleEndian.AppendUint32(list, e[2])
	}
	capabilities := make([]byte, 24)
	binary.LittleEndian.PutUint32(capabilities, 0x03000000|1)
	binary.LittleEndian.PutUint32(capabilities[4:], 1)
	binary.LittleEndian.PutUint32(capabilities[20:], 100000)
	must(t,
		os.Mkdir(from, 0o755), os.Lchown(from, 100000, 100000),
		os.WriteFile(path, []byte("x"), 0o755), os.Lchown(path, 100001, 165535), os.Chmod(path, 0o755|fs.ModeSetuid),
		unix.Setxattr(path, accessList, list, 0), unix.Setxattr(path, capability, capabilities, 0),
		unix.Setxattr(from, newFiles, list, 0),
		os.Symlink("x", filepath.Join(from, "l")), os.Lchown(filepath.Join(from, "l"), 100005, 100006),
	)
	to := from + ".copy"
	_, err := Copy(t.Context(), from, to, ids)
	must(t, err)
	value := make([]byte, 64)
	for _, c := range []struct {
		path, name string
		at         []int
		want       []uint32
	}{{to + "/f", accessList, []int{16, 32}, []uint32{300007, 300008}}, {to, newFiles, []int{16, 32}, []uint32{300007, 300008}}, {to + "/f", capability, []int{20}, []uint32{300000}}} {
		n, err := unix.Getxattr(c.path, c.name, value)
		must(t, err)
		for i, at := range c.at {
			if id := binary.LittleEndian.Uint32(value[at:n]); id != c.want[i] {
				t.Errorf("%s of %s names %d, want %d", c.name, c.path, id, c.want[i])
			}
		}
	}
	var st unix.Stat_t
	if must(t, unix.Stat(to+"/f", &st)); st.Uid != 300001 || st.Gid != 365535 || st.Mode&0o7777 != 0o4660 {
		t.Errorf("%d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	if must(t, unix.Lstat(to+"/l", &st)); st.Uid != 300005 || st.Gid != 300006 {
		t.Errorf("%d:%d", st.Uid, st.Gid)
	}
	for name, spoil := range map[string]func(path string) error{
		"below":  func(path string) error { return os.Lchown(path, 99999, 100000) },
		"above":  func(path string) error { return os.Lchown(path, 100000, 165536) },
		"root":   func(path string) error { return os.Lchown(path, 0, 0) },
		"entry":  func(path string) error { return unix.Setxattr(path, accessList, swapID(list, 100007, 7), 0) },
		"capped": func(path string) error { return unix.Setxattr(path, capability, swapID(capabilities, 100000, 7), 0) },
	} {
		must(t, os.WriteFile(filepath.Join(from, name), nil, 0o600), os.Lchown(filepath.Join(from, name), 100000, 100000), spoil(filepath.Join(from, name)))
		if _, err := Copy(t.Context(), from, from+"."+name, ids); !errors.Is(err, ErrOutside) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, os.Remove(filepath.Join(from, name)))
	}
}

func swapID(value []byte, from, to uint32) []byte {
	return bytes.Replace(value, binary.LittleEndian.AppendUint32(nil, from), binary.LittleEndian.AppendUint32(nil, to), 1)
}

// deep makes folders in folders, with a file in the lowest.
func deep(t testing.TB, top string, levels int) {
	t.Helper()
	at, err := unix.Open(top, unix.O_PATH, 0)
	must(t, err)
	for range levels {
		must(t, unix.Mkdirat(at, "d", 0o700), unix.Mknodat(at, "f", unix.S_IFREG|0o600, 0))
		down, err := unix.Openat(at, "d", unix.O_PATH, 0)
		must(t, err, unix.Close(at))
		at = down
	}
	must(t, unix.Mknodat(at, "lowest", unix.S_IFREG|0o600, 0), unix.Close(at))
}

// bottom counts the levels of such a tree.
func bottom(t testing.TB, top string) int {
	t.Helper()
	at, err := unix.Open(top, unix.O_PATH, 0)
	must(t, err)
	for levels := 0; ; levels++ {
		down, err := unix.Openat(at, "d", unix.O_PATH, 0)
		if errors.Is(err, unix.ENOENT) {
			var st unix.Stat_t
			must(t, unix.Fstatat(at, "lowest", &st, 0), unix.Close(at))
			return levels
		}
		must(t, err, unix.Close(at))
		at = down
	}
}

func TestCopyAndRemoveDeepTrees(t *testing.T) {
	const levels = 5000
	top := filepath.Join(inMemory(t), "from")
	must(t, os.Mkdir(top, 0o755))
	deep(t, top, levels)
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 160, Max: before.Max}))
	done, err := Copy(t.Context(), top, top+".copy", nil)
	removed := errors.Join(Remove(t.Context(), top), err)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before), removed)
	if done.Entries != 2*levels+2 {
		t.Errorf("%d entries", done.Entries)
	}
	if n := bottom(t, top+".copy"); n != levels {
		t.Errorf("the copy has %d levels", n)
	}
	must(t, Remove(t.Context(), top+".copy"))
	if left, err := os.ReadDir(filepath.Dir(top)); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

func TestCopyEndlessTree(t *testing.T) {
	c := &copier{ctx: t.Context(), stack: make([]*level, deepest)}
	if err := c.enter(-1, unix.Stat_t{}, -1, "d"); !errors.Is(err, ErrTooDeep) {
		t.Error(err)
	}
}

func TestCopyHugeFolder(t *testing.T) {
	top := filepath.Join(inMemory(t), "from")
	must(t, os.Mkdir(top, 0o755))
	for i := range 20000 {
		must(t, unix.Mknod(filepath.Join(top, fmt.Sprintf("%0200d", i)), unix.S_IFREG|0o600, 0))
	}
	done, err := Copy(t.Context(), top, top+".copy", nil)
	if err != nil || done.Entries != 20001 {
		t.Errorf("%+v, %v", done, err)
	}
	names, err := os.ReadDir(top + ".copy")
	if err != nil || len(names) != 20000 {
		t.Error(len(names), err)
	}
	must(t, Remove(t.Context(), top), Remove(t.Context(), top+".copy"))
}

// What leads out of the tree is not followed, when it is there from the start and
// when it appears in the middle.
func TestCopyStaysInTheTree(t *testing.T) {
	dir := t.TempDir()
	top, secret := filepath.Join(dir, "from"), filepath.Join(dir, "secret")
	must(t, os.Mkdir(secret, 0o755), os.WriteFile(filepath.Join(secret, "key"), []byte("secret"), 0o600))
	must(t, os.Symlink(secret, top))
	if _, err := Copy(t.Context(), top, top+".copy", nil); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("the tree is a link: %v", err)
	}
	must(t, os.Remove(top), os.Mkdir(top, 0o755))
	deep(t, top, 3*awake)
	c := &copier{ctx: t.Context(), root: os.Geteuid() == 0}
	must(t, c.open(top, top+".moved", top+".moved.links"))
	for len(c.stack) < 2*awake {
		must(t, c.step())
	}
	// The folder that is asleep longest and the lowest's forebear goes elsewhere.
	down := filepath.Join(top, strings.Repeat("d/", awake))
	must(t, os.Rename(down, filepath.Join(secret, "d")))
	if err := c.run(); err == nil || !strings.Contains(err.Error(), "was moved meanwhile") {
		t.Errorf("it went on: %v", err)
	}
	must(t, unix.Close(c.links))
	if raw, err := exec.Command("grep", "-r", "secret", top+".moved").CombinedOutput(); err == nil {
		t.Errorf("%s", raw)
	}
	for fd := range 1000 { // what is open is the test's
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && fd > 2 {
			if path, _ := os.Readlink(self(fd)); strings.HasPrefix(path, dir) {
				t.Errorf("%d is open: %s", fd, path)
			}
		}
	}
}

func TestCopyLeavesMountsOut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts are root's")
	}
	top := filepath.Join(t.TempDir(), "from")
	at := filepath.Join(top, "mounted")
	must(t, os.MkdirAll(at, 0o755), unix.Mount("tmpfs", at, "tmpfs", 0, "size=1m"))
	defer func() { must(t, unix.Unmount(at, unix.MNT_DETACH)) }()
	if _, err := Copy(t.Context(), top, top+".copy", nil); !errors.Is(err, unix.EXDEV) {
		t.Error(err)
	}
}

func TestCopyLeavesDevicesOut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("devices are root's")
	}
	top := filepath.Join(t.TempDir(), "from")
	must(t, os.Mkdir(top, 0o755),
		unix.Mknod(filepath.Join(top, "null"), unix.S_IFCHR, int(unix.Mkdev(1, 3))), unix.Mknod(filepath.Join(top, "disk"), unix.S_IFBLK, int(unix.Mkdev(7, 0))))
	done, err := Copy(t.Context(), top, top+".copy", nil)
	if left, _ := os.ReadDir(top + ".copy"); err != nil || len(left) > 0 || done.Entries != 1 {
		t.Error(left, done, err)
	}
}

func TestCopyOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts are root's")
	}
	dir := t.TempDir()
	top, small := filepath.Join(dir, "from"), filepath.Join(dir, "small")
	must(t, os.Mkdir(top, 0o755), os.Mkdir(small, 0o755), os.WriteFile(filepath.Join(top, "f"), make([]byte, 4<<20), 0o600),
		unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"))
	defer func() { must(t, unix.Unmount(small, unix.MNT_DETACH)) }()
	to := filepath.Join(small, "to")
	if _, err := Copy(t.Context(), top, to, nil); !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
	must(t, Remove(t.Context(), to), Remove(t.Context(), to+".links"))
	if left, err := os.ReadDir(small); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// A file of as many names as there can be.
func TestCopyManyNames(t *testing.T) {
	if testing.Short() {
		t.Skip("a file of 65000 names takes seconds")
	}
	top := filepath.Join(t.TempDir(), "from")
	first := filepath.Join(top, "0")
	must(t, os.Mkdir(top, 0o755), os.WriteFile(first, []byte("x"), 0o600))
	names := 1
	for ; names < 70000; names++ {
		err := os.Link(first, filepath.Join(top, fmt.Sprint(names)))
		if errors.Is(err, unix.EMLINK) {
			break
		}
		must(t, err)
	}
	done, err := Copy(t.Context(), top, top+".copy", nil)
	if err != nil || done.Entries != int64(names)+1 {
		t.Fatal(done, err)
	}
	var st unix.Stat_t
	if must(t, unix.Stat(filepath.Join(top+".copy", "0"), &st)); fmt.Sprint(st.Nlink) != fmt.Sprint(names) {
		t.Errorf("%d names, want %d", st.Nlink, names)
	}
}

// What is in the way of a copy is never written over.
func TestCopyOverNothing(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	must(t, os.Mkdir(from, 0o755), os.Mkdir(to, 0o755),
		os.WriteFile(filepath.Join(from, "file"), nil, 0o600), os.Symlink("x", filepath.Join(from, "link")),
		unix.Mkfifo(filepath.Join(from, "pipe"), 0o600), unix.Mknod(filepath.Join(from, "whiteout"), unix.S_IFCHR, 0))
	target, err := unix.Open(to, folder, 0)
	must(t, err)
	defer func() { must(t, unix.Close(target)) }()
	source, err := unix.Open(from, folder, 0)
	must(t, err)
	defer func() { must(t, unix.Close(source)) }()
	c := &copier{ctx: t.Context()}
	for _, name := range []string{"file", "link", "pipe", "whiteout"} {
		must(t, os.WriteFile(filepath.Join(to, name), []byte("there"), 0o600))
		fd, st, err := c.look(source, name)
		must(t, err)
		if err := c.leaf(fd, &st, target, name); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, unix.Close(fd))
		if raw, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(raw) != "there" {
			t.Errorf("%s: %q, %v", name, raw, err)
		}
	}
	if _, _, err := c.look(source, "absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// A mode, an owner or times that cannot be set are told.
	var st unix.Stat_t
	if err := c.describe(source, &st, target, "absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := (&copier{root: true}).describe(source, &st, target, "absent"); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
}

func TestCopyRefusals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600), os.Mkdir(filepath.Join(dir, "from"), 0o755))
	for what, c := range map[string]struct{ from, to string }{
		"absent":             {"absent", "to"},
		"no folder":          {"file", "to"},
		"below a file":       {"file/x", "to"},
		"to below a file":    {"from", "file/to"},
		"to below no folder": {"from", "absent/to"},
	} {
		if _, err := Copy(t.Context(), filepath.Join(dir, c.from), filepath.Join(dir, c.to), nil); err == nil {
			t.Errorf("%s: copied", what)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Copy(ctx, filepath.Join(dir, "from"), filepath.Join(dir, "to"), nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func BenchmarkCopy(b *testing.B) {
	top := filepath.Join(b.TempDir(), "from")
	for i := range 2000 {
		dir := filepath.Join(top, fmt.Sprint(i%50))
		must(b, os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, 10000), 0o644))
	}
	for b.Loop() {
		_, err := Copy(b.Context(), top, top+".copy", nil)
		b.StopTimer()
		must(b, err, Remove(b.Context(), top+".copy"))
		b.StartTimer()
	}
}
