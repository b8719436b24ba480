package wire

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// Resolve finds where a request goes: the transport that carries it and the
// path there. Its error is answered as the protocol of the call demands. It may
// change r's headers, and what it sets travels on.
type Resolve func(r *http.Request) (next http.RoundTripper, path string, err error)

// PassThrough hands requests on unchanged, streams included, with back-pressure
// and bounded memory. It returns early errors while the request body is still
// open, and a caller that goes away ends the call upstream.
//
// Two kinds of header do not travel: the caller's credentials, which prove who
// it is on this hop alone, and what a guest could tell a browser about our
// origin. A failure of the next hop reads as unavailable unless its transport
// returned an *api.Error.
func PassThrough(resolve Resolve, log *slog.Logger) http.Handler {
	p := &passThrough{resolve: resolve, log: log, errors: connect.NewErrorWriter()}
	p.proxy = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      nextHop{},
		FlushInterval:  -1,
		BufferPool:     copyBuffers{},
		ModifyResponse: p.modifyResponse,
		ErrorHandler:   p.fail,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return p
}

type passThrough struct {
	resolve Resolve
	log     *slog.Logger
	errors  *connect.ErrorWriter
	proxy   *httputil.ReverseProxy
}

func (p *passThrough) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	next, path, err := p.resolve(r)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	c := &call{next: next, path: path, controller: http.NewResponseController(w)}
	if r.ProtoMajor == 1 {
		// HTTP/1 would read the request to its end before the first byte of answer.
		_ = c.controller.EnableFullDuplex()
	}
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &inboundBody{ReadCloser: r.Body, call: c}
	} else {
		c.bodyRead.Store(true)
	}
	p.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
}

// call is one request on its way through.
type call struct {
	next       http.RoundTripper
	path       string
	controller *http.ResponseController
	bodyRead   atomic.Bool
}

type callKey struct{}

func callOf(r *http.Request) *call {
	c, _ := r.Context().Value(callKey{}).(*call)
	return c
}

// endInbound ends the caller's request body. The transport to the next hop does
// not let go of an answered call before its pending read of that body has
// returned, and a caller that waits for our answer never ends it.
func (c *call) endInbound() {
	if !c.bodyRead.Swap(true) {
		_ = c.controller.SetReadDeadline(time.Unix(1, 0))
	}
}

// inboundBody remembers whether the caller's request body came to its end.
type inboundBody struct {
	io.ReadCloser
	call *call
}

func (b *inboundBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.call.bodyRead.Store(true)
	}
	return n, err
}

// nextHop carries each call by the transport that was resolved for it.
type nextHop struct{}

func (nextHop) RoundTrip(r *http.Request) (*http.Response, error) {
	return callOf(r).next.RoundTrip(r)
}

// credentials stay on the hop they were meant for.
var credentials = []string{"Authorization", "Cookie", "Proxy-Authorization"}

func rewrite(r *httputil.ProxyRequest) {
	for _, name := range credentials {
		r.Out.Header.Del(name)
	}
	r.Out.URL.Scheme = "http"
	r.Out.URL.Host = "vendetta"
	r.Out.URL.Path = callOf(r.In).path
	r.Out.URL.RawPath = ""
	r.Out.Host = ""
}

// originHeaders would speak for our origin to a browser; a guest may not.
var originHeaders = []string{"Set-Cookie", "Clear-Site-Data", "Strict-Transport-Security", "Alt-Svc", "Refresh"}

func (p *passThrough) modifyResponse(res *http.Response) error {
	for _, name := range originHeaders {
		res.Header.Del(name)
	}
	for name := range res.Header {
		if strings.HasPrefix(name, "Access-Control-") {
			res.Header.Del(name)
		}
	}
	c := callOf(res.Request)
	if res.StatusCode >= http.StatusMultipleChoices && res.StatusCode < http.StatusBadRequest {
		// No service of ours redirects; a guest that does means to lead its caller
		// somewhere else with the caller's rights.
		c.endInbound()
		return api.Errorf(api.Unavailable, "call %s: the other side answered with a redirect, which is not followed", c.path)
	}
	if res.StatusCode >= http.StatusMultipleChoices {
		// The call has failed; nobody up there reads the rest of the request.
		c.endInbound()
	}
	res.Body = &outboundBody{ReadCloser: p.tellLoss(res), call: c}
	return nil
}

// outboundBody ends the inbound body when the answer ends.
type outboundBody struct {
	io.ReadCloser
	call *call
}

func (b *outboundBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.call.endInbound()
	}
	return n, err
}

func (b *outboundBody) Close() error {
	b.call.endInbound()
	return b.ReadCloser.Close()
}

// fail answers err in the protocol that the call speaks.
func (p *passThrough) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		// The caller is gone, or its time is over: there is nobody to tell.
		p.log.Debug("call given up by its caller", "path", r.URL.Path, "error", err)
	} else {
		p.log.Warn("call not passed on", "path", r.URL.Path, "error", err, "cause", errors.Unwrap(err))
	}
	if werr := p.errors.Write(w, r, api.ToConnect(explain(err))); werr != nil {
		p.log.Debug("error not delivered", "path", r.URL.Path, "error", werr)
	}
}

// explain makes err fit for the caller's eyes.
func explain(err error) *api.Error {
	var own *api.Error
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, context.DeadlineExceeded):
		return &api.Error{Code: api.DeadlineExceeded, Message: "pass the call on: the time was over before it was answered", Cause: err}
	}
	return &api.Error{
		Code:    api.Unavailable,
		Message: "pass the call on: the connection was lost before it was answered",
		Next:    "repeat the call: the connection is made anew; what was started goes on and can be looked up",
		Cause:   err,
	}
}

// copyBufferSize is what one Read from the next hop may bring. Smaller ones
// cost half the throughput.
const copyBufferSize = 256 << 10

var copyBufferPool = sync.Pool{New: func() any { return new([copyBufferSize]byte) }}

type copyBuffers struct{}

func (copyBuffers) Get() []byte { return copyBufferPool.Get().(*[copyBufferSize]byte)[:] }

func (copyBuffers) Put(b []byte) { copyBufferPool.Put((*[copyBufferSize]byte)(b)) }
