//go:build linux

package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// manifest is what a project import left in the project, so that changes can be
// told from it. The file has one entry a line: kind (f, d, l), permission bits,
// size, time of change in nanoseconds, the quoted path and target; and for each
// ref of its repository: ref, the commit, the quoted name.
type manifest struct {
	files map[string]manifestEntry
	refs  map[string]string
}

type manifestEntry struct {
	kind   byte
	mode   uint32
	size   int64
	mtime  int64
	target string
}

func (g *Guest) manifestPath() string { return filepath.Join(g.opts.StateDir, "manifest") }

func entryOf(info os.FileInfo, target string) manifestEntry {
	e := manifestEntry{kind: 'o', mode: permissions(info.Mode()), target: target}
	switch {
	case info.Mode().IsRegular():
		e.kind, e.size, e.mtime = 'f', info.Size(), info.ModTime().UnixNano()
	case info.IsDir():
		// Its size and time change with every name in it; its mode is not tracked, as in git.
		e.kind, e.mode = 'd', 0
	case info.Mode()&os.ModeSymlink != 0:
		e.kind, e.mode = 'l', 0
	}
	return e
}

// manifestWriter writes a manifest beside the old one and renames it when whole.
type manifestWriter struct {
	path string
	file *os.File
	out  *bufio.Writer
}

func createManifest(path string) (*manifestWriter, error) {
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &manifestWriter{path: path, file: file, out: bufio.NewWriterSize(file, 64<<10)}, nil
}

// add notes a file. A failure shows at commit.
func (w *manifestWriter) add(name string, info os.FileInfo, target string) {
	if inGit(name) {
		return
	}
	e := entryOf(info, target)
	_, _ = fmt.Fprintf(w.out, "%c %o %d %d %s %s\n", e.kind, e.mode, e.size, e.mtime, strconv.Quote(name), strconv.Quote(target))
}

func (w *manifestWriter) addRefs(refs map[string]string, err error) error {
	for name, commit := range refs {
		_, _ = fmt.Fprintf(w.out, "ref %s %s\n", commit, strconv.Quote(name))
	}
	return err
}

func (w *manifestWriter) commit() error {
	_, err := w.out.WriteString("end\n")
	if err == nil {
		err = w.out.Flush()
	}
	if err == nil {
		err = w.file.Sync()
	}
	if err = errors.Join(err, w.file.Close()); err != nil {
		return err
	}
	w.file = nil
	return os.Rename(w.path+".new", w.path)
}

// abandon removes a manifest that was not committed.
func (w *manifestWriter) abandon() {
	if w.file != nil {
		_ = w.file.Close()
		_ = os.Remove(w.path + ".new")
	}
}

// loadManifest returns nil when no import has finished.
func (g *Guest) loadManifest() (*manifest, error) {
	if _, err := os.Lstat(filepath.Join(g.opts.StateDir, "importing")); err == nil {
		return nil, nil
	}
	file, err := os.Open(g.manifestPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fsError("read", "the project's manifest", err)
	}
	defer func() { _ = file.Close() }()
	m, err := parseManifest(file)
	if err != nil {
		return nil, fsError("read", "the project's manifest", err)
	}
	return m, nil
}

func parseManifest(in io.Reader) (*manifest, error) {
	m := &manifest{files: map[string]manifestEntry{}, refs: map[string]string{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		line := lines.Text()
		if line == "end" {
			return m, nil
		}
		if err := m.line(line); err != nil {
			return nil, fmt.Errorf("line %.80q: %w", line, err)
		}
	}
	return nil, errors.Join(lines.Err(), io.ErrUnexpectedEOF)
}

func (m *manifest) line(line string) error {
	var e manifestEntry
	var commit, name string
	if rest, ok := strings.CutPrefix(line, "ref "); ok {
		if _, err := fmt.Sscanf(rest, "%s %q", &commit, &name); err != nil {
			return err
		}
		m.refs[name] = commit
		return nil
	}
	if _, err := fmt.Sscanf(line, "%c %o %d %d %q %q", &e.kind, &e.mode, &e.size, &e.mtime, &name, &e.target); err != nil {
		return err
	}
	m.files[name] = e
	return nil
}

// inGit says whether a path lies in a repository's own folder, which changes by
// looking at it.
func inGit(name string) bool {
	return slices.Contains(strings.Split(name, "/"), ".git")
}
