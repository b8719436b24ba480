//go:build !linux

package image

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/vendetta-dev/vendetta/providers"
)

// Images are unpacked on nodes, and nodes run Linux. Elsewhere the package builds,
// so that whatever names its types does, and every use of a store is refused.
var errElsewhere = &providers.Error{Kind: providers.ErrUnsupported, Message: "images are unpacked on Linux only"}

const nonBlocking = 0

func (*Store) openLocal(reference) (*os.File, error) { return nil, errElsewhere }
func openFolder(*os.File) (*os.Root, error)          { return nil, errElsewhere }

type tree struct{}

func openTree(string, bool, limits) (*tree, error) { return nil, errElsewhere }
func (*tree) close() error                         { return nil }

func (*tree) unpack(context.Context, *budget, io.Reader, string, int64, string) error {
	return errElsewhere
}

type budget struct{ limits limits }

func lockName(context.Context, string) (func(), error)        { return nil, errElsewhere }
func lockStore(context.Context, string, bool) (func(), error) { return nil, errElsewhere }
func claim(string) (func(), bool, error)                      { return nil, false, errElsewhere }
func syncTree(string) error                                   { return errors.ErrUnsupported }
func syncDir(string) error                                    { return errors.ErrUnsupported }
func onDisk(string) (int64, error)                            { return 0, errors.ErrUnsupported }
func identity(os.FileInfo) string                             { return "" }
