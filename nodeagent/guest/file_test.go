//go:build linux

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

func (r *rig) path(name string) string { return filepath.Join(r.opts.ProjectDir, name) }

func (r *rig) put(name, text string) {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Dir(r.path(name)), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.path(name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) text(name string) string {
	r.t.Helper()
	data, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(data)
}

func (r *rig) symlink(target, name string) {
	r.t.Helper()
	if err := os.Symlink(target, r.path(name)); err != nil {
		r.t.Fatal(err)
	}
}

func TestPathsAreConfined(t *testing.T) {
	r := newRig(t)
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.symlink(outside, "absolute")
	r.symlink("../../escape", "relative")
	r.symlink(filepath.Dir(outside), "folder")
	r.symlink("loop", "loop")
	r.put("in/file", "inside")
	r.symlink("in/file", "fine")
	for path, target := range map[string]string{
		"absolute": outside, "relative": "../../escape", "folder/secret": filepath.Dir(outside), "../x": "../x", "in/../../x": "in/../../x",
	} {
		_, err := r.file.ReadFile(t.Context(), &guestv1.ReadFileRequest{Path: path})
		wantCode(t, err, api.PermissionDenied)
		if e := api.From(err); !strings.Contains(e.Message, path) || !strings.Contains(e.Message, target) || e.Next == "" {
			t.Errorf("%s: %q does not name %s", path, e.Message, target)
		}
		_, err = r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: path, Data: []byte("x"), Parents: true})
		wantCode(t, err, api.PermissionDenied)
		_, err = r.file.EditFile(t.Context(), &guestv1.EditFileRequest{Path: path, OldText: "s", NewText: "x"})
		wantCode(t, err, api.PermissionDenied)
	}
	if data, _ := os.ReadFile(outside); string(data) != "secret" {
		t.Fatalf("the file outside reads %q", data)
	}
	for _, path := range []string{"folder", "../x"} {
		_, err := r.file.ListFiles(t.Context(), &guestv1.ListFilesRequest{Path: path})
		wantCode(t, err, api.PermissionDenied)
		_, err = r.file.SearchFiles(t.Context(), &guestv1.SearchFilesRequest{Path: path, Pattern: "x"})
		wantCode(t, err, api.PermissionDenied)
	}
	_, err := r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "loop"})
	wantCode(t, err, api.FailedPrecondition)
	_, err = r.file.StatFile(t.Context(), &guestv1.StatFileRequest{Path: strings.Repeat("x", 5000)})
	wantCode(t, err, api.InvalidArgument)
	_, err = r.file.StatFile(t.Context(), &guestv1.StatFileRequest{Path: strings.Repeat("x", 300)})
	wantCode(t, err, api.InvalidArgument)

	// An absolute path reaches everything, and a link inside works.
	for _, path := range []string{outside, r.path("absolute"), "fine"} {
		if _, err := r.file.ReadFile(t.Context(), &guestv1.ReadFileRequest{Path: path}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "fine", Data: []byte("new")}); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Lstat(r.path("fine")); info.Mode()&os.ModeSymlink == 0 || r.text("in/file") != "new" {
		t.Error("a write did not go through the link")
	}
	if _, err := r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: r.path("absolute"), Data: []byte("new")}); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(outside); string(data) != "new" {
		t.Errorf("through the absolute link: %q", data)
	}
}

func TestReadAndStat(t *testing.T) {
	r := newRig(t)
	r.put("file", "0123456789")
	r.symlink("file", "link")
	if err := syscall.Mkfifo(r.path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		offset, limit uint64
		want          string
		end           bool
	}{{0, 0, "0123456789", true}, {2, 3, "234", false}, {7, 3, "789", true}, {99, 1, "", true}} {
		resp, err := r.file.ReadFile(t.Context(), &guestv1.ReadFileRequest{Path: "file", Offset: c.offset, Limit: c.limit})
		if err != nil || string(resp.GetData()) != c.want || resp.GetEnd() != c.end || resp.GetInfo().GetSize() != 10 {
			t.Errorf("%+v: %v, %v", c, resp, err)
		}
	}
	if resp, err := r.file.ReadFile(t.Context(), &guestv1.ReadFileRequest{Path: "/proc/self/status"}); err != nil || len(resp.GetData()) == 0 {
		t.Errorf("proc: %v, %v", resp, err)
	}
	for path, code := range map[string]api.Code{"fifo": api.FailedPrecondition, "/dev/null": api.FailedPrecondition, ".": api.FailedPrecondition, "missing": api.NotFound, "file/x": api.FailedPrecondition} {
		_, err := r.file.ReadFile(t.Context(), &guestv1.ReadFileRequest{Path: path})
		wantCode(t, err, code)
	}
	_, err := r.file.ReadFile(t.Context(), &guestv1.ReadFileRequest{Path: "file", Offset: 1 << 63})
	wantCode(t, err, api.InvalidArgument)
	for path, kind := range map[string]guestv1.FileType{
		"file": guestv1.FileType_FILE_TYPE_REGULAR, "link": guestv1.FileType_FILE_TYPE_SYMLINK,
		"": guestv1.FileType_FILE_TYPE_DIRECTORY, "fifo": guestv1.FileType_FILE_TYPE_OTHER,
	} {
		info, err := r.file.StatFile(t.Context(), &guestv1.StatFileRequest{Path: path})
		if err != nil || info.GetType() != kind || info.GetOwner() == "" {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	info, err := r.file.StatFile(t.Context(), &guestv1.StatFileRequest{Path: "link", Follow: true})
	if err != nil || info.GetType() != guestv1.FileType_FILE_TYPE_REGULAR || info.GetMode() != 0o644 {
		t.Errorf("followed: %v, %v", info, err)
	}
	_, err = r.file.StatFile(t.Context(), &guestv1.StatFileRequest{Path: "missing"})
	wantCode(t, err, api.NotFound)
}

func TestWrite(t *testing.T) {
	r := newRig(t)
	if _, err := r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "a/b/c.sh", Data: []byte("one"), Mode: 0o4755, Parents: true}); err != nil {
		t.Fatal(err)
	}
	info, err := r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "a/b/c.sh", Data: []byte("two\x00\xff"), Mode: 0o600})
	if err != nil || info.GetMode() != 0o4755 || info.GetSize() != 5 || r.text("a/b/c.sh") != "two\x00\xff" {
		t.Errorf("got %v, %v", info, err)
	}
	if info, err = r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "a/b/c.sh", Data: []byte("!"), Append: true}); err != nil || info.GetSize() != 6 {
		t.Errorf("append: %v, %v", info, err)
	}
	if info, err = r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "new", Data: []byte("x"), Append: true}); err != nil || info.GetMode() != 0o644 {
		t.Errorf("append to a new file: %v, %v", info, err)
	}
	if _, err := r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: r.path("deep/er/file"), Parents: true}); err != nil {
		t.Error(err)
	}
	if err := syscall.Mkfifo(r.path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		req  *guestv1.WriteFileRequest
		code api.Code
	}{
		{&guestv1.WriteFileRequest{Path: "no/parent"}, api.NotFound},
		{&guestv1.WriteFileRequest{Path: "a"}, api.FailedPrecondition},
		{&guestv1.WriteFileRequest{Path: "fifo"}, api.FailedPrecondition},
		{&guestv1.WriteFileRequest{Path: "fifo", Append: true}, api.FailedPrecondition},
		{&guestv1.WriteFileRequest{Path: "new/x", Parents: true}, api.FailedPrecondition},
		{&guestv1.WriteFileRequest{Path: "x", Mode: 1 << 20}, api.InvalidArgument},
		{&guestv1.WriteFileRequest{Path: "x", Data: make([]byte, writeMost+1)}, api.InvalidArgument},
	} {
		_, err := r.file.WriteFile(t.Context(), c.req)
		wantCode(t, err, c.code)
	}
	left, err := filepath.Glob(r.path(".vendetta-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestNewFilesBelongToTheUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // an ordinary user cannot give files away
	}
	r := newRig(t, func(o *Options) { o.DefaultUser = "4242:4243" })
	if _, err := r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "a/b", Parents: true}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "a/b"} {
		info, err := os.Stat(r.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 4242 || stat.Gid != 4243 {
			t.Errorf("%s belongs to %d:%d", name, stat.Uid, stat.Gid)
		}
	}
	unknown := newRig(t, func(o *Options) { o.DefaultUser = "nobody-here" })
	_, err := unknown.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "a"})
	wantCode(t, err, api.InvalidArgument)
}

func TestEdit(t *testing.T) {
	r := newRig(t)
	r.put("f", "one\ntwo\n\tthree\ntwo\n")
	r.put("crlf", "a\r\nb\r\n")
	resp, err := r.file.EditFile(t.Context(), &guestv1.EditFileRequest{Path: "f", OldText: "\tthree", NewText: "3"})
	if err != nil || resp.GetReplaced() != 1 || resp.GetLine() != 3 || r.text("f") != "one\ntwo\n3\ntwo\n" {
		t.Fatalf("got %v, %v, %q", resp, err, r.text("f"))
	}
	_, err = r.file.EditFile(t.Context(), &guestv1.EditFileRequest{Path: "f", OldText: "two", NewText: "2"})
	wantCode(t, err, api.FailedPrecondition)
	if !strings.Contains(err.Error(), "2 times, at lines 2, 4") {
		t.Errorf("got %v", err)
	}
	resp, err = r.file.EditFile(t.Context(), &guestv1.EditFileRequest{Path: "f", OldText: "two", NewText: "2", All: true})
	if err != nil || resp.GetReplaced() != 2 || resp.GetLine() != 2 || r.text("f") != "one\n2\n3\n2\n" {
		t.Errorf("all: %v, %v, %q", resp, err, r.text("f"))
	}
	for _, c := range []struct {
		path, old string
		code      api.Code
		next      string
	}{
		{"f", "nowhere", api.FailedPrecondition, "read the file"},
		{"f", "  one\nelse", api.FailedPrecondition, "line 1"},
		{"crlf", "a\nb", api.FailedPrecondition, "CR LF"},
		{"f", "", api.InvalidArgument, ""},
		{"missing", "x", api.NotFound, ""},
		{".", "x", api.FailedPrecondition, ""},
	} {
		_, err := r.file.EditFile(t.Context(), &guestv1.EditFileRequest{Path: c.path, OldText: c.old, NewText: "y"})
		wantCode(t, err, c.code)
		if !strings.Contains(api.From(err).Next, c.next) {
			t.Errorf("%s %q: next %q", c.path, c.old, api.From(err).Next)
		}
	}
	if got := linesOf([]byte(strings.Repeat("x\n", 20)), []byte("x")); !strings.HasSuffix(got, "10, ...") {
		t.Errorf("lines %q", got)
	}
	if err := os.Truncate(r.path("f"), editMost+1); err != nil {
		t.Fatal(err)
	}
	_, err = r.file.EditFile(t.Context(), &guestv1.EditFileRequest{Path: "f", OldText: "one", NewText: "y"})
	wantCode(t, err, api.FailedPrecondition)
	r.put("grow", strings.Repeat("x", 4<<10))
	_, err = r.file.EditFile(t.Context(), &guestv1.EditFileRequest{Path: "grow", OldText: "x", NewText: strings.Repeat("y", 5<<10), All: true})
	wantCode(t, err, api.InvalidArgument)
}

func TestList(t *testing.T) {
	r := newRig(t)
	r.put("b/c/d", "")
	r.put("a", "12")
	r.symlink("b", "z")
	names := func(req *guestv1.ListFilesRequest) (string, bool) {
		resp, err := r.file.ListFiles(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range resp.GetFiles() {
			names = append(names, f.GetPath())
		}
		return strings.Join(names, " "), resp.GetTruncated()
	}
	for want, req := range map[string]*guestv1.ListFilesRequest{
		"a b z":           {},
		"a b b/c z":       {Path: ".", Depth: 1},
		"a b b/c b/c/d z": {Path: r.opts.ProjectDir, Depth: 9},
		"c":               {Path: "b"},
	} {
		if got, truncated := names(req); got != want || truncated {
			t.Errorf("%v: %q", req, got)
		}
	}
	if got, truncated := names(&guestv1.ListFilesRequest{Limit: 2}); got != "a b" || !truncated {
		t.Errorf("limited: %q %v", got, truncated)
	}
	for path, code := range map[string]api.Code{"a": api.FailedPrecondition, "missing": api.NotFound} {
		_, err := r.file.ListFiles(t.Context(), &guestv1.ListFilesRequest{Path: path})
		wantCode(t, err, code)
	}
}

func TestSearch(t *testing.T) {
	r := newRig(t)
	r.put("main.go", "package main\n// Needle\n")
	r.put("cmd/x/y.go", "needle here\n"+strings.Repeat("é", 400)+"needle\n")
	r.put(".git/config", "needle\n")
	r.put("binary", "needle\x00")
	r.put("long", strings.Repeat("x", searchLineMost+1)+"\nneedle\n")
	r.put("latin1", "needle \xe9\n")
	for _, c := range []struct {
		req  *guestv1.SearchFilesRequest
		want string
	}{
		{&guestv1.SearchFilesRequest{Pattern: "needle"}, "cmd/x/y.go:1 cmd/x/y.go:2 latin1:1"},
		{&guestv1.SearchFilesRequest{Pattern: "^// needle$", IgnoreCase: true}, "main.go:2"},
		{&guestv1.SearchFilesRequest{Pattern: "needle", Hidden: true, Glob: "**/config"}, ".git/config:1"},
		{&guestv1.SearchFilesRequest{Pattern: "needle", Glob: "*.go", Path: "cmd", Limit: 1}, "cmd/x/y.go:1 truncated"},
		{&guestv1.SearchFilesRequest{Pattern: "needle", Path: "latin1"}, "latin1:1"},
		{&guestv1.SearchFilesRequest{Pattern: "needle", Path: "cmd/x/y.go", Limit: 1}, "cmd/x/y.go:1 truncated"},
	} {
		resp, err := r.file.SearchFiles(t.Context(), c.req)
		if err != nil {
			t.Errorf("%v: %v", c.req, err)
			continue
		}
		var got []string
		for _, m := range resp.GetMatches() {
			got = append(got, m.GetPath()+":"+string('0'+m.GetLine()))
			if len(m.GetText()) > matchTextMost+2 {
				t.Errorf("text of %d bytes", len(m.GetText()))
			}
		}
		if resp.GetTruncated() {
			got = append(got, "truncated")
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%v: got %v, want %s", c.req, got, c.want)
		}
	}
	if err := os.Truncate(r.path("long"), searchFileMost+1); err != nil {
		t.Fatal(err)
	}
	if resp, err := r.file.SearchFiles(t.Context(), &guestv1.SearchFilesRequest{Pattern: "x", Path: "long"}); err != nil || resp.GetFilesSearched() != 0 {
		t.Errorf("a large file: %v, %v", resp, err)
	}
	if err := syscall.Mkfifo(r.path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, code := range map[string]api.Code{"missing": api.NotFound, "fifo": api.FailedPrecondition} {
		_, err := r.file.SearchFiles(t.Context(), &guestv1.SearchFilesRequest{Pattern: "x", Path: path})
		wantCode(t, err, code)
	}
	for _, req := range []*guestv1.SearchFilesRequest{{}, {Pattern: "("}, {Pattern: "x", Glob: "[z-a]"}, {Pattern: "x", Glob: "["}, {Pattern: "x", Glob: strings.Repeat("*", globMost+1)}} {
		_, err := r.file.SearchFiles(t.Context(), req)
		wantCode(t, err, api.InvalidArgument)
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"", "any/thing", true}, {"*.go", "a/b.go", true}, {"*.go", "a/b.goo", false}, {"cmd/**", "cmd/a/b", true}, {"cmd/*", "cmd/a/b", false},
		{"**/x", "x", true}, {"**/x", "a/b/x", true}, {"a?c", "abc", true}, {"a?c/", "a/c/", false}, {"[a-c]x", "bx", true},
		{"[!a-c]x", "bx", false}, {"./a/*.c", "a/x.c", true}, {"a.b", "aXb", false}, {"[[]", "[", true}, {`a\b`, `a\b`, true},
	} {
		g, err := newGlob(c.pattern)
		if err != nil || g.match(c.name) != c.want {
			t.Errorf("%q on %q: want %v, %v", c.pattern, c.name, c.want, err)
		}
	}
}

func FuzzGlob(f *testing.F) {
	f.Add("**/[!a-b]*?.go", "a/b.go")
	f.Fuzz(func(_ *testing.T, pattern, name string) {
		if g, err := newGlob(pattern); err == nil {
			g.match(name)
		}
	})
}
