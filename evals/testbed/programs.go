package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// coverVariable names the folder that programs built for coverage write to.
const coverVariable = "VENDETTA_TEST_COVERDIR"

// Programs builds vendetta with the programs for nodes beside it, the one for LXC
// where liblxc's headers are, laid out as `make build` does, once for each test process, and returns the path of
// vendetta. RemovePrograms removes it. With VENDETTA_TEST_COVERDIR set the
// program counts what it covers and writes that, when it ends, to GOCOVERDIR.
func Programs(tb testing.TB) string {
	tb.Helper()
	programsBuilt.Do(func() { programsPath, programsErr = buildPrograms() })
	if programsErr != nil {
		tb.Fatal(programsErr)
	}
	return programsPath
}

var (
	programsBuilt sync.Once
	programsPath  string
	programsErr   error
)

// RemovePrograms removes what Programs built. TestMain calls it at its end.
func RemovePrograms() {
	if programsPath != "" {
		_ = os.RemoveAll(filepath.Dir(programsPath))
	}
}

func buildPrograms() (string, error) {
	dir, err := os.MkdirTemp("", "vbin")
	if err != nil {
		return "", err
	}
	bundle := filepath.Join(dir, "bundle", "linux-"+runtime.GOARCH)
	if _, err := buildStatic(guestPackage, bundle); err != nil {
		return "", err
	}
	if hasLXC() {
		if _, err := buildLXC(bundle); err != nil {
			return "", err
		}
	}
	path := filepath.Join(dir, "vendetta")
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"}
	if os.Getenv(coverVariable) != "" {
		args = append(args, "-cover", "-coverpkg=github.com/vendetta-dev/vendetta/...")
	}
	build := exec.Command("go", append(args, "-o", path, "github.com/vendetta-dev/vendetta/cmd/vendetta")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build vendetta: %w\n%s", err, said)
	}
	return path, os.Link(path, filepath.Join(bundle, "vendetta"))
}

// CoverDir is the folder for what a built program covered; a throwaway one when
// nobody asked for coverage.
func CoverDir(tb testing.TB) string {
	if dir := os.Getenv(coverVariable); dir != "" {
		return dir
	}
	return tb.TempDir()
}
