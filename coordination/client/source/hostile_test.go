package source

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// A repository may come from anyone: packing it runs no program that it names.
func TestPackRunsNoProgramOfTheRepository(t *testing.T) {
	t.Parallel()
	for name, hostile := range map[string]struct {
		// config is appended to .git/config; PROGRAM stands for one that leaves a trace.
		config string
		// filter is what every file is filtered by, if at all.
		filter string
		// missing is an object to take away, so that git would fetch it.
		missing string
		clean   bool
		fails   bool
	}{
		"no program":      {},
		"clean filter":    {filter: "x", config: "[filter \"x\"]\n\tclean = PROGRAM\n\tsmudge = PROGRAM\n\trequired\n"},
		"process filter":  {filter: "x.y", config: "[filter \"x.y\"]\n\tprocess = PROGRAM\n\trequired = true\n"},
		"included filter": {filter: "x", config: "[include]\n\tpath = more\n"},
		"filter of the work tree's configuration": {
			filter: "x", config: "[extensions]\n\tworktreeConfig = true\n",
		},
		"filter with an odd name":    {filter: "a=b", config: "[filter \"a=b\"]\n\tclean = PROGRAM\n", fails: true},
		"filter key without a name":  {filter: "x", config: "[filter]\n\tclean = PROGRAM\n"},
		"ssh command, no commit":     {missing: "HEAD", config: partial + "\turl = ssh://host.invalid/x\n[core]\n\tsshCommand = PROGRAM\n"},
		"upload-pack, no commit":     {missing: "HEAD", config: partial + "\turl = .\n\tuploadpack = PROGRAM\n"},
		"ssh command, no blob":       {missing: "HEAD:kept.txt", config: partial + "\turl = ssh://host.invalid/x\n[core]\n\tsshCommand = PROGRAM\n"},
		"upload-pack, no blob":       {missing: "HEAD:kept.txt", config: partial + "\turl = .\n\tuploadpack = PROGRAM\n", clean: true},
		"external helper, no commit": {missing: "HEAD", config: partial + "\turl = ext::PROGRAM\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := repositoryOnDisk(t)
			temp := t.TempDir()
			canary := filepath.Join(temp, "canary")
			write(t, temp, "program", "#!/bin/sh\ntouch "+canary+"\nexit 1\n")
			program := filepath.Join(temp, "program")
			if err := os.Chmod(program, 0o755); err != nil {
				t.Fatal(err)
			}
			config, err := os.ReadFile(filepath.Join(dir, ".git/config"))
			if err != nil {
				t.Fatal(err)
			}
			if hostile.missing != "" {
				object := strings.TrimSpace(userGit(t, dir, "rev-parse", hostile.missing))
				if err := os.Remove(filepath.Join(dir, ".git/objects", object[:2], object[2:])); err != nil {
					t.Fatal(err)
				}
			}
			if hostile.filter != "" {
				write(t, dir, ".git/info/attributes", "* filter="+hostile.filter+"\n")
				filter := "[filter \"x\"]\n\tclean = " + program + "\n"
				write(t, dir, ".git/more", filter)
				write(t, dir, ".git/config.worktree", filter)
			}
			write(t, dir, ".git/config", string(config)+strings.ReplaceAll(hostile.config, "PROGRAM", program))
			// Another time than the index has makes git read the file again.
			if err := os.Chtimes(filepath.Join(dir, "kept.txt"), time.Time{}, time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}

			a, err := Pack(t.Context(), dir, hostile.clean)
			if err == nil {
				defer a.Close()
				err = a.WriteTar(t.Context(), io.Discard)
			}
			if _, statErr := os.Lstat(canary); statErr == nil {
				t.Error("the repository's program ran")
			}
			// What is missing cannot be cloned.
			if failed := err != nil; failed != (hostile.fails || hostile.missing != "") {
				t.Errorf("error = %v", err)
			}
		})
	}
}

// partial makes a partial clone whose remote, left open, lacks its address. The
// protocols it allows must not win over none.
const partial = `[core]
	repositoryformatversion = 1
[extensions]
	partialClone = evil
[protocol]
	allow = always
[protocol "file"]
	allow = always
[protocol "ssh"]
	allow = always
[protocol "ext"]
	allow = always
[remote "evil"]
	promisor = true
`

// WriteTar alone must not fetch either: the objects may go after Pack.
func TestWriteTarFetchesNothing(t *testing.T) {
	t.Parallel()
	dir := repositoryOnDisk(t)
	a, err := Pack(t.Context(), dir, true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	temp := t.TempDir()
	write(t, temp, "program", "#!/bin/sh\ntouch "+filepath.Join(temp, "canary")+"\n")
	object := strings.TrimSpace(userGit(t, dir, "rev-parse", "HEAD:kept.txt"))
	config, err := os.ReadFile(filepath.Join(dir, ".git/config"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, ".git/config", string(config)+partial+"\turl = .\n\tuploadpack = sh "+filepath.Join(temp, "program")+"\n")
	if err := os.Remove(filepath.Join(dir, ".git/objects", object[:2], object[2:])); err != nil {
		t.Fatal(err)
	}
	if err := a.WriteTar(t.Context(), io.Discard); err == nil || !strings.Contains(api.From(err).Message, object) {
		t.Errorf("error = %v", err)
	}
	if _, err := os.Lstat(filepath.Join(temp, "canary")); err == nil {
		t.Error("the repository's program ran")
	}
}

// A filter of the user's own stays, or Git LFS would call every file changed.
func TestForeignFiltersLeavesTheUsersOwn(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	write(t, home, ".gitconfig", "[filter \"mine\"]\n\tclean = cat\n")
	dir := repositoryOnDisk(t)
	userGit(t, dir, "config", "filter.theirs.clean", "cat")
	got, err := git{dir: dir}.foreignFilters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if said := strings.Join(got, " "); strings.Contains(said, "mine") || !strings.Contains(said, "filter.theirs.clean= ") {
		t.Errorf("settings = %q", said)
	}
}

// A repository that claims a folder above it as its work tree would have that
// folder's files sent.
func TestPackRefusesAForeignWorkTree(t *testing.T) {
	t.Parallel()
	dir := repositoryOnDisk(t)
	userGit(t, dir, "config", "core.worktree", filepath.Dir(dir))
	_, err := Pack(t.Context(), dir, false)
	if e := api.From(err); e == nil || e.Code != api.FailedPrecondition || !strings.Contains(e.Next, "core.worktree") {
		t.Fatalf("got %v", err)
	}
}
