package source

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// repository is what Pack needs to know of the user's repository.
type repository struct {
	git
	// commit is empty before the first one, branch when HEAD is detached.
	commit, branch string
	origin         string
}

func open(ctx context.Context, dir string) (*repository, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(abs); err != nil || !info.IsDir() {
		return nil, api.Errorf(api.InvalidArgument, "read the repository: %s is not a folder on this machine", abs)
	}
	inside, err := git{dir: abs}.line(ctx, "rev-parse", "--is-inside-work-tree")
	if err != nil {
		if strings.Contains(api.From(err).Message, "not a git repository") {
			return nil, api.Errorf(api.FailedPrecondition, "read the repository: %s is not in a git repository", abs).
				WithNext("name a folder inside one, or make one: git -C %s init", abs)
		}
		return nil, err
	}
	if inside != "true" {
		return nil, api.Errorf(api.FailedPrecondition, "read the repository: %s has no work tree: it is bare, or the .git folder itself", abs).
			WithNext("name a folder of a checked-out work tree")
	}
	r := &repository{}
	if r.dir, err = (git{dir: abs}).line(ctx, "rev-parse", "--show-toplevel"); err != nil {
		return nil, err
	}
	if err := ownTree(ctx, abs, r.dir); err != nil {
		return nil, err
	}
	if r.settings, err = r.foreignFilters(ctx); err != nil {
		return nil, err
	}
	// These three end with an error when there is nothing to tell: no commit yet,
	// a detached HEAD, no origin.
	r.commit, _ = r.line(ctx, "rev-parse", "--quiet", "--verify", "HEAD^{commit}")
	r.branch, _ = r.line(ctx, "symbolic-ref", "--quiet", "--short", "HEAD")
	if address, err := r.line(ctx, "config", "--get", "remote.origin.url"); err == nil {
		r.origin = cleanOrigin(address)
	}
	if r.commit == "" && r.branch == "" {
		return nil, api.Errorf(api.FailedPrecondition, "read the repository: HEAD of %s names neither a branch nor a commit", r.dir).
			WithNext("check a branch out: git -C %s switch BRANCH", r.dir)
	}
	return r, ctx.Err()
}

// ownTree refuses a repository whose config (core.worktree) claims a folder that
// is another's or nobody's: what would be sent then is not what the user named.
func ownTree(ctx context.Context, dir, top string) error {
	named, err := git{dir: dir}.line(ctx, "rev-parse", "--absolute-git-dir")
	if err != nil {
		return err
	}
	found, err := git{dir: top}.line(ctx, "rev-parse", "--absolute-git-dir")
	if err == nil && found == named {
		return nil
	}
	return api.Errorf(api.FailedPrecondition, "read the repository: %s says that its work tree is %s, which does not belong to it", named, top).
		WithNext("look at core.worktree in %s/config, and unset it if you did not set it", named)
}

// cloneTo fills dir/.git with a clone that needs nothing else: its own objects,
// the branches, tags and branches of origin, HEAD as it is, an index that says HEAD.
func (r *repository) cloneTo(ctx context.Context, dir string) error {
	format, err := r.line(ctx, "rev-parse", "--show-object-format")
	if err != nil {
		return err
	}
	clone := git{dir: dir}
	if _, err := clone.run(ctx, "init", "--quiet", "--template=", "--object-format="+format); err != nil {
		return err
	}
	// HEAD stands aside during the fetch, so that it may fill any branch.
	if _, err := clone.run(ctx, "symbolic-ref", "HEAD", "refs/heads/vendetta-import"); err != nil {
		return err
	}
	if err := r.fetchInto(ctx, clone); err != nil {
		return err
	}
	if err := r.setHead(ctx, clone); err != nil {
		return err
	}
	return r.configure(ctx, clone)
}

const headRef = "refs/vendetta/head"

func (r *repository) fetchInto(ctx context.Context, clone git) error {
	refs := []string{"+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"}
	if r.origin != "" {
		refs = append(refs, "+refs/remotes/origin/*:refs/remotes/origin/*")
	}
	if r.commit != "" {
		refs = append(refs, "+HEAD:"+headRef)
	}
	clone.protocols = "file"
	_, err := clone.run(ctx, append([]string{
		// upload-pack reads the user's repository, where nothing may be fetched:
		// a git too old for GIT_NO_LAZY_FETCH would do so over the file protocol.
		"fetch", "--upload-pack=GIT_ALLOW_PROTOCOL=" + noProtocol + " git-upload-pack", "--quiet", "--no-tags", "--update-shallow", "--no-recurse-submodules",
		"--no-write-fetch-head", "--no-auto-maintenance", r.dir,
	}, refs...)...)
	return err
}

func (r *repository) setHead(ctx context.Context, clone git) error {
	steps := [][]string{}
	if r.branch != "" {
		steps = append(steps, []string{"symbolic-ref", "HEAD", "refs/heads/" + r.branch})
	} else {
		steps = append(steps, []string{"update-ref", "--no-deref", "HEAD", r.commit})
	}
	if r.commit != "" {
		steps = append(steps, []string{"update-ref", "-d", headRef}, []string{"read-tree", "HEAD"})
	}
	for _, step := range steps {
		if _, err := clone.run(ctx, step...); err != nil {
			return err
		}
	}
	return nil
}

// configure writes what a clone on Linux would have; init wrote what it found out
// about the file system of this machine.
func (r *repository) configure(ctx context.Context, clone git) error {
	for _, key := range []string{"core.ignorecase", "core.precomposeunicode", "core.symlinks"} {
		_, _ = clone.run(ctx, "config", "--local", "--unset-all", key) // it fails where the key is not set
	}
	settings := [][2]string{{"core.filemode", "true"}}
	if r.origin != "" {
		settings = append(settings,
			[2]string{"remote.origin.url", r.origin},
			[2]string{"remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"})
	}
	if merge, err := r.line(ctx, "config", "--get", "branch."+r.branch+".merge"); err == nil && r.origin != "" {
		settings = append(settings,
			[2]string{"branch." + r.branch + ".remote", "origin"},
			[2]string{"branch." + r.branch + ".merge", merge})
	}
	for _, s := range settings {
		if _, err := clone.run(ctx, "config", "--local", s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}
