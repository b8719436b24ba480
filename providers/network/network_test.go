//go:build linux

package network

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestResolver(t *testing.T) {
	for in, want := range map[string]string{
		"nameserver 192.0.2.53\n":                         "nameserver 192.0.2.53\n",
		"nameserver 127.0.0.53\noptions edns0\n":          "",
		"search a\nnameserver ::1\nnameserver 192.0.2.53": "search a\nnameserver 192.0.2.53\n",
		"nameserver nonsense\n":                           "",
		"":                                                "",
		"# nameserver 192.0.2.1\nnameserver 127.0.0.1\nxyz a\n": "",
	} {
		if got := reachable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestResolverFiles(t *testing.T) {
	stub, real := filepath.Join(t.TempDir(), "stub"), filepath.Join(t.TempDir(), "real")
	if err := os.WriteFile(stub, []byte("nameserver 127.0.0.53\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text := Resolver(stub, real); !strings.HasPrefix(text, "#") {
		t.Error(text)
	}
	if err := os.WriteFile(real, []byte("nameserver 192.0.2.53\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text := Resolver(stub, real); text != "nameserver 192.0.2.53\n" {
		t.Error(text)
	}
}

func TestNetlinkRefusals(t *testing.T) {
	nl, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	for what, err := range map[string]error{
		"up":      nl.Up("absent0"),
		"prefix":  nl.Address("lo", "nonsense"),
		"address": nl.Address("absent0", "192.0.2.1/30"),
		"gateway": nl.DefaultRoute("nonsense"),
		"route":   nl.DefaultRoute("203.0.113.1"),
		"veth":    nl.Veth("a-name-that-is-too-long", "eth0", os.Getpid()),
		"again":   nl.Address("lo", "127.0.0.1/8"),
	} {
		if err == nil {
			t.Errorf("%s succeeded", what)
		}
	}
	if err := nl.Remove("absent0"); err != nil && os.Geteuid() == 0 {
		t.Error(err)
	}
}
