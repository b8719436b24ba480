//go:build linux

package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// markMost is the number of switches between the streams after which a segment
// is closed early: it bounds the memory and the disk that an index takes.
const markMost = 8 << 10

// markSize is what one switch takes in an index: the offset within the segment
// shifted left by one, the lowest bit set for standard error; big endian.
const markSize = 8

// segment is a file of raw output. Its name is its first offset in hex and the
// stream that it begins with (.out or .err); when the streams take turns in it
// an index lies beside it (.idx).
type segment struct {
	start   uint64
	first   guestv1.OutputStream
	size    int64
	indexed int // marks on disk

	// marks are the switches of a segment that is being written; a closed one's
	// are read back when a reader needs them.
	marks  []mark
	sealed bool
}

// mark says that the stream changes at an offset within the segment.
type mark struct {
	at     int64
	stream guestv1.OutputStream
}

func (g *segment) end() uint64 { return g.start + uint64(g.size) }

// disk is what the segment counts for against the cap.
func (g *segment) disk() int64 { return g.size + int64(g.indexed)*markSize }

func (g *segment) path(dir string) string {
	ending := ".out"
	if g.first == guestv1.OutputStream_OUTPUT_STREAM_STDERR {
		ending = ".err"
	}
	return filepath.Join(dir, fmt.Sprintf("%016x%s", g.start, ending))
}

func (g *segment) indexPath(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("%016x.idx", g.start))
}

func (g *segment) last() guestv1.OutputStream {
	if n := len(g.marks); n > 0 {
		return g.marks[n-1].stream
	}
	return g.first
}

// takes says whether bytes of stream may follow in this segment.
func (g *segment) takes(stream guestv1.OutputStream) bool {
	return stream == g.last() || len(g.marks) < markMost
}

// note records that the bytes that follow are stream's.
func (g *segment) note(dir string, stream guestv1.OutputStream) error {
	if stream == g.last() {
		return nil
	}
	if g.size == 0 {
		return nil // room made it for this stream
	}
	entry := uint64(g.size) << 1
	if stream == guestv1.OutputStream_OUTPUT_STREAM_STDERR {
		entry |= 1
	}
	file, err := os.OpenFile(g.indexPath(dir), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(binary.BigEndian.AppendUint64(nil, entry))
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	// A new slice when it grows, so that readers may keep the one they have.
	g.marks = append(g.marks, mark{at: g.size, stream: stream})
	return nil
}

// seal gives up the marks in memory and returns the size of the index.
func (g *segment) seal() int64 {
	g.indexed = len(g.marks)
	g.marks, g.sealed = nil, true
	return int64(g.indexed) * markSize
}

// load reads the index back.
func (g *segment) load(dir string) ([]mark, error) {
	marks := []mark{}
	if g.indexed == 0 {
		return marks, nil
	}
	data, err := os.ReadFile(g.indexPath(dir))
	if err != nil {
		return nil, fmt.Errorf("read output index: %w", err)
	}
	for ; len(data) >= markSize && len(marks) < markMost; data = data[markSize:] {
		entry := binary.BigEndian.Uint64(data)
		stream := guestv1.OutputStream_OUTPUT_STREAM_STDOUT
		if entry&1 == 1 {
			stream = guestv1.OutputStream_OUTPUT_STREAM_STDERR
		}
		marks = append(marks, mark{at: int64(entry >> 1), stream: stream})
	}
	return marks, nil
}

func (g *segment) remove(dir string) {
	_ = os.Remove(g.path(dir))
	if g.indexed > 0 || len(g.marks) > 0 {
		_ = os.Remove(g.indexPath(dir))
	}
}

// loadSegments finds the segments that an earlier guest left, in order.
func loadSegments(dir string) ([]*segment, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load output: %w", err)
	}
	var segments []*segment
	for _, entry := range entries {
		stem, ending, _ := strings.Cut(entry.Name(), ".")
		start, err := strconv.ParseUint(stem, 16, 64)
		if err != nil || ending != "out" && ending != "err" {
			continue
		}
		seg := &segment{start: start, first: guestv1.OutputStream_OUTPUT_STREAM_STDOUT, sealed: true}
		if ending == "err" {
			seg.first = guestv1.OutputStream_OUTPUT_STREAM_STDERR
		}
		info, err := entry.Info()
		if err != nil {
			return nil, fmt.Errorf("load output: %w", err)
		}
		seg.size = info.Size()
		if index, err := os.Stat(seg.indexPath(dir)); err == nil {
			seg.indexed = int(index.Size() / markSize)
		}
		segments = append(segments, seg)
	}
	slices.SortFunc(segments, func(a, b *segment) int {
		if a.start < b.start {
			return -1
		}
		return 1
	})
	return segments, nil
}
