package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// measured counts bytes that pass and refuses those past a ratio to others.
type measured struct {
	r    io.Reader
	n    int64
	max  func() int64 // nil for no bound
	word string
}

func (m *measured) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.max != nil && m.n > m.max() {
		return n, refuse("%s", m.word)
	}
	return n, err
}

// checked hands bytes on and holds them to a digest and a size; who reads it must
// call finish.
type checked struct {
	r    io.Reader
	what string
	want string // sha256:HEX
	size int64  // -1: any
	sum  hash.Hash
	n    int64
}

func check(r io.Reader, what, digest string, size int64) *checked {
	return &checked{r: r, what: what, want: digest, size: size, sum: sha256.New()}
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.sum.Write(p[:n])
	c.n += int64(n)
	switch {
	case c.size >= 0 && c.n > c.size:
		return n, &mismatch{what: c.what, want: fmt.Sprintf("%s of %d bytes", c.want, c.size), got: "of a longer one"}
	case err != nil && c.size >= 0 && c.n < c.size:
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if errors.Is(err, context.Canceled) {
			return n, err
		}
		return n, &truncated{what: c.what, got: c.n, want: c.size, cause: err}
	}
	return n, err
}

// finish reads what is left and compares.
func (c *checked) finish() error {
	if _, err := io.Copy(io.Discard, c); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(c.sum.Sum(nil)); got != c.want {
		return &mismatch{what: c.what, want: c.want, got: got}
	}
	return nil
}

// decompress finds out by the first bytes how r is packed, as media types lie.
func decompress(r io.Reader) (io.Reader, func(), error) {
	buffered := bufio.NewReaderSize(r, 128<<10)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { _ = z.Close() }, nil
	case string(magic) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return buffered, func() {}, nil
}

// cancelled ends reading with ctx.
type cancelled struct {
	ctx context.Context //nolint:containedctx // of one unpack
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
