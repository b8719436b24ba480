package ssh

import (
	"context"
	"errors"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/vendetta-dev/vendetta/transport"
)

// HostKeySeen is a host's key as a probe found it.
type HostKeySeen struct {
	// Host is user@host, with the port where it is not 22.
	Host string
	// Type is the key's, e.g. ssh-ed25519.
	Type string
	// Fingerprint is SHA256:...
	Fingerprint string
	// Known: it is in a known_hosts file for this host, or among the accepted
	// and no earlier host's.
	Known bool
	Jump  bool
}

// errProbed ends a handshake whose key has been seen.
var errProbed = errors.New("host key seen")

// Probe connects as far as it can and returns the keys of the hosts on the way,
// the node last. It logs in to jump hosts with known keys only, and never to the
// node. A host with an unknown key is the last one listed: what lies behind it
// is seen when its key was accepted. A revoked or changed key is an
// error, and so is a jump host's key that another host shows.
func Probe(ctx context.Context, o Options) ([]HostKeySeen, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	route, err := o.route()
	if err != nil {
		return nil, err
	}
	keys, err := o.knownKeys()
	if err != nil {
		return nil, err
	}
	l := &link{options: o, done: make(chan struct{})}
	defer l.close(errProbed)
	var seen []HostKeySeen
	for _, h := range route {
		var shown []gossh.PublicKey
		observe := func(key gossh.PublicKey) { shown = append(shown, key) }
		var p *part
		if h.jump {
			p, err = l.reach(ctx, h, keys, observe)
		} else {
			err = l.look(ctx, h, keys, observe)
		}
		if len(shown) > 0 {
			key := shown[len(shown)-1]
			unknown := isUnknown(err)
			if unknown || errors.Is(err, errShared) {
				// The verdict is about the first; other types did not help.
				key = shown[0]
			}
			seen = append(seen, HostKeySeen{
				Host: h.String(), Type: key.Type(), Fingerprint: gossh.FingerprintSHA256(key),
				Known: !errors.Is(err, transport.ErrHostKey), Jump: h.jump,
			})
			if unknown {
				return seen, nil
			}
		}
		if err != nil {
			return seen, err
		}
		if p != nil {
			l.keep(p)
		}
	}
	return seen, nil
}

// look sees h's key without a login.
func (l *link) look(ctx context.Context, h *hop, keys *knownKeys, observe func(gossh.PublicKey)) error {
	config := &gossh.ClientConfig{User: h.user}
	_, conn, _, _, err := l.handshake(ctx, h, config, handshakeTimeout, keys, func(key gossh.PublicKey) error {
		observe(key)
		if err := keys.verify(h, key); err != nil {
			return err
		}
		return errProbed
	})
	if err == nil {
		_ = conn.Close() // not reached: the key's judge always ends the handshake
	}
	if errors.Is(err, errProbed) {
		return nil
	}
	return err
}

// isUnknown says whether err is about a key that is neither known nor refused.
func isUnknown(err error) bool {
	var unknown *knownhosts.KeyError
	return errors.As(err, &unknown) && !errors.Is(err, errChanged) && !errors.Is(err, errShared)
}
