//go:build linux

package guest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// Limits of a start request. The kernel's own are of this order.
const (
	argumentsMost     = 10_000
	argumentBytesMost = 1 << 20
	variablesMost     = 4096
	stdinMost         = 1 << 20
	// shownArgv is how much of the command line a Process message carries.
	shownArgv = 8 << 10
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// command is a start request made ready: everything that can be refused without
// taking the id was checked.
type command struct {
	id       string
	argv     []string
	env      []string
	path     string // PATH
	dir      string
	user     account
	cred     *syscall.Credential
	terminal *guestv1.Terminal
	stdin    []byte
	open     bool
	spool    uint64
}

func (g *Guest) command(req *guestv1.StartRequest) (*command, error) {
	if err := checkStart(req); err != nil {
		return nil, err
	}
	c := &command{
		id: req.GetProcessId(), argv: req.GetArgv(), terminal: req.GetTerminal(),
		stdin: req.GetStdin(), open: req.GetStdinOpen(), spool: req.GetSpoolBytes(),
	}
	user := req.GetUser()
	if user == "" {
		user = g.opts.DefaultUser
	}
	var err error
	if c.user, err = g.accounts.lookup(user); err != nil {
		return nil, err
	}
	if c.cred, err = c.user.credential(); err != nil {
		return nil, err
	}
	c.dir = req.GetDir()
	if !filepath.IsAbs(c.dir) {
		c.dir = filepath.Join(g.opts.ProjectDir, c.dir)
	}
	info, err := os.Stat(c.dir)
	if err != nil {
		return nil, fsError("start in", c.dir, err)
	}
	if !info.IsDir() {
		return nil, api.Errorf(api.FailedPrecondition, "start in %s: it is not a folder", c.dir)
	}
	c.environment(g.opts.Env, req.GetEnv())
	return c, nil
}

func checkStart(req *guestv1.StartRequest) error {
	if err := checkProcessID(req.GetProcessId()); err != nil {
		return err
	}
	refuse := func(format string, args ...any) *api.Error {
		return api.Errorf(api.InvalidArgument, "start "+req.GetProcessId()+": "+format, args...)
	}
	argv := req.GetArgv()
	if len(argv) == 0 || argv[0] == "" {
		return refuse("argv is empty")
	}
	if len(argv) > argumentsMost || len(req.GetEnv()) > variablesMost {
		return refuse("more than %d arguments or %d variables", argumentsMost, variablesMost)
	}
	size := 0
	for _, arg := range argv {
		size += len(arg)
		if strings.ContainsRune(arg, 0) {
			return refuse("an argument has a NUL byte")
		}
	}
	for name, value := range req.GetEnv() {
		size += len(name) + len(value)
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return refuse("%.40q cannot be an environment variable", name)
		}
	}
	if size > argumentBytesMost {
		return refuse("arguments and variables are %d bytes, at most %d are possible", size, argumentBytesMost).
			WithNext("put the data into a file or into standard input")
	}
	if len(req.GetStdin()) > stdinMost {
		return refuse("stdin is %d bytes, at most %d are possible", len(req.GetStdin()), stdinMost).
			WithNext("send the rest as input")
	}
	if strings.ContainsRune(req.GetDir(), 0) {
		return refuse("dir has a NUL byte")
	}
	return checkTerminal(req.GetTerminal())
}

// environment is the instance's, the user's, the terminal's and the caller's
// variables; the later win.
func (c *command) environment(instance []string, own map[string]string) {
	env := map[string]string{"PATH": defaultPath}
	for _, entry := range instance {
		if name, value, ok := strings.Cut(entry, "="); ok && name != "" {
			env[name] = value
		}
	}
	for name, value := range c.user.environment() {
		env[name] = value
	}
	env["PWD"] = c.dir
	if c.terminal != nil {
		env["TERM"] = c.terminal.GetTerm()
		if env["TERM"] == "" {
			env["TERM"] = "xterm-256color"
		}
	}
	for name, value := range own {
		env[name] = value
	}
	for name, value := range env {
		c.env = append(c.env, name+"="+value)
	}
	slices.Sort(c.env)
	c.path = env["PATH"]
}

// notRun says why a command could not be run, as a shell would report it.
type notRun struct {
	code    int32
	message string
}

// find looks the program up: in PATH, unless its name has a slash.
func (c *command) find() (string, *notRun) {
	name := c.argv[0]
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = c.dir + "/" + path
		}
		return path, runnable(path, name)
	}
	answer := &notRun{exitNotFound, name + ": command not found"}
	for _, dir := range filepath.SplitList(c.path) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(c.dir, dir)
		}
		path := dir + "/" + name
		why := runnable(path, name)
		if why == nil {
			return path, nil
		}
		// Folders of that name, and parts of PATH that are closed to the guest, do not count.
		if strings.HasSuffix(why.message, notExecutable) && answer.code == exitNotFound {
			answer = why
		}
	}
	return "", answer
}

const notExecutable = ": permission denied (not executable)"

func runnable(path, name string) *notRun {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrPermission):
		return &notRun{exitNotExecutable, name + ": permission denied"}
	case err != nil:
		return &notRun{exitNotFound, name + ": no such file"}
	case info.IsDir():
		return &notRun{exitNotExecutable, name + ": is a folder"}
	case info.Mode()&0o111 == 0:
		return &notRun{exitNotExecutable, name + notExecutable}
	}
	return nil
}

// failed says what an error of fork and exec means: that the command cannot be
// run, or that the instance cannot run it now.
func (c *command) failed(err error) (*notRun, error) {
	name := c.argv[0]
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		return &notRun{exitNotFound, name + ": its interpreter does not exist"}, nil
	case errors.Is(err, syscall.EACCES):
		return &notRun{exitNotExecutable, name + ": permission denied to run it, or to enter " + c.dir + ", as " + c.user.String()}, nil
	case errors.Is(err, syscall.ENOEXEC):
		return &notRun{exitNotExecutable, name + ": exec format error (a script needs a #! line)"}, nil
	case errors.Is(err, syscall.E2BIG):
		return nil, api.Errorf(api.InvalidArgument, "start %s: the arguments are too long: %w", c.id, err).
			WithNext("put the data into a file or into standard input")
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return nil, api.Errorf(api.ResourceExhausted, "start %s: the workspace has no more processes, files or memory to give: %w", c.id, err).
			WithNext("end some of its processes")
	case errors.Is(err, syscall.EPERM):
		return nil, api.Errorf(api.FailedPrecondition, "start %s: the instance does not let commands run as %s: %w", c.id, c.user, err)
	}
	return &notRun{exitNotExecutable, name + ": " + err.Error()}, nil
}

// info is the process's first record.
func (c *command) info() *guestv1.Process {
	shown, left := []string{}, shownArgv
	for _, arg := range c.argv {
		if left -= len(arg) + 1; left < 0 {
			shown = append(shown, "...")
			break
		}
		shown = append(shown, arg)
	}
	return &guestv1.Process{
		Id: c.id, Argv: shown, Dir: c.dir, User: c.user.String(), Tty: c.terminal != nil,
		State: guestv1.ProcessState_PROCESS_STATE_RUNNING, StartedAt: timestamppb.Now(),
	}
}
