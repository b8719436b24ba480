package source

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// brokenGit puts a git before the real one that does `instead` when its
// arguments contain `when`.
func brokenGit(t *testing.T, when, instead string) {
	t.Helper()
	real, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	script := "#!/bin/sh\ncase \"$*\" in *\"" + when + "\"*) " + instead + ";; esac\nexec " + real + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "git"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
}

// Whatever step of git fails, the error says which, and no clone is left behind.
func TestPackWhenGitFails(t *testing.T) {
	const fails = "echo it went wrong >&2; exit 1"
	for name, c := range map[string]struct {
		when, instead, want string
		clean               bool
	}{
		"first look":    {when: "--is-inside-work-tree", want: "git rev-parse: it went wrong"},
		"top":           {when: "--show-toplevel", want: "git rev-parse: it went wrong"},
		"silent":        {when: "--show-toplevel", instead: "exit 3", want: "git rev-parse: exit status 3"},
		"talkative":     {when: "--show-toplevel", instead: "head -c 5000 /dev/zero | tr '\\0' x >&2; exit 3", want: "git rev-parse: xxx"},
		"filters":       {when: "--get-regexp", instead: "echo it went wrong >&2; exit 3", want: "git config: it went wrong"},
		"index":         {when: "ls-files -z --cached", want: "git ls-files: it went wrong"},
		"odd index":     {when: "ls-files -z --cached", instead: "printf 'what is this\\0'; exit 0", want: "unexpected line"},
		"odd mode":      {when: "ls-files -z --cached", instead: "printf 'H x y 0\\tp\\0'; exit 0", want: "unexpected mode"},
		"untracked":     {when: "ls-files -z --others", want: "git ls-files: it went wrong"},
		"status":        {when: "status --porcelain", want: "git status: it went wrong"},
		"tree":          {when: "ls-tree", want: "git ls-tree: it went wrong", clean: true},
		"odd tree":      {when: "ls-tree", instead: "printf 'what\\0'; exit 0", want: "unexpected line", clean: true},
		"odd tree mode": {when: "ls-tree", instead: "printf 'x blob y\\tp\\0'; exit 0", want: "unexpected mode", clean: true},
		"object format": {when: "--show-object-format", want: "git rev-parse: it went wrong"},
		"init":          {when: "init --quiet", want: "git init: it went wrong"},
		"aside":         {when: "refs/heads/vendetta-import", want: "git symbolic-ref: it went wrong"},
		"fetch":         {when: "git-upload-pack --quiet", want: "git fetch: it went wrong"},
		"head":          {when: "update-ref -d", want: "git update-ref: it went wrong"},
		"configuration": {when: "core.filemode", want: "git config: it went wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := repositoryOnDisk(t)
			temp := t.TempDir()
			t.Setenv("TMPDIR", temp)
			if c.instead == "" {
				c.instead = fails
			}
			brokenGit(t, c.when, c.instead)
			a, err := Pack(t.Context(), dir, c.clean)
			if err == nil {
				t.Fatalf("packed %v", a.Source)
			}
			if !strings.Contains(err.Error(), c.want) || len(err.Error()) > messageBytes+100 {
				t.Errorf("error = %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(temp, "vendetta-source-*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func TestPackWithoutRoomForAClone(t *testing.T) {
	dir := repositoryOnDisk(t)
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	if _, err := Pack(t.Context(), dir, false); err == nil || !strings.Contains(err.Error(), "make room for a clone") {
		t.Errorf("error = %v", err)
	}
}

// An archive is never taken for whole when git gave up in the middle.
func TestWriteTarWhenGitFails(t *testing.T) {
	dir := repositoryOnDisk(t)
	a, err := Pack(t.Context(), dir, true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for instead, want := range map[string]string{
		"exit 1":                                    "git cat-file: ",
		"read x; echo $x blob many; exit 0":         "git cat-file: object",
		"read x; echo $x blob 5; printf ab":         "pack ",
		"read x; echo $x blob 2; printf ab; exit 0": "git cat-file: ",
	} {
		brokenGit(t, "cat-file", instead+"; exit 0")
		if err := a.WriteTar(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "pack "+dir) {
			t.Errorf("%s: %v, want %s", instead, err, want)
		}
	}
	t.Setenv("PATH", "")
	if err := a.WriteTar(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "git program was not found") {
		t.Errorf("without git: %v", err)
	}
}
