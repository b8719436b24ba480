package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registrySource is a source that is asked over the network. It logs in with what
// docker login left for the agent's user, credential helpers included.
type registrySource struct {
	named  name.Reference
	puller *remote.Puller
}

func (s *Store) registry(ref reference) (*registrySource, error) {
	puller, err := remote.NewPuller(
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithTransport(s.wire(ref.named.Context().RegistryStr())),
		remote.WithUserAgent("vendetta"),
		// Our transport does this, within ctx.
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}),
		remote.WithRetryPredicate(func(error) bool { return false }),
		remote.WithRetryStatusCodes(),
	)
	if err != nil {
		return nil, err
	}
	return &registrySource{named: ref.named, puller: puller}, nil
}

func (r *registrySource) first(ctx context.Context, digest string) ([]byte, v1.Hash, error) {
	named := r.named
	if digest != "" {
		named = named.Context().Digest(digest)
	}
	got, err := r.puller.Get(ctx, named)
	if err != nil {
		if strings.Contains(err.Error(), "does not match requested digest") { // it has no type
			err = &mismatch{what: "what " + r.named.Context().RegistryStr() + " sent for the manifest", want: named.Identifier(), got: "another"}
		}
		return nil, v1.Hash{}, err
	}
	return got.Manifest, got.Digest, nil
}

func (r *registrySource) part(ctx context.Context, of v1.Hash) (io.ReadCloser, error) {
	layer, err := r.puller.Layer(ctx, r.named.Context().Digest(of.String()))
	if err != nil {
		return nil, err
	}
	body, err := layer.Compressed()
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		err = refuse("%s has the image and not its part %s", r.named.Context().RegistryStr(), of)
	}
	if err != nil {
		return nil, err
	}
	return unchecked{body}, nil
}

// unchecked leaves it to our own check to say what is wrong with a body.
type unchecked struct{ io.ReadCloser }

func (u unchecked) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err != nil && strings.HasPrefix(err.Error(), "error verifying ") { // it has no type
		err = io.EOF
	}
	return n, err
}

func (r *registrySource) whole(context.Context, string) (picture, bool, error) {
	return picture{}, false, nil
}
func (r *registrySource) far() bool    { return true }
func (r *registrySource) close() error { return nil }

// wire is how this store talks to the registry or web server at host, which may
// have a port, and to those that it is led to.
func (s *Store) wire(host string) http.RoundTripper {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	inner := s.options.Transport
	if inner == nil {
		inner = http.DefaultTransport
	}
	return &wire{inner: inner, near: isLoopback(host), patience: s.patience, first: s.wait, manifest: s.limits.manifest}
}

// wire sends requests over https, or over plain http to loopback alone, where
// nobody is led who asked for something elsewhere, asks again, a few times and ever later, when a server says that it is busy, and ends
// an answer that stands still.
type wire struct {
	inner    http.RoundTripper
	near     bool          // it was asked for something on this machine
	patience time.Duration // with no byte
	first    time.Duration // before asking again
	manifest int64         // bytes of a manifest
}

const (
	attempts = 4
	lastWait = 30 * time.Second
)

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !isLoopback(r.URL.Hostname()) {
		return nil, fmt.Errorf("%s %s: %w", r.Method, r.URL.Redacted(), errPlain)
	}
	if isLoopback(r.URL.Hostname()) && !w.near {
		// A redirect, or where a registry wants one to log in.
		return nil, refuse("it leads to the node itself: %s", r.URL.Host)
	}
	wait := w.first
	for attempt := 1; ; attempt++ {
		answer, err := w.once(r)
		if !again(r, answer, err) || attempt == attempts {
			return answer, err
		}
		if answer != nil {
			wait = max(wait, asked(answer))
			_ = answer.Body.Close() // nobody wants this answer
		}
		timer := time.NewTimer(min(wait, lastWait))
		select {
		case <-r.Context().Done():
			timer.Stop()
			return nil, r.Context().Err()
		case <-timer.C:
		}
		wait *= 3
	}
}

// again says whether a later request may have a better answer.
func again(r *http.Request, answer *http.Response, err error) bool {
	if r.Context().Err() != nil || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	if err != nil {
		var timeout net.Error
		return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
			errors.As(err, &timeout) && timeout.Timeout()
	}
	switch answer.StatusCode {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// asked is how long the server wants to be left alone.
func asked(answer *http.Response) time.Duration {
	seconds, err := strconv.Atoi(answer.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, lastWait)
}

// once sends a request that ends when no byte comes for too long.
func (w *wire) once(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	idle := time.AfterFunc(w.patience, func() { cancel(errStalled) })
	answer, err := w.inner.RoundTrip(r.WithContext(ctx))
	if err != nil {
		idle.Stop()
		if errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		cancel(nil)
		return nil, err
	}
	idle.Stop()
	body := &flow{body: answer.Body, ctx: ctx, cancel: cancel, idle: idle, patience: w.patience}
	answer.Body = body
	if strings.Contains(r.URL.Path, "/manifests/") {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{&measured{r: body, max: func() int64 { return w.manifest }, word: fmt.Sprintf("its manifest is more than %d bytes", w.manifest)}, body}
	}
	return answer, nil
}

// flow is a body that is watched.
type flow struct {
	body     io.ReadCloser
	ctx      context.Context //nolint:containedctx // of one answer
	cancel   context.CancelCauseFunc
	idle     *time.Timer
	patience time.Duration
}

func (f *flow) Read(p []byte) (int, error) {
	f.idle.Reset(f.patience)
	n, err := f.body.Read(p)
	f.idle.Stop() // what the reader does meanwhile is not the server's delay
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(f.ctx), errStalled) {
		err = errStalled
	}
	return n, err
}

func (f *flow) Close() error {
	f.idle.Stop()
	err := f.body.Close()
	f.cancel(nil)
	return err
}
