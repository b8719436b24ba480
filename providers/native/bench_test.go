//go:build linux

package native

import (
	"testing"

	"github.com/vendetta-dev/vendetta/providers"
)

// BenchmarkUp is what a user waits for: create, start, the guest's link.
func BenchmarkUp(b *testing.B) {
	for _, network := range []providers.Network{providers.NetworkNone, providers.NetworkPrivate} {
		b.Run(string(network), func(b *testing.B) {
			p, err := quiet(b)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := p.Create(b.Context(), providers.Spec{Workspace: "w1", Network: network}); err != nil {
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
