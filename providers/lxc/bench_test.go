//go:build linux

package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// BenchmarkCreate is from nothing to the guest's link.
func BenchmarkCreate(b *testing.B) {
	testbed.Wants(b, Name)
	for _, kind := range []providers.Network{providers.NetworkPrivate, providers.NetworkNone} {
		b.Run(string(kind), func(b *testing.B) {
			dir, err := os.MkdirTemp("", "v")
			if err != nil {
				b.Fatal(err)
			}
			p := New(Options{
				ServerID: "s1", StateDir: filepath.Join(dir, "s"), GuestProgram: testbed.StandIn(b), Helper: testbed.LXCHelper(b),
				Images: image.New(image.Options{Dir: filepath.Join(dir, "images")}),
			})
			b.Cleanup(func() {
				p.trash.Wait()
				if err := errors.Join(p.Close(), os.RemoveAll(dir)); err != nil {
					b.Error(err)
				}
			})
			ref := testbed.RegistryImage(b)
			life := func(ws string) {
				if _, err := p.Create(b.Context(), providers.Spec{Workspace: ws, Image: ref, Network: kind}); err != nil {
					b.Fatal(err)
				}
				if err := p.Start(b.Context(), ws); err != nil {
					b.Fatal(err)
				}
				conn, err := p.Connect(b.Context(), ws)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := errors.Join(conn.Close(), p.Destroy(context.WithoutCancel(b.Context()), ws, true)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			life("first")
			b.ResetTimer()
			for i := range b.N {
				life(fmt.Sprintf("w%d", i))
			}
		})
	}
}
