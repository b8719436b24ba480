package ssh

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/vendetta-dev/vendetta/transport"
)

// maxKnownHostsBytes bounds a known_hosts file.
const maxKnownHostsBytes = 16 << 20

// keyAlgorithms are the host key algorithms by type of key, in the order in
// which they are asked for when nothing is known of a host: OpenSSH's own, so
// that the key shown is the one that ssh and ssh-keyscan show first.
var keyAlgorithms = []struct {
	keyType    string
	algorithms []string
	certs      []string
}{
	{gossh.KeyAlgoED25519, []string{gossh.KeyAlgoED25519}, []string{gossh.CertAlgoED25519v01}},
	{gossh.KeyAlgoECDSA256, []string{gossh.KeyAlgoECDSA256}, []string{gossh.CertAlgoECDSA256v01}},
	{gossh.KeyAlgoECDSA384, []string{gossh.KeyAlgoECDSA384}, []string{gossh.CertAlgoECDSA384v01}},
	{gossh.KeyAlgoECDSA521, []string{gossh.KeyAlgoECDSA521}, []string{gossh.CertAlgoECDSA521v01}},
	{gossh.KeyAlgoRSA, []string{gossh.KeyAlgoRSASHA512, gossh.KeyAlgoRSASHA256}, []string{gossh.CertAlgoRSASHA512v01, gossh.CertAlgoRSASHA256v01}},
}

// knownKeys judges the host keys of one way by known_hosts files and accepted
// fingerprints.
type knownKeys struct {
	check    gossh.HostKeyCallback
	accepted map[string]bool
	// shown has the host of the way that showed a fingerprint first. Accepted
	// fingerprints do not say whose they are, so without it a jump host could
	// answer with its own accepted key for every host behind it.
	shown map[string]*hop
	// mu guards shown: keys are judged again when a connection changes its
	// session keys, on all connections of the way at once.
	mu sync.Mutex
	// authorities says whether any line is a @cert-authority.
	authorities bool
	name        string
	address     string
}

// knownKeys reads the files anew: they change while a server runs.
func (o Options) knownKeys() (*knownKeys, error) {
	k := &knownKeys{accepted: map[string]bool{}, shown: map[string]*hop{}, name: o.Name, address: o.address()}
	for _, fingerprint := range o.HostKeys {
		k.accepted[fingerprint] = true
	}
	var files []string
	clean := cleaner{originals: map[string]string{}}
	defer clean.remove()
	for _, file := range o.KnownHosts {
		data, err := readBounded(file, maxKnownHostsBytes)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read known hosts: %w", err)
		}
		k.authorities = k.authorities || bytes.Contains(data, []byte("@cert-authority"))
		usable, err := clean.usable(file, data)
		if err != nil {
			return nil, err
		}
		files = append(files, usable)
	}
	check, err := knownhosts.New(files...)
	if err != nil {
		return nil, fmt.Errorf("read known hosts: %w", err)
	}
	k.check = clean.named(check)
	return k, nil
}

// cleaner makes readable copies of known_hosts files with lines that x/crypto
// cannot read (it then refuses the whole file; OpenSSH passes over such lines).
type cleaner struct {
	// originals by the name of their copy.
	originals map[string]string
}

// maxDamaged bounds how many lines of a file are passed over.
const maxDamaged = 1000

// damagedLine finds the line's number in x/crypto's error.
var damagedLine = regexp.MustCompile(`:(\d+): `)

// usable returns a file that x/crypto reads: file itself, or a copy in which the
// lines that it refuses are empty, so that the others keep their numbers.
func (c *cleaner) usable(file string, data []byte) (string, error) {
	_, err := knownhosts.New(file)
	if err == nil {
		return file, nil
	}
	lines := bytes.Split(data, []byte("\n"))
	for i, line := range lines {
		// Longer than the scanner takes; the error would not say where.
		if len(line) >= bufio.MaxScanTokenSize/2 {
			lines[i] = nil
		}
	}
	temp, terr := os.CreateTemp("", "known_hosts")
	if terr != nil {
		return "", fmt.Errorf("read known hosts %s: %w", file, terr)
	}
	_ = temp.Close()
	c.originals[temp.Name()] = file
	for range maxDamaged {
		if err := os.WriteFile(temp.Name(), bytes.Join(lines, []byte("\n")), 0o600); err != nil {
			return "", fmt.Errorf("read known hosts %s: %w", file, err)
		}
		if _, err = knownhosts.New(temp.Name()); err == nil {
			return temp.Name(), nil
		}
		found := damagedLine.FindStringSubmatch(strings.TrimPrefix(err.Error(), "knownhosts: "+temp.Name()))
		if found == nil {
			break
		}
		if n, nerr := strconv.Atoi(found[1]); nerr == nil && n >= 1 && n <= len(lines) {
			lines[n-1] = nil
		}
	}
	return "", fmt.Errorf("read known hosts %s: too much of it is damaged: %w", file, err)
}

func (c *cleaner) remove() {
	for name := range c.originals {
		_ = os.Remove(name)
	}
}

// named gives the files in check's errors their real names.
func (c *cleaner) named(check gossh.HostKeyCallback) gossh.HostKeyCallback {
	originals := c.originals
	return func(host string, remote net.Addr, key gossh.PublicKey) error {
		err := check(host, remote, key)
		var unknown *knownhosts.KeyError
		if errors.As(err, &unknown) {
			for i, want := range unknown.Want {
				if name, ok := originals[want.Filename]; ok {
					unknown.Want[i].Filename = name
				}
			}
		}
		var revoked *knownhosts.RevokedError
		if errors.As(err, &revoked) {
			if name, ok := originals[revoked.Revoked.Filename]; ok {
				revoked.Revoked.Filename = name
			}
		}
		return err
	}
}

// nowhere is the remote address for known_hosts checks, which go by name alone.
type nowhere struct{}

func (nowhere) Network() string { return "tcp" }
func (nowhere) String() string  { return "0.0.0.0:0" }

// algorithms orders the host key algorithms: types that are known for the host
// come first, so that a host with several keys shows the known one. Types in
// without are left out.
func (k *knownKeys) algorithms(h *hop, without map[string]bool) []string {
	known := map[string]bool{}
	var ke *knownhosts.KeyError
	if errors.As(k.check(h.keyName, nowhere{}, unknownKey()), &ke) {
		for _, want := range ke.Want {
			known[want.Key.Type()] = true
		}
	}
	var first, rest, certs []string
	for _, a := range keyAlgorithms {
		if k.authorities {
			certs = append(certs, a.certs...)
		}
		switch {
		case without[a.keyType]:
		case known[a.keyType]:
			first = append(first, a.algorithms...)
		default:
			rest = append(rest, a.algorithms...)
		}
	}
	return slices.Concat(certs, first, rest)
}

// unknownKey is a key that no file can hold: the check's answer lists what the
// files do hold.
func unknownKey() gossh.PublicKey {
	key, err := gossh.NewPublicKey(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)))
	if err != nil {
		panic(err) // a key of the right size is always taken
	}
	return key
}

// verify returns nil for a key that is known or accepted, else a
// *transport.Error. A revoked key, and one that differs from a known one of its
// type, is refused even when its fingerprint was accepted. So is one that an
// earlier host of the way showed, unless a file lists it for this very host.
func (k *knownKeys) verify(h *hop, key gossh.PublicKey) error {
	fingerprint := gossh.FingerprintSHA256(key)
	earlier := k.show(h, key)
	err := k.check(h.keyName, nowhere{}, key)
	if err == nil {
		return nil
	}
	var revoked *knownhosts.RevokedError
	if errors.As(err, &revoked) {
		return &transport.Error{
			Kind:    transport.ErrHostKey,
			Message: fmt.Sprintf("connect to %s: its host key %s is revoked by %s:%d", h, fingerprint, revoked.Revoked.Filename, revoked.Revoked.Line),
			Next:    "do not log in to this host; ask who runs it for a new key",
			Cause:   err,
		}
	}
	var unknown *knownhosts.KeyError
	if !errors.As(err, &unknown) {
		return &transport.Error{
			Kind:    transport.ErrHostKey,
			Message: fmt.Sprintf("connect to %s: its host certificate is not accepted: %v", h, err),
			Next:    "check the @cert-authority lines of the known_hosts files",
			Cause:   err,
		}
	}
	for _, want := range unknown.Want {
		if want.Key.Type() == key.Type() {
			return changed(h, key, want, err)
		}
	}
	if earlier != h {
		return shared(h, earlier, key, err)
	}
	if k.accepted[fingerprint] {
		return nil
	}
	return k.unknown(h, key, err)
}

// show notes that h shows key and returns who showed it first. A certificate
// counts as the key in it, which its host may show without the certificate.
func (k *knownKeys) show(h *hop, key gossh.PublicKey) *hop {
	if cert, ok := key.(*gossh.Certificate); ok {
		key = cert.Key
	}
	fingerprint := gossh.FingerprintSHA256(key)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.shown[fingerprint] == nil {
		k.shown[fingerprint] = h
	}
	return k.shown[fingerprint]
}

// errShared tells a key that a jump host showed from an unknown one: accepting
// it would not help.
var errShared = errors.New("host key of a jump host")

func shared(h, earlier *hop, key gossh.PublicKey, cause error) error {
	return &transport.Error{
		Kind: transport.ErrHostKey,
		Message: fmt.Sprintf("connect to %s: it shows the same key as jump host %s, %s (%s); the jump host may be answering in its place",
			h, earlier, gossh.FingerprintSHA256(key), key.Type()),
		Next: fmt.Sprintf("give the host a key of its own; or, if the two really share one, verify that on the host itself and list the key for %s in known_hosts",
			knownhosts.Normalize(h.keyName)),
		Cause: errors.Join(errShared, cause),
	}
}

// errChanged tells a changed key from an unknown one.
var errChanged = errors.New("host key changed")

func changed(h *hop, key gossh.PublicKey, want knownhosts.KnownKey, cause error) error {
	return &transport.Error{
		Kind: transport.ErrHostKey,
		Message: fmt.Sprintf("connect to %s: its host key has changed: %s:%d has %s, the host shows %s (%s); it was reinstalled, or somebody else answers in its place",
			h, want.Filename, want.Line, gossh.FingerprintSHA256(want.Key), gossh.FingerprintSHA256(key), key.Type()),
		Next: fmt.Sprintf("verify the new fingerprint on the host itself; only then remove the old key: ssh-keygen -R '%s' -f '%s'",
			knownhosts.Normalize(h.keyName), want.Filename),
		Cause: errors.Join(errChanged, cause),
	}
}

func (k *knownKeys) unknown(h *hop, key gossh.PublicKey, cause error) error {
	fingerprint := gossh.FingerprintSHA256(key)
	message := fmt.Sprintf("connect to %s: its host key %s (%s) is not known", h, fingerprint, key.Type())
	if len(k.accepted) > 0 {
		message = fmt.Sprintf("connect to %s: its host key %s (%s) is none of the accepted ones; it has changed since, or somebody else answers", h, fingerprint, key.Type())
	}
	return &transport.Error{
		Kind:    transport.ErrHostKey,
		Message: message,
		Next: fmt.Sprintf("compare it with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on the host, then run: vendetta node add %s %s --host-key %s",
			k.name, k.address, fingerprint),
		Cause: cause,
	}
}
