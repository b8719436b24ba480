package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/vendetta-dev/vendetta/transport"
)

// maxKeyBytes bounds a private key's file.
const maxKeyBytes = 1 << 20

// credentials are what one host is offered: the server's own key, the identity
// the caller named, the lent agent's keys, other identity files, the password.
// The order matters: sshd ends a login after a few refused keys.
type credentials struct {
	signers []gossh.Signer
	own     []byte
	// offered names what was tried, for the message when all is refused.
	offered []string
	// locked are encrypted identity files whose keys no agent holds.
	locked   []string
	password string
	// withheld: there is a password, but not for this host.
	withheld bool
	agent    net.Conn
	// accepted is the public key that signed last.
	accepted []byte
}

// credentials gathers them; the result must be closed.
func (o Options) credentials(ctx context.Context, h *hop) (*credentials, error) {
	c := &credentials{}
	if o.Key != nil {
		c.own = o.Key.PublicKey().Marshal()
		c.add(o.Key, "the server's own key")
	}
	lent, err := c.openAgent(ctx, o.Login)
	if err != nil {
		return nil, err
	}
	// The one identity that was named goes before an agent's many keys.
	given := h.given
	if o.Identity != "" {
		err = c.identity(given[0], lent, true)
		given = given[1:]
	}
	if !h.onlyConfigured {
		for _, s := range lent {
			c.add(s, "the ssh-agent's keys")
		}
	}
	for _, file := range given {
		err = errors.Join(err, c.identity(file, lent, true))
	}
	for _, file := range h.configured {
		err = errors.Join(err, c.identity(file, lent, false))
	}
	if err != nil {
		c.close()
		return nil, err
	}
	// A jump host would learn the password of the host behind it.
	if o.Login != nil && !h.jump {
		c.password = o.Login.Password
	}
	c.withheld = o.Login != nil && o.Login.Password != "" && h.jump
	return c, nil
}

// add offers a signer once.
func (c *credentials) add(s gossh.Signer, what string) {
	key := s.PublicKey().Marshal()
	for _, have := range c.signers {
		if bytes.Equal(have.PublicKey().Marshal(), key) {
			return
		}
	}
	c.signers = append(c.signers, c.watch(s))
	if len(c.offered) == 0 || c.offered[len(c.offered)-1] != what {
		c.offered = append(c.offered, what)
	}
}

// openAgent returns the keys of the lent agent.
func (c *credentials) openAgent(ctx context.Context, login *Login) ([]gossh.Signer, error) {
	if login == nil || login.AgentSocket == "" {
		return nil, nil
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", login.AgentSocket)
	if err != nil {
		return nil, &transport.Error{
			Kind:    transport.ErrLogin,
			Message: fmt.Sprintf("use the ssh-agent: nothing answers on %s", login.AgentSocket),
			Next:    "start one (eval $(ssh-agent); ssh-add), or unset SSH_AUTH_SOCK",
			Cause:   err,
		}
	}
	c.agent = conn
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		c.close()
		return nil, &transport.Error{
			Kind:    transport.ErrLogin,
			Message: fmt.Sprintf("use the ssh-agent on %s: %v", login.AgentSocket, err),
			Next:    "check it with ssh-add -l, or unset SSH_AUTH_SOCK",
			Cause:   err,
		}
	}
	return signers, nil
}

// identity offers the key in file, or the agent's signer for it when the file is
// encrypted or is a public key alone. must says that the file has to be there.
func (c *credentials) identity(file string, lent []gossh.Signer, must bool) error {
	data, err := readBounded(file, maxKeyBytes)
	if err != nil {
		if !must && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			return nil
		}
		return &transport.Error{
			Kind:    transport.ErrLogin,
			Message: fmt.Sprintf("read identity %s: %v", file, innermost(err)),
			Next:    "pass the path of a private key that this user can read",
			Cause:   err,
		}
	}
	what := "identity " + file
	signer, err := gossh.ParsePrivateKey(data)
	if err == nil {
		c.add(signer, what)
		return nil
	}
	var missing *gossh.PassphraseMissingError
	encrypted := errors.As(err, &missing)
	var public gossh.PublicKey
	if encrypted {
		public = missing.PublicKey
	}
	if public == nil {
		public = publicPart(file, data)
	}
	for _, s := range lent {
		if public != nil && bytes.Equal(s.PublicKey().Marshal(), public.Marshal()) {
			c.add(s, what)
			return nil
		}
	}
	switch {
	case encrypted:
		c.locked = append(c.locked, file)
		return nil
	case !must:
		return nil
	}
	return &transport.Error{
		Kind:    transport.ErrLogin,
		Message: fmt.Sprintf("read identity %s: it is not a private key", file),
		Next:    "pass the path of a private key, not of its .pub file",
		Cause:   err,
	}
}

// publicPart is the public key that data is, or that lies beside file.
func publicPart(file string, data []byte) gossh.PublicKey {
	if key, _, _, _, err := gossh.ParseAuthorizedKey(data); err == nil {
		return key
	}
	data, err := readBounded(file+".pub", maxKeyBytes)
	if err != nil {
		return nil
	}
	key, _, _, _, err := gossh.ParseAuthorizedKey(data)
	if err != nil {
		return nil
	}
	return key
}

// methods are the login methods in the order in which they are tried.
func (c *credentials) methods() []gossh.AuthMethod {
	var methods []gossh.AuthMethod
	if len(c.signers) > 0 {
		methods = append(methods, gossh.PublicKeys(c.signers...))
	}
	if c.password != "" {
		methods = append(methods, gossh.Password(c.password), gossh.KeyboardInteractive(c.answer))
	}
	return methods
}

var errQuestions = errors.New("the host asks more than a password")

// answer gives the password to the one hidden question that sshd with PAM asks
// where it does not take passwords directly. Anything else is not answered.
func (c *credentials) answer(_, _ string, questions []string, echos []bool) ([]string, error) {
	switch {
	case len(questions) == 0:
		return nil, nil
	case len(questions) == 1 && !echos[0]:
		return []string{c.password}, nil
	}
	return nil, errQuestions
}

// usedOwn says whether the server's own key did it.
func (c *credentials) usedOwn() bool {
	return c.own != nil && bytes.Equal(c.accepted, c.own)
}

func (c *credentials) close() {
	if c.agent != nil {
		_ = c.agent.Close()
	}
}

// refused explains a refused login.
func (c *credentials) refused(h *hop, cause error) error {
	e := &transport.Error{Kind: transport.ErrLogin, Cause: cause}
	offered := append([]string(nil), c.offered...)
	if c.password != "" {
		offered = append(offered, "the password")
	}
	switch {
	case len(offered) > 0:
		e.Message = fmt.Sprintf("log in to %s: refused; tried %s", h, strings.Join(offered, ", "))
		e.Next = "check the user's name, and that one of these keys is in ~/.ssh/authorized_keys there; or pass another with --identity"
	default:
		e.Message = fmt.Sprintf("log in to %s: there is no key to log in with", h)
		e.Next = "pass a private key with --identity, or add one to your ssh-agent: ssh-add"
	}
	if c.withheld {
		e.Message += "; the password is for the node only"
	}
	if len(c.locked) > 0 {
		e.Message += fmt.Sprintf("; %s is encrypted", strings.Join(c.locked, ", "))
		e.Next = "unlock it in your ssh-agent: ssh-add " + Quote(c.locked...)
	}
	e.Next += h.note()
	return e
}

// note names config lines that were not judged.
func (h *hop) note() string {
	if len(h.ignored) == 0 {
		return ""
	}
	return fmt.Sprintf(" (the Match lines %s are not evaluated by vendetta)", strings.Join(h.ignored, ", "))
}

// watch notes which key signs.
func (c *credentials) watch(s gossh.Signer) gossh.Signer {
	if multi, ok := s.(gossh.MultiAlgorithmSigner); ok {
		return &watchedMulti{MultiAlgorithmSigner: multi, c: c}
	}
	if algorithm, ok := s.(gossh.AlgorithmSigner); ok {
		return &watchedSigner{AlgorithmSigner: algorithm, c: c}
	}
	return s
}

type watchedSigner struct {
	gossh.AlgorithmSigner
	c *credentials
}

func (w *watchedSigner) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*gossh.Signature, error) {
	w.c.accepted = w.PublicKey().Marshal()
	return w.AlgorithmSigner.SignWithAlgorithm(rand, data, algorithm)
}

type watchedMulti struct {
	gossh.MultiAlgorithmSigner
	c *credentials
}

func (w *watchedMulti) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*gossh.Signature, error) {
	w.c.accepted = w.PublicKey().Marshal()
	return w.MultiAlgorithmSigner.SignWithAlgorithm(rand, data, algorithm)
}

// innermost strips the operation that the message names already.
func innermost(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys.Err
	}
	return err
}
