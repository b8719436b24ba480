package httpapi

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

const (
	// maxMessage bounds the first message of a recorded call, as it travels and
	// unpacked: a file of 4 MiB written as JSON, with room to spare.
	maxMessage = 8 << 20
	// A message larger than largeMessage waits for one of largeMessages places, so
	// that what is held in memory stays bounded with any number of callers.
	largeMessage  = 256 << 10
	largeMessages = 8
)

// shape is how the first message of a request travels.
type shape struct {
	// enveloped: the message has a prefix of flags and length, and others may
	// follow; otherwise it is the whole body.
	enveloped bool
	json      bool
	// encoding names the header that says how messages are compressed.
	encoding string
}

// shapeOf reads the content type. It takes what the generated handlers take for
// a method of this kind, and nothing else.
func shapeOf(contentType string, streaming bool) (shape, bool) {
	base, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return shape{}, false
	}
	for key, value := range params {
		if key != "charset" || !strings.EqualFold(value, "utf-8") {
			return shape{}, false
		}
	}
	s := shape{json: strings.HasSuffix(base, "json")}
	switch base {
	case "application/proto", "application/json":
		s.encoding = "Content-Encoding"
		return s, !streaming
	case "application/connect+proto", "application/connect+json":
		s.enveloped, s.encoding = true, "Connect-Content-Encoding"
		return s, streaming
	case "application/grpc", "application/grpc+proto", "application/grpc+json",
		"application/grpc-web", "application/grpc-web+proto", "application/grpc-web+json":
		s.enveloped, s.encoding = true, "Grpc-Encoding"
		return s, true
	}
	return shape{}, false
}

// peek reads the first message of a request, without keeping it from whom the
// request is passed on to: r.Body begins with the same bytes again. The message
// of a stream that ended without one is empty.
func (h *handler) peek(c *call, r *http.Request) (protoreflect.Message, error) {
	s, ok := shapeOf(r.Header.Get("Content-Type"), c.route.streaming)
	if !ok {
		return nil, api.Errorf(api.Unimplemented, "call %s: content type %q is not served", c.route.name, clip(r.Header.Get("Content-Type")))
	}
	message := dynamicpb.NewMessage(c.route.input)
	if r.Body == nil {
		r.Body = http.NoBody
	}
	raw, payload, compressed, err := h.readFirst(c, r, s)
	if err != nil {
		return nil, err
	}
	r.Body = &rejoined{first: raw, rest: r.Body, passed: c.close}
	if s.enveloped && len(raw) == 0 {
		return message, nil
	}
	if compressed && len(payload) > 0 {
		if payload, err = decompress(payload, r.Header.Get(s.encoding)); err != nil {
			return nil, named(c, err)
		}
	}
	if s.json {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(payload, message)
	} else {
		err = proto.Unmarshal(payload, message)
	}
	if err != nil {
		return nil, named(c, &api.Error{Code: api.InvalidArgument, Message: "the message cannot be read", Cause: err})
	}
	return message, nil
}

// rejoined is a body of which the beginning was read. passed is called when that
// was read again; the rest may go on for hours.
type rejoined struct {
	first  []byte
	rest   io.ReadCloser
	passed func()
}

func (b *rejoined) Read(p []byte) (int, error) {
	if len(b.first) == 0 {
		return b.rest.Read(p)
	}
	n := copy(p, b.first)
	if b.first = b.first[n:]; len(b.first) == 0 {
		b.first = nil
		b.passed()
	}
	return n, nil
}

func (b *rejoined) Close() error { return b.rest.Close() }

// named says which call an error is about.
func named(c *call, err error) error {
	e := *api.From(err)
	e.Message = fmt.Sprintf("call %s: %s", c.route.name, e.Message)
	return &e
}

// readFirst returns the bytes that it read, and the message among them.
func (h *handler) readFirst(c *call, r *http.Request, s shape) (raw, payload []byte, compressed bool, err error) {
	if !s.enveloped {
		raw, err = h.readBody(c, r)
		encoding := r.Header.Get(s.encoding)
		return raw, raw, encoding != "" && encoding != "identity", err
	}
	var prefix [5]byte
	n, err := io.ReadFull(r.Body, prefix[:])
	if errors.Is(err, io.EOF) && n == 0 {
		return nil, nil, false, nil
	}
	if err != nil {
		return nil, nil, false, incomplete(c, err)
	}
	size := int64(binary.BigEndian.Uint32(prefix[1:]))
	const compressedFlag = 1
	if prefix[0]&^compressedFlag != 0 {
		return nil, nil, false, named(c, api.Errorf(api.InvalidArgument, "the stream does not begin with a message"))
	}
	if err := h.reserve(r.Context(), c, size); err != nil {
		return nil, nil, false, err
	}
	// Grown as the bytes come, so that a length alone costs nothing.
	buffer := bytes.NewBuffer(append(make([]byte, 0, len(prefix)+int(min(size, largeMessage))), prefix[:]...))
	if _, err := io.CopyN(buffer, r.Body, size); err != nil {
		return nil, nil, false, incomplete(c, err)
	}
	raw = buffer.Bytes()
	return raw, raw[len(prefix):], prefix[0] == compressedFlag, nil
}

// readBody reads a body that is one message.
func (h *handler) readBody(c *call, r *http.Request) ([]byte, error) {
	if err := h.reserve(r.Context(), c, r.ContentLength); err != nil {
		return nil, err
	}
	var buffer bytes.Buffer
	for _, bound := range []int64{largeMessage, maxMessage} {
		_, err := io.CopyN(&buffer, r.Body, bound+1-int64(buffer.Len()))
		if errors.Is(err, io.EOF) {
			return buffer.Bytes(), nil
		}
		if err != nil {
			return nil, incomplete(c, err)
		}
		if err := h.reserve(r.Context(), c, int64(buffer.Len())); err != nil {
			return nil, err
		}
	}
	panic("unreachable: a body longer than the last bound is refused")
}

// reserve refuses a message that is too large, and finds a place for a large
// one, which the call keeps until the message was passed on.
func (h *handler) reserve(ctx context.Context, c *call, size int64) error {
	if size > maxMessage {
		return named(c, tooLarge())
	}
	if size <= largeMessage || c.release != nil {
		return nil
	}
	select {
	case h.large <- struct{}{}:
		c.release = sync.OnceFunc(func() { <-h.large })
		return nil
	case <-ctx.Done():
		return named(c, ctx.Err())
	}
}

func tooLarge() *api.Error {
	return api.Errorf(api.ResourceExhausted, "the message is larger than %d MiB", maxMessage>>20).
		WithNext("send it in smaller pieces")
}

func incomplete(c *call, err error) error {
	return named(c, &api.Error{Code: api.InvalidArgument, Message: "the request ended within its first message", Cause: err})
}

// decompress unpacks a message, up to the bound.
func decompress(b []byte, encoding string) ([]byte, error) {
	if encoding != "gzip" {
		return nil, api.Errorf(api.Unimplemented, "compression %q is not served", clip(encoding)).WithNext("use gzip, or none")
	}
	unreadable := func(err error) error {
		return &api.Error{Code: api.InvalidArgument, Message: "the message cannot be unpacked", Cause: err}
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, unreadable(err)
	}
	plain, err := io.ReadAll(io.LimitReader(z, maxMessage+1))
	if err != nil {
		return nil, unreadable(err)
	}
	if len(plain) > maxMessage {
		return nil, tooLarge()
	}
	return plain, nil
}
