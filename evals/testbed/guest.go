package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// guestPackage is the program inside every workspace.
const guestPackage = "github.com/vendetta-dev/vendetta/cmd/vendetta-guest"

// Guest returns the path of the guest's program, built as a release is: static.
// It is built once for each test process, into the user's cache; a build there
// replaces the file whole, and only by another, so that processes may do it at the
// same time.
func Guest(t testing.TB) string {
	t.Helper()
	path, err := buildGuest()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildGuest = sync.OnceValues(func() (string, error) {
	return buildStatic(guestPackage, cacheFolder())
})

// StandIn returns the path of a static program that a driver can run in the
// guest's place, to which tests say shell scripts.
func StandIn(t testing.TB) string {
	t.Helper()
	path, err := buildStandIn()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildStandIn = sync.OnceValues(func() (string, error) {
	return buildStatic("github.com/vendetta-dev/vendetta/evals/testbed/standin", cacheFolder())
})

func cacheFolder() string {
	cache, err := os.UserCacheDir()
	if err != nil { // no home
		cache = os.TempDir()
	}
	return filepath.Join(cache, "vendetta-test")
}

// buildStatic builds a main package of this module into dir.
func buildStatic(pkg, dir string) (path string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("build %s: %w", pkg, err)
	}
	fresh, err := os.MkdirTemp(dir, "build")
	if err != nil {
		return "", fmt.Errorf("build %s: %w", pkg, err)
	}
	defer func() { err = firstError(err, os.RemoveAll(fresh)) }()
	program := filepath.Base(pkg)
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(fresh, program), pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, said)
	}
	path = filepath.Join(dir, program)
	if err := place(filepath.Join(fresh, program), path); err != nil {
		return "", fmt.Errorf("build %s: %w", pkg, err)
	}
	return path, nil
}

// place puts a program where another process may be using the one before. The
// same program stays as it is: a file that was replaced cannot be mounted by who
// has just opened it.
func place(fresh, path string) error {
	err := os.Link(fresh, path)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	made, err := os.ReadFile(fresh)
	if err != nil {
		return err
	}
	if had, err := os.ReadFile(path); err == nil && bytes.Equal(had, made) {
		return nil
	}
	return os.Rename(fresh, path)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
