package keys

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	gossh "golang.org/x/crypto/ssh"

	"github.com/vendetta-dev/vendetta/transport"
)

// Find returns the key in file, and makes an ed25519 key there, with mode 0600,
// when there is none. A key that exists is never overwritten, whoever else makes
// one at the same time; one that other users could read is refused.
func Find(file, comment string) (gossh.Signer, error) {
	signer, err := load(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return signer, err
	}
	if err := generate(file, comment); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the server's key: %w", err)
	}
	return load(file)
}

// load reads the key in file.
func load(file string) (gossh.Signer, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("read the server's key: %w", err)
	}
	// Windows has no such modes.
	if open := info.Mode().Perm() &^ 0o700; open != 0 && runtime.GOOS != "windows" {
		return nil, &transport.Error{
			Kind:    transport.ErrLogin,
			Message: fmt.Sprintf("read the server's key: other users may access %s (mode %04o)", file, info.Mode().Perm()),
			Next:    "if nobody has copied it: chmod 600 " + file,
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the server's key: %w", err)
	}
	signer, err := gossh.ParsePrivateKey(data)
	if err != nil {
		return nil, &transport.Error{
			Kind:    transport.ErrLogin,
			Message: fmt.Sprintf("read the server's key: %s holds no usable key: %v", file, err),
			Next:    "restore it from a backup; or move it away, and add the nodes again with the new key",
			Cause:   err,
		}
	}
	return signer, nil
}

// generate makes a key in file, whole or not at all.
func generate(file, comment string) error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := gossh.MarshalPrivateKey(private, comment)
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// The temporary file is 0600 from the start. A link, unlike a rename, does
	// not replace what is there.
	temp, err := os.CreateTemp(dir, ".key")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }()
	_, err = temp.Write(pem.EncodeToMemory(block))
	if err == nil {
		err = temp.Sync()
	}
	if err := errors.Join(err, temp.Close()); err != nil {
		return err
	}
	return os.Link(temp.Name(), file)
}

// PublicLine is the key's line for an authorized_keys file.
func PublicLine(key gossh.PublicKey, comment string) string {
	line := strings.TrimSpace(string(gossh.MarshalAuthorizedKey(key)))
	if comment == "" {
		return line
	}
	return line + " " + comment
}
