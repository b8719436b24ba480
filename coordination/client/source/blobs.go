package source

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
)

// blobs reads objects as they are stored, without any conversion, through one
// `git cat-file --batch`.
type blobs struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (r *repository) openBlobs(ctx context.Context) (*blobs, error) {
	cmd := r.command(ctx, "cat-file", "--batch")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, gitError(ctx, []string{"cat-file"}, err, "")
	}
	return &blobs{cmd: cmd, in: in, out: bufio.NewReaderSize(out, 64<<10)}, nil
}

// read hands one object's size and contents to use, which must take them all.
func (b *blobs) read(object string, use func(size int64, data io.Reader) error) error {
	if _, err := io.WriteString(b.in, object+"\n"); err != nil {
		return fmt.Errorf("git cat-file: %w", err)
	}
	line, err := b.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("git cat-file: %w", err)
	}
	// OBJECT TYPE SIZE
	fields := strings.Fields(line)
	if len(fields) != 3 {
		return fmt.Errorf("git cat-file: object %s: %s", object, strings.TrimSpace(line))
	}
	size, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return fmt.Errorf("git cat-file: object %s: %w", object, err)
	}
	if err := use(size, io.LimitReader(b.out, size)); err != nil {
		return err
	}
	_, err = b.out.Discard(1)
	return err
}

// close ends git. Its status says nothing that the reads have not said.
func (b *blobs) close() {
	_ = b.in.Close()
	_, _ = io.Copy(io.Discard, b.out)
	_ = b.cmd.Wait()
}
