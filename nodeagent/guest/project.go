//go:build linux

package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

const (
	namesDefault = 20
	namesMost    = 1000
	// statusTime bounds one look at the project.
	statusTime = 30 * time.Second
	refsMost   = 100_000
)

type projectService struct{ g *Guest }

func (s projectService) ProjectStatus(ctx context.Context, req *guestv1.ProjectStatusRequest) (*guestv1.ProjectStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	limit := int(req.GetLimit())
	if limit <= 0 {
		limit = namesDefault
	}
	st := &status{guest: s.g, limit: min(limit, namesMost), resp: &guestv1.ProjectStatusResponse{}}
	var err error
	if st.root, err = os.OpenRoot(s.g.opts.ProjectDir); err != nil {
		return nil, fsError("look at the project", s.g.opts.ProjectDir, err)
	}
	defer func() { _ = st.root.Close() }()
	if err := st.look(ctx); err != nil {
		return nil, err
	}
	return st.resp, nil
}

// status is one look at the project.
type status struct {
	guest *Guest
	root  *os.Root
	limit int
	git   *git // nil: none in the instance, or no repository
	resp  *guestv1.ProjectStatusResponse
}

func (s *status) look(ctx context.Context) error {
	refs, err := readRefs(ctx, s.root)
	if err != nil {
		return fsError("read", ".git", err)
	}
	s.resp.Branch, s.resp.Commit = strings.ToValidUTF8(headBranch(s.root), "\uFFFD"), refs["HEAD"]
	tool := s.guest.newGit()
	if tool != nil {
		s.resp.GitVersion = tool.version(ctx)
	}
	if _, err := s.root.Lstat(".git"); err == nil && s.resp.GetGitVersion() != "" {
		s.git = tool
	}
	base, err := s.guest.loadManifest()
	if err != nil || base == nil {
		return err
	}
	s.resp.Imported = true
	if err := s.changes(ctx, base); err != nil {
		return err
	}
	return s.commits(ctx, base, refs)
}

// changes compares the files with the manifest. Folders that are new are entered
// only when git does not ignore them, so that a folder of dependencies costs
// one question.
func (s *status) changes(ctx context.Context, base *manifest) error {
	project := place{tree: s.root, name: ".", asked: s.guest.opts.ProjectDir}
	missing := maps.Clone(base.files)
	var changed []string
	for pending := []string{"."}; len(pending) > 0; {
		var found []string
		for _, from := range pending {
			at := project
			at.name = from
			err := at.walk(ctx, "look at", func(below string, entry fs.DirEntry) (bool, error) {
				name := path.Join(from, below)
				if entry.Name() == ".git" {
					return false, nil
				}
				was, known := base.files[name]
				delete(missing, name)
				now, err := s.entry(name, entry)
				if errors.Is(err, fs.ErrNotExist) {
					return false, nil
				}
				if err != nil {
					return false, err
				}
				switch {
				case now.kind == 'd' && !known:
					found = append(found, name+"/")
				case now != was && (now.kind != 'd' || known):
					found = append(found, name)
				}
				return now.kind == 'd' && known, nil
			})
			if err != nil {
				return err
			}
		}
		kept, err := s.notIgnored(ctx, found)
		if err != nil {
			return err
		}
		pending = nil
		for _, name := range kept {
			if dir, ok := strings.CutSuffix(name, "/"); ok {
				pending = append(pending, dir)
			} else {
				changed = append(changed, name)
			}
		}
	}
	var removed []string
	for name, was := range missing {
		if was.kind != 'd' {
			removed = append(removed, name)
		}
	}
	removed, err := s.notIgnored(ctx, removed)
	if err != nil {
		return err
	}
	changed = append(changed, removed...)
	slices.Sort(changed)
	s.resp.ChangedFilesTotal = int32(len(changed))
	for _, name := range changed[:min(len(changed), s.limit)] {
		s.resp.ChangedFiles = append(s.resp.ChangedFiles, strings.ToValidUTF8(name, "\uFFFD"))
	}
	return nil
}

func (s *status) entry(name string, entry fs.DirEntry) (manifestEntry, error) {
	info, err := entry.Info()
	if err != nil {
		return manifestEntry{}, err
	}
	target := ""
	if info.Mode()&os.ModeSymlink != 0 {
		if target, err = s.root.Readlink(name); err != nil {
			return manifestEntry{}, err
		}
	}
	return entryOf(info, target), nil
}

// notIgnored leaves out the names that git ignores.
func (s *status) notIgnored(ctx context.Context, names []string) ([]string, error) {
	if s.git == nil || len(names) == 0 {
		return names, nil
	}
	slices.Sort(names)
	out, code, err := s.git.run(ctx, []byte(strings.Join(names, "\x00")+"\x00"), "check-ignore", "-z", "--stdin")
	if err != nil {
		return nil, err
	}
	if code > 1 { // not a repository it can work with: nothing is ignored
		return names, nil
	}
	ignored := map[string]bool{}
	for name := range bytes.SplitSeq(out, []byte{0}) {
		ignored[string(name)] = true
	}
	return slices.DeleteFunc(names, func(name string) bool { return ignored[name] }), nil
}

// commits finds what the repository has beyond its refs at the import.
func (s *status) commits(ctx context.Context, base *manifest, refs map[string]string) error {
	if s.git == nil {
		var moved []string
		for name, commit := range refs {
			if base.refs[name] != commit && name != "HEAD" {
				moved = append(moved, strings.ToValidUTF8(name, "\uFFFD"))
			}
		}
		if len(moved) == 0 && refs["HEAD"] != base.refs["HEAD"] && !slices.Contains(slices.Collect(maps.Values(base.refs)), refs["HEAD"]) {
			moved = []string{"HEAD"}
		}
		slices.Sort(moved)
		s.resp.NewCommitsTotal = int32(len(moved))
		s.resp.NewCommits = moved[:min(len(moved), s.limit)]
		return nil
	}
	tips := slices.Compact(slices.Sorted(maps.Values(base.refs)))
	var stdin bytes.Buffer
	for _, tip := range tips {
		stdin.WriteString("^" + tip + "\n")
	}
	out, code, err := s.git.run(ctx, stdin.Bytes(), "rev-list", "--ignore-missing", "--all", "--count", "--stdin")
	if err != nil {
		return err
	}
	if code != 0 {
		return nil // no repository git can read; the files tell what is new
	}
	total, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 32)
	if err != nil {
		return api.Errorf(api.Internal, "count commits: git said %.40q", out)
	}
	s.resp.NewCommitsTotal = int32(total)
	if total == 0 {
		return nil
	}
	out, _, err = s.git.run(ctx, stdin.Bytes(), "log", "--ignore-missing", "--all", "--topo-order", "--no-color", "--no-decorate", "--no-show-signature",
		"--format=%h %s", "--max-count="+strconv.Itoa(s.limit), "--stdin")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		s.resp.NewCommits = append(s.resp.NewCommits, strings.ToValidUTF8(strings.TrimSuffix(line, "\n"), "\uFFFD"))
	}
	return nil
}

var commitName = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// readRefs reads the refs of the project's repository without git: HEAD, the
// loose ones and the packed ones. What it cannot read it leaves out.
func readRefs(ctx context.Context, root *os.Root) (map[string]string, error) {
	refs := map[string]string{}
	if packed, err := openGitFile(root, ".git/packed-refs"); err == nil {
		lines := bufio.NewScanner(packed)
		for lines.Scan() && len(refs) < refsMost {
			if commit, name, ok := strings.Cut(lines.Text(), " "); ok && commitName.MatchString(commit) {
				refs[name] = commit
			}
		}
		_ = packed.Close()
	}
	at := place{tree: root, name: ".git/refs", asked: ".git/refs"}
	if info, err := root.Lstat(at.name); err == nil && info.IsDir() {
		err := at.walkBelow(ctx, "", func(below string, entry fs.DirEntry) (bool, error) {
			if name := "refs/" + below; entry.Type().IsRegular() && len(refs) < refsMost {
				if commit := firstLine(root, ".git/"+name); commitName.MatchString(commit) {
					refs[name] = commit
				}
			}
			return true, nil
		})
		if err != nil {
			return nil, err
		}
	}
	head := firstLine(root, ".git/HEAD")
	if name, ok := strings.CutPrefix(head, "ref: "); ok {
		head = refs[name]
	}
	if commitName.MatchString(head) {
		refs["HEAD"] = head
	}
	return refs, nil
}

// headBranch is the branch that is checked out, empty when none is.
func headBranch(root *os.Root) string {
	branch, ok := strings.CutPrefix(firstLine(root, ".git/HEAD"), "ref: refs/heads/")
	if !ok {
		return ""
	}
	return branch
}

func openGitFile(root *os.Root, name string) (*os.File, error) {
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrInvalid
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func firstLine(root *os.Root, name string) string {
	file, err := openGitFile(root, name)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, 4096))
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(line)
}
