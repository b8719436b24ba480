package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// A stream of the Connect protocol is a row of envelopes, each a byte of flags, a
// length of four bytes and as many bytes of message; the last one carries the
// end of the stream and its error (connectrpc.com/docs/protocol).
const (
	envelopeHeader  = 5
	endStreamFlag   = 0x02
	connectStreamed = "application/connect+"
)

// envelopes follows where in a row of envelopes a stream stands.
type envelopes struct {
	header [envelopeHeader]byte
	have   int
	left   uint32
	ended  bool
}

func (e *envelopes) follow(p []byte) {
	for len(p) > 0 {
		if e.have < envelopeHeader {
			n := copy(e.header[e.have:], p)
			e.have += n
			p = p[n:]
			if e.have < envelopeHeader {
				return
			}
			e.left = binary.BigEndian.Uint32(e.header[1:])
			e.ended = e.ended || e.header[0]&endStreamFlag != 0
		}
		n := min(uint64(e.left), uint64(len(p)))
		e.left -= uint32(n)
		p = p[n:]
		if e.left == 0 {
			e.have = 0
		}
	}
}

// between reports whether another envelope may follow here.
func (e *envelopes) between() bool { return e.have == 0 && !e.ended }

// tellLoss gives a streamed answer whose connection is lost between two messages
// a proper end, which says unavailable. Within a message, and in protocols that
// have no such end, the caller's stream is broken off.
func (p *passThrough) tellLoss(res *http.Response) io.ReadCloser {
	if !strings.HasPrefix(res.Header.Get("Content-Type"), connectStreamed) || res.Header.Get("Content-Encoding") != "" {
		return res.Body
	}
	return &endedBody{ReadCloser: res.Body, end: func(cause error) []byte {
		if res.Request.Context().Err() != nil {
			return nil
		}
		p.log.Warn("stream lost on its way", "path", res.Request.URL.Path, "error", cause)
		var out bodyWriter
		// The kind of answer is told from the request.
		r := &http.Request{Method: http.MethodPost, Header: http.Header{"Content-Type": res.Header["Content-Type"]}}
		err := &api.Error{
			Code:    api.Unavailable,
			Message: "pass the call on: the connection was lost in the middle of the answer",
			Next:    "repeat the call: the connection is made anew; what was started goes on and can be looked up",
			Cause:   cause,
		}
		if p.errors.Write(&out, r, api.ToConnect(err)) != nil {
			return nil
		}
		return out.Bytes()
	}}
}

// endedBody is a streamed answer that ends well even when its connection did not.
type endedBody struct {
	io.ReadCloser
	at  envelopes
	end func(cause error) []byte
	// rest is what remains to be read of our own end, once there is one.
	rest *bytes.Reader
}

func (b *endedBody) Read(p []byte) (int, error) {
	if b.rest != nil {
		return b.rest.Read(p)
	}
	n, err := b.ReadCloser.Read(p)
	b.at.follow(p[:n])
	if err == nil || errors.Is(err, io.EOF) || !b.at.between() {
		return n, err
	}
	end := b.end(err)
	if end == nil {
		return n, err
	}
	b.rest = bytes.NewReader(end)
	return n, nil
}

// bodyWriter keeps the body of an answer alone.
type bodyWriter struct {
	bytes.Buffer
	header http.Header
}

func (w *bodyWriter) Header() http.Header {
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}

func (w *bodyWriter) WriteHeader(int) {}
