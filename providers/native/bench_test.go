//go:build linux

package native

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// BenchmarkUp is what a user waits for: create, start, the guest's link. Beside it
// what the namespaces alone cost by the usual tool.
func BenchmarkUp(b *testing.B) {
	b.Run("unshare", func(b *testing.B) {
		for b.Loop() {
			cmd := exec.CommandContext(b.Context(), "unshare", "-U", "-r", "-m", "-p", "-f", "-i", "-u", "-n", "-C", "--mount-proc", "/bin/true")
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
	root := filepath.Join(b.TempDir(), "image")
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		spec providers.Spec
	}{
		{"none", providers.Spec{Network: providers.NetworkNone}},
		{"private", providers.Spec{Network: providers.NetworkPrivate}},
		{"image", providers.Spec{Network: providers.NetworkNone, Image: "bare"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			p, err := quiet(b)
			if err != nil {
				b.Fatal(err)
			}
			p.guest = testbed.Guest(b)
			p.images = &shelf{img: image.Image{Digest: "sha256:1", Root: root}, holds: map[string]string{}}
			c.spec.Workspace = "w1"
			for b.Loop() {
				if _, err := p.Create(b.Context(), c.spec); err != nil {
					b.Fatal(err)
				}
				if err := p.Start(b.Context(), "w1"); err != nil {
					b.Fatal(err)
				}
				conn, err := p.Connect(b.Context(), "w1")
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := conn.Close(); err != nil {
					b.Fatal(err)
				}
				if err := p.Destroy(b.Context(), "w1", true); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
