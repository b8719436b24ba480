package client

import (
	"bufio"
	"context"
	"errors"
	"io"

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// archivePart is the size of one message of a tar on its way.
const archivePart = 256 << 10

// Import sends what write produces, one tar, to be unpacked in the workspace. It
// holds one part in memory. When write fails or ctx ends the archive is cut off
// rather than closed, so that the guest cannot take it for a whole one.
func (g *Guest) Import(ctx context.Context, begin *guestv1.ImportBegin, write func(io.Writer) error) (*guestv1.ImportResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := g.Files.Import(ctx)
	if err != nil {
		return nil, err
	}
	// io.EOF from Send says that the answer is there already; whatever the writer
	// then makes of it, the answer is what happened.
	answered := false
	parts := partWriter(func(p []byte) error {
		err := s.Send(&guestv1.ImportRequest{Part: &guestv1.ImportRequest_Data{Data: p}})
		answered = answered || errors.Is(err, io.EOF)
		return err
	})
	err = s.Send(&guestv1.ImportRequest{Part: &guestv1.ImportRequest_Begin{Begin: begin}})
	if err == nil {
		w := bufio.NewWriterSize(parts, archivePart)
		if err = write(w); err == nil {
			err = w.Flush()
		}
	}
	if err != nil && !answered && !errors.Is(err, io.EOF) {
		cancel()
		_, _ = s.CloseAndReceive()
		return nil, err
	}
	answer, answerErr := s.CloseAndReceive()
	if answerErr == nil && err != nil {
		answerErr = io.ErrUnexpectedEOF
	}
	if answerErr != nil {
		return nil, answerErr
	}
	return answer, nil
}

// Export reads a file or folder of the workspace as one tar. read need not take
// all of it; the rest is then not sent. A tar that the link cut short reads as an
// error, never as its end.
func (g *Guest) Export(ctx context.Context, path string, read func(io.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := g.Files.Export(ctx, &guestv1.ExportRequest{Path: path})
	if err != nil {
		return err
	}
	defer func() {
		cancel()
		_ = s.Close()
	}()
	var rest []byte
	err = read(readerFunc(func(p []byte) (int, error) {
		for len(rest) == 0 {
			if !s.Receive() {
				if err := s.Err(); err != nil {
					return 0, err
				}
				return 0, io.EOF
			}
			rest = s.Msg().GetData()
		}
		n := copy(p, rest)
		rest = rest[n:]
		return n, nil
	}))
	if streamErr := s.Err(); streamErr != nil {
		// The cause, which a tar reader may have put other words to.
		return streamErr
	}
	return err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// partWriter sends what it is given in parts of at most archivePart.
type partWriter func([]byte) error

func (f partWriter) Write(p []byte) (int, error) {
	sent := 0
	for len(p) > 0 {
		n := min(len(p), archivePart)
		if err := f(p[:n]); err != nil {
			return sent, err
		}
		sent += n
		p = p[n:]
	}
	return sent, nil
}
