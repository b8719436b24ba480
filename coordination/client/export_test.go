package client

import (
	"context"
	"io"
	"os"
)

// Unpack is the untrusted half of CopyFrom, for fuzzing.
func Unpack(ctx context.Context, dir, as string, r io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return (&unpacker{root: root, as: as}).unpack(ctx, r)
}
