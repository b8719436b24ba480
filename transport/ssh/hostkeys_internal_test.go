package ssh

import (
	"os"
	"path/filepath"
	"testing"
)

// Whatever a known_hosts file holds, reading it never fails: what x/crypto would
// refuse the whole file for is passed over.
func FuzzKnownHosts(f *testing.F) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2X4oTHVxbZTcpRcLoDGSS9YJjzUuFDcnGN5lYkrWvQ"
	for _, hosts := range []string{"host", "|1|AA==|AA==", "|1|?|?", "|2|AA==|AA==", "[host]:22", "[host", "!", "!host,*", ",", "@revoked *", "@x host", "@cert-authority *", "h:1:2", "[h]:1x", "a,|1|AA==|AA=="} {
		f.Add(hosts + " " + key + "\n")
	}
	f.Add("host ssh-rsa AAAA\nhost\n# x\n\thost " + key + " comment\r\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(dir, "known_hosts")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		keys, err := Options{KnownHosts: []string{file}}.knownKeys()
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if err := keys.verify(&hop{user: "u", host: "h", port: 22, keyName: "h:22"}, unknownKey()); err == nil {
			t.Fatalf("%q: a key that nobody has was accepted", text)
		}
	})
}
