//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// file writes, reads and lists files. Names come round again, but not among those
// that are under way.
func (s *stage) file(ctx context.Context, workspace string, i int) error {
	files := s.client.Guest(workspace).Files
	path := fmt.Sprintf("soak-%d", i/5%(4*atOnce))
	data := bytes.Repeat(fmt.Appendf(nil, "line of %d\n", i), 500)
	if _, err := files.WriteFile(ctx, &guestv1.WriteFileRequest{Path: path, Data: data}); err != nil {
		return err
	}
	read, err := files.ReadFile(ctx, &guestv1.ReadFileRequest{Path: path})
	if err != nil {
		return err
	}
	if !bytes.Equal(read.GetData(), data) {
		return errors.New(path + ": what was read is not what was written")
	}
	if _, err := files.StatFile(ctx, &guestv1.StatFileRequest{Path: path}); err != nil {
		return err
	}
	_, err = files.ListFiles(ctx, &guestv1.ListFilesRequest{Path: ".", Depth: 2})
	return err
}
