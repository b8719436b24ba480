package testbed

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// kernelPackage depends on the newest kernel for virtual machines.
const kernelPackage = "linux-image-cloud-" + runtime.GOARCH

// Kernel returns the path of a kernel for virtual machines, with its modules in
// ../lib/modules. It is the distribution's, downloaded once into the user's cache
// and not installed.
func Kernel(t testing.TB) string {
	t.Helper()
	path, err := fetchKernel()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var fetchKernel = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(cacheFolder(), "kernel")
	if path := kernelIn(dir); path != "" {
		return path, nil
	}
	said, err := exec.Command("apt-cache", "depends", kernelPackage).Output()
	if err != nil {
		return "", fmt.Errorf("find the package of %s: %w", kernelPackage, err)
	}
	_, rest, _ := strings.Cut(string(said), "Depends: ")
	name, _, _ := strings.Cut(rest, "\n")
	if !strings.HasPrefix(name, "linux-image-") {
		return "", fmt.Errorf("find the package of %s: it depends on %q", kernelPackage, name)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(filepath.Dir(dir), "kernel-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(fresh) }() // what is left of it
	for _, step := range [][]string{{"apt-get", "download", name}, {"sh", "-c", "dpkg -x *.deb tree"}} {
		cmd := exec.Command(step[0], step[1:]...)
		cmd.Dir = fresh
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("fetch the kernel: %s: %w\n%s", strings.Join(step, " "), err, said.String())
		}
	}
	// Another process may have been quicker.
	if err := os.Rename(filepath.Join(fresh, "tree"), dir); err != nil && kernelIn(dir) == "" {
		return "", err
	}
	return kernelIn(dir), nil
})

func kernelIn(dir string) string {
	found, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*")) // the pattern is well-formed
	if len(found) == 0 {
		return ""
	}
	return found[0]
}
