package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// provided is a provider as the scripts of testdata/providers meet it.
type provided struct {
	name string
	// setup returns the image to use and sets what the provider needs.
	setup func(t *testing.T, env *testscript.Env) (image string)
	// traits are the conditions that hold for it.
	traits []string
}

var everyProvider = []provided{
	{"docker", func(t *testing.T, env *testscript.Env) string {
		env.Setenv("DOCKER_HOST", testbed.Docker(t))
		return testbed.Image(t)
	}, []string{"image"}},
	{"native", func(t *testing.T, _ *testscript.Env) string { return testbed.RegistryImage(t) }, []string{"image"}},
	{"lxc", func(t *testing.T, _ *testscript.Env) string { return testbed.RegistryImage(t) }, []string{"image"}},
	{"qemu", func(t *testing.T, env *testscript.Env) string {
		env.Setenv("VENDETTA_QEMU_KERNEL", testbed.Kernel(t))
		return testbed.RegistryImage(t)
	}, []string{"image", "disk"}},
}

// TestProviders runs each script with each provider that is named: a workspace is
// the same thing on all of them.
func TestProviders(t *testing.T) {
	named := strings.Split(os.Getenv("VENDETTA_TEST_PROVIDERS"), ",")
	for _, p := range everyProvider {
		if !slices.Contains(named, p.name) {
			t.Logf("%s is not named in VENDETTA_TEST_PROVIDERS", p.name)
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			program := testbed.Programs(t)
			testscript.Run(t, testscript.Params{
				Dir:                 "testdata/providers",
				RequireExplicitExec: true,
				Setup: func(env *testscript.Env) error {
					env.Setenv("PROVIDER", p.name)
					env.Setenv("IMAGE", p.setup(t, env))
					return prepare(t, program, env)
				},
				Condition: func(name string) (bool, error) {
					if !slices.Contains([]string{"image", "disk"}, name) {
						return false, fmt.Errorf("unknown condition %q", name)
					}
					return slices.Contains(p.traits, name), nil
				},
			})
		})
	}
}
