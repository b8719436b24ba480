package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// helperPackage is the program that links liblxc.
const helperPackage = "github.com/vendetta-dev/vendetta/cmd/vendetta-lxc"

// LXCHelper returns the path of vendetta-lxc, built against this machine's liblxc,
// once for each test process and into the user's cache, as Guest is.
func LXCHelper(t testing.TB) string {
	t.Helper()
	path, err := buildHelper()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildHelper = sync.OnceValues(func() (string, error) { return buildLXC(cacheFolder()) })

// hasLXC says whether the headers of liblxc are here.
func hasLXC() bool { return exec.Command("pkg-config", "--exists", "lxc").Run() == nil }

// buildLXC builds vendetta-lxc into dir; a build there replaces the file whole.
func buildLXC(dir string) (path string, err error) {
	if !hasLXC() {
		return "", fmt.Errorf("build vendetta-lxc: liblxc's headers are missing (sudo apt-get install lxc lxc-dev pkg-config gcc libc6-dev)")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("build vendetta-lxc: %w", err)
	}
	fresh, err := os.MkdirTemp(dir, "build")
	if err != nil {
		return "", fmt.Errorf("build vendetta-lxc: %w", err)
	}
	defer func() { err = firstError(err, os.RemoveAll(fresh)) }()
	path = filepath.Join(dir, "vendetta-lxc")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "lxc", "-ldflags=-s -w",
		"-o", filepath.Join(fresh, "vendetta-lxc"), helperPackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if said, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build vendetta-lxc: %w\n%s", err, said)
	}
	if err := os.Rename(filepath.Join(fresh, "vendetta-lxc"), path); err != nil {
		return "", fmt.Errorf("build vendetta-lxc: %w", err)
	}
	return path, nil
}
