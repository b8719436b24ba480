//go:build linux

package native

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

func TestProbe(t *testing.T) {
	r := newRig(t)
	if r.Name() != "native" {
		t.Error(r.Name())
	}
	s := r.Probe(t.Context())
	if !s.Usable || !strings.HasPrefix(s.Version, "linux ") || !slices.Contains(s.Capabilities, CapabilityPIDs) || !slices.IsSorted(s.Capabilities) {
		t.Errorf("%+v", s)
	}
	if r.machine.canNAT() != slices.Contains(s.Capabilities, CapabilityNetwork) {
		t.Errorf("%+v", s)
	}
	if entries, err := os.ReadDir(r.dir); err != nil || len(entries) > 0 {
		t.Errorf("it left %v (%v)", entries, err)
	}
	guest := r.guest
	r.guest = filepath.Join(r.dir, "absent")
	if s := r.Probe(t.Context()); s.Usable || !strings.Contains(s.Reason, "guest program is missing") || s.Fix == "" {
		t.Errorf("%+v", s)
	}
	r.guest, r.init = guest, []string{"/bin/cat"}
	if s := r.Probe(t.Context()); s.Usable || !strings.Contains(s.Reason, "a sandbox cannot be made") {
		t.Errorf("%+v", s)
	}
	r.machine.root, r.machine.mapped = true, false
	if s := r.Probe(t.Context()); s.Usable || !strings.Contains(s.Reason, "inside a user namespace") {
		t.Errorf("%+v", s)
	}
}

func TestRemedy(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		key  string
		val  string
		want string
	}{
		"max":      {unix.ENOSPC, "user.max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=15000"},
		"debian":   {unix.EPERM, "kernel.unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"},
		"apparmor": {unix.EACCES, "kernel.apparmor_restrict_unprivileged_userns", "1", "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		"open":     {unix.EPERM, "kernel.apparmor_restrict_unprivileged_userns", "0", ""},
		"other":    {unix.EIO, "user.max_user_namespaces", "0", ""},
	} {
		got := remedy(c.err, func(key string) string {
			if key == c.key {
				return c.val
			}
			return ""
		})
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if sysctl("kernel.ostype") != "Linux" || sysctl("no.such.setting") != "" {
		t.Error(sysctl("kernel.ostype"))
	}
}

func TestCapabilities(t *testing.T) {
	_, missing := machine{}.capabilities()
	if !strings.Contains(missing, "memory is limited for each process") || !strings.Contains(missing, "as root") {
		t.Error(missing)
	}
	_, missing = machine{root: true}.capabilities()
	if !strings.Contains(missing, "iptables is not installed") {
		t.Error(missing)
	}
}

func TestIDsRunOut(t *testing.T) {
	r := newRig(t)
	if !r.machine.root {
		t.Skip("ranges are a root agent's")
	}
	r.machine.idSlots = 2
	for _, ws := range []string{"a", "b"} {
		if _, err := r.Create(t.Context(), providers.Spec{Workspace: ws}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := r.Create(t.Context(), providers.Spec{Workspace: "c"})
	if !errors.Is(err, providers.ErrExhausted) {
		t.Error(err)
	}
	r.machine.idBase = 5 // as if the entry of /etc/subuid had changed
	r.machine.idSlots = 1
	if err := r.Start(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "outside of root's range") {
		t.Error(err)
	}
}

func TestFailed(t *testing.T) {
	for err, kind := range map[error]error{
		unix.ENOSPC: providers.ErrExhausted, unix.EDQUOT: providers.ErrExhausted,
		unix.ENOMEM: providers.ErrExhausted, errNamespaces: providers.ErrUnusable,
	} {
		if got := failed("start", "w", err); !errors.Is(got, kind) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
	own := &providers.Error{Message: "own"}
	if failed("start", "w", nil) != nil || !errors.Is(failed("start", "w", own), own) {
		t.Error("changed what was right")
	}
}
