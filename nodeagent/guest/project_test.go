//go:build linux

package guest

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// gitEnv makes commits possible anywhere.
var gitEnv = map[string]string{"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "GIT_CONFIG_NOSYSTEM": "1"}

func (r *rig) git(script string) {
	r.t.Helper()
	got := r.exec(&guestv1.StartRequest{Argv: []string{"sh", "-ec", script}, Env: gitEnv})
	if got.ended.GetExitCode() != 0 {
		r.t.Fatalf("%s: %s%s", script, got.out, got.err)
	}
}

func (r *rig) status(limit int32) *guestv1.ProjectStatusResponse {
	r.t.Helper()
	resp, err := r.project.ProjectStatus(r.t.Context(), &guestv1.ProjectStatusRequest{Limit: limit})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

// imported is a rig with a small repository as its project.
func imported(t *testing.T) *rig {
	t.Helper()
	source := newRig(t)
	source.put("kept", "1")
	source.put("changed", "1")
	source.put("removed", "1")
	source.put(".gitignore", "ignored/\n*.log\n")
	source.git("git init -q -b main; git add .; git commit -qm first; git tag v1; git pack-refs --all; git branch other")
	stream, err := source.file.Export(t.Context(), &guestv1.ExportRequest{Path: "."})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	unpackInto(t, dir, exported(stream))
	r := newRig(t)
	if _, err := r.send(&guestv1.ImportBegin{Project: true}, tarOf(t, filepath.Join(dir, "project"))); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestProjectStatus(t *testing.T) {
	r := imported(t)
	st := r.status(0)
	if !st.GetImported() || !strings.HasPrefix(st.GetGitVersion(), "git version") || st.GetBranch() != "main" || len(st.GetCommit()) != 40 || st.GetChangedFilesTotal() != 0 || st.GetNewCommitsTotal() != 0 {
		t.Fatalf("after the import: %v", st)
	}
	r.put("changed", "22")
	r.put("new/deep/file", "x")
	r.put("ignored/much/file", "x")
	r.put("trace.log", "x")
	if err := os.Remove(r.path("removed")); err != nil {
		t.Fatal(err)
	}
	r.git("git commit -qam second; git checkout -q -b side; git commit -q --allow-empty -m third")
	st = r.status(0)
	if !slices.Equal(st.GetChangedFiles(), []string{"changed", "new/deep/file", "removed"}) || st.GetChangedFilesTotal() != 3 {
		t.Errorf("changed %v", st.GetChangedFiles())
	}
	if st.GetNewCommitsTotal() != 2 || len(st.GetNewCommits()) != 2 || !strings.HasSuffix(st.GetNewCommits()[0], " third") || st.GetBranch() != "side" {
		t.Errorf("commits %v", st)
	}
	if st = r.status(1); len(st.GetChangedFiles()) != 1 || len(st.GetNewCommits()) != 1 || st.GetNewCommitsTotal() != 2 {
		t.Errorf("limited: %v", st)
	}
	// The same without git in the instance: refs that moved, nothing ignored.
	r.stop()
	r.opts.Env = []string{"PATH=/nowhere"}
	r.start()
	st = r.status(0)
	if st.GetGitVersion() != "" || !slices.Equal(st.GetNewCommits(), []string{"refs/heads/main", "refs/heads/side"}) || st.GetChangedFilesTotal() != 5 {
		t.Errorf("without git: %v", st)
	}
}

func TestProjectImportOnce(t *testing.T) {
	r := imported(t)
	_, err := r.send(&guestv1.ImportBegin{Project: true}, nil)
	wantCode(t, err, api.FailedPrecondition)
	fresh := newRig(t)
	fresh.put("mine", "x")
	_, err = fresh.send(&guestv1.ImportBegin{Project: true}, nil)
	wantCode(t, err, api.FailedPrecondition)
	if err := os.Remove(fresh.path("mine")); err != nil {
		t.Fatal(err)
	}
	if st := fresh.status(0); st.GetImported() || st.GetBranch() != "" {
		t.Errorf("before an import: %v", st)
	}
	// One that breaks off is cleaned up by the next.
	data := pack(t, regular("half", "x"), regular("other", strings.Repeat("x", 5000)))
	if _, err = fresh.send(&guestv1.ImportBegin{Project: true}, data[:2500]); err == nil {
		t.Fatal("half an archive was taken")
	}
	if fresh.status(0).GetImported() {
		t.Error("a half import reads as imported")
	}
	if _, err := fresh.send(&guestv1.ImportBegin{Path: ".", Project: true}, pack(t, regular("whole", "x"))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fresh.path("half")); err == nil {
		t.Error("the half import was left")
	}
	if st := fresh.status(0); !st.GetImported() || st.GetChangedFilesTotal() != 0 {
		t.Errorf("status %v", st)
	}
}

func TestManifestDamaged(t *testing.T) {
	r := newRig(t)
	for _, text := range []string{"", "nonsense\nend\n", "ref\nref x\nend\n", "f 644 1 2 \"a\" \"\"\n"} {
		if err := os.WriteFile(r.guest.manifestPath(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := r.project.ProjectStatus(t.Context(), &guestv1.ProjectStatusRequest{})
		wantCode(t, err, api.Internal)
	}
}

// unpackInto and tarOf move a tree through the guest's own code paths.
func unpackInto(t *testing.T, dir string, data interface{ Read([]byte) (int, error) }) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	u := &unpacker{ctx: t.Context(), root: root, safe: map[string]bool{".": true}, owner: account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}}
	if err := u.unpack(data); err != nil {
		t.Fatal(err)
	}
}

func tarOf(t *testing.T, dir string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
