//go:build linux

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

const (
	// spoolDefault is the output kept of a process that was not told otherwise.
	spoolDefault = 1 << 30
	// spoolLeast bounds what a caller may ask for from below.
	spoolLeast = 64 << 10
	// segmentMost is the size at which a segment is closed and the next begun.
	segmentMost = 16 << 20
)

// spool holds the output of one process on disk: both streams in the order in
// which they were read, addressed by an offset that counts both together. It is
// cut into segments, so that the oldest bytes can go when the cap is reached.
//
// One pump writes each stream. A write waits while the oldest bytes would have
// to go and an attached reader that follows has not read them. Where bytes are
// missing, a reader is told of the gap.
type spool struct {
	dir     string
	cap     int64
	segment int64
	// spare is room for the words that a full disk is the matter.
	spare reserve

	mu       sync.Mutex
	segments []*segment
	file     *os.File // the last segment's, open for writing
	end      uint64   // the offset at which the next byte will stand
	kept     int64    // bytes on disk, indexes included
	readers  map[*reader]struct{}
	ended    bool // nothing more will be written
	spent    int  // how often it took of spare
	changed  condition
}

func newSpool(dir string, limit uint64) *spool {
	if limit == 0 {
		limit = spoolDefault
	}
	limit = max(limit, spoolLeast)
	most := int64(min(limit, 1<<50))
	return &spool{dir: dir, cap: most, segment: min(segmentMost, most/4), readers: map[*reader]struct{}{}}
}

// loadSpool opens what an earlier guest wrote. Nothing can be added to it.
func loadSpool(dir string) (*spool, error) {
	segments, err := loadSegments(dir)
	if err != nil {
		return nil, err
	}
	s := newSpool(dir, 0)
	s.segments, s.ended = segments, true
	for _, seg := range segments {
		s.end = seg.end()
		s.kept += seg.disk()
	}
	return s, nil
}

// errEnded is the answer to a write after finish.
var errEnded = errors.New("the output has ended")

// write adds data and returns when it is on its way to the disk. It waits for
// readers as told above; once ctx is done it waits no more. Bytes that the disk refuses become
// a gap; the process must not hang because the disk is full.
func (s *spool) write(ctx context.Context, stream guestv1.OutputStream, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(data) > 0 {
		if s.ended {
			return errEnded
		}
		seg, err := s.room(stream)
		if s.relieve(err) {
			continue
		}
		if err != nil {
			s.skip(uint64(len(data)))
			return nil
		}
		n := min(int64(len(data)), s.segment-seg.size)
		if over := s.kept + n - s.cap; over > 0 {
			if err := s.free(ctx); err != nil {
				return err
			}
			continue
		}
		if err := seg.note(s.dir, stream); err != nil {
			s.skip(uint64(len(data)))
			return nil
		}
		wrote, err := s.file.Write(data[:n])
		seg.size += int64(wrote)
		s.end += uint64(wrote)
		s.kept += int64(wrote)
		data = data[wrote:]
		if s.relieve(err) {
			continue
		}
		if err != nil {
			s.skip(uint64(len(data)))
			return nil
		}
		s.changed.notify()
	}
	return nil
}

// spareMost is how often one process's output may take of the reserve: others are
// to have a word too, and a command that makes room is to start.
const spareMost = 2

// relieve makes a little room when err says that the disk is full.
func (s *spool) relieve(err error) bool {
	if s.spent == spareMost || !s.spare.give(err) {
		return false
	}
	s.spent++
	return true
}

// room returns the segment to write to. It closes a full one and begins the next.
func (s *spool) room(stream guestv1.OutputStream) (*segment, error) {
	if n := len(s.segments); n > 0 && s.file != nil {
		last := s.segments[n-1]
		if last.size < s.segment && last.takes(stream) {
			return last, nil
		}
		s.seal()
	}
	seg := &segment{start: s.end, first: stream}
	file, err := os.OpenFile(seg.path(s.dir), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	s.file = file
	s.segments = append(s.segments, seg)
	return seg, nil
}

// seal closes the last segment.
func (s *spool) seal() {
	if s.file == nil {
		return
	}
	_ = s.file.Close()
	s.file = nil
	last := s.segments[len(s.segments)-1]
	s.kept += last.seal()
}

// skip leaves a gap where the disk took no bytes.
func (s *spool) skip(n uint64) {
	s.seal()
	s.end += n
	s.changed.notify()
}

// free drops the oldest segment, as soon as no attached reader needs it.
func (s *spool) free(ctx context.Context) error {
	if len(s.segments) == 1 {
		s.seal()
	}
	oldest := s.segments[0]
	for ctx.Err() == nil && s.needed(oldest) {
		_ = s.changed.wait(ctx, &s.mu)
		if s.ended {
			return errEnded
		}
		if s.segments[0] != oldest {
			return nil // the other stream's pump dropped it
		}
	}
	oldest.remove(s.dir)
	s.segments = slices.Delete(s.segments, 0, 1)
	s.kept -= oldest.disk()
	return nil
}

func (s *spool) needed(seg *segment) bool {
	for r := range s.readers {
		if r.follow && r.at < seg.end() {
			return true
		}
	}
	return false
}

// finish says that nothing more will be written.
func (s *spool) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seal()
	s.ended = true
	s.changed.notify()
}

// bounds are the first offset that is kept and the end.
func (s *spool) bounds() (from, end uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.segments) == 0 {
		return s.end, s.end
	}
	return s.segments[0].start, s.end
}

// remove deletes the spool's files.
func (s *spool) remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return os.RemoveAll(s.dir)
}

// reader reads a spool from an offset on.
type reader struct {
	spool  *spool
	follow bool

	// at is the offset of the next byte; written under the spool's lock.
	at     uint64
	seg    *segment
	file   *os.File
	marks  []mark
	loaded bool // marks are those of a closed segment
}

// attach makes a reader. One that follows holds back the writer; it must be closed.
func (s *spool) attach(offset uint64, follow bool) *reader {
	r := &reader{spool: s, follow: follow, at: offset}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers[r] = struct{}{}
	return r
}

func (r *reader) close() {
	r.release()
	r.spool.mu.Lock()
	defer r.spool.mu.Unlock()
	delete(r.spool.readers, r)
	r.spool.changed.notify()
}

func (r *reader) release() {
	if r.file != nil {
		_ = r.file.Close()
	}
	r.seg, r.file, r.marks, r.loaded = nil, nil, nil, false
}

// chunk is what a reader gets: a run of bytes of one stream, or a gap.
type chunk struct {
	offset uint64
	stream guestv1.OutputStream
	data   []byte
	gap    uint64
}

// advance says that everything before offset was handed on.
func (r *reader) advance(offset uint64) {
	r.spool.mu.Lock()
	defer r.spool.mu.Unlock()
	r.at = offset
	if r.follow {
		r.spool.changed.notify()
	}
}

// ready waits until there is something at the reader's offset. It returns io.EOF
// when nothing more will come: at the end of the output, or without follow at
// its present end.
func (r *reader) ready(ctx context.Context) error {
	s := r.spool
	s.mu.Lock()
	defer s.mu.Unlock()
	for r.at >= s.end {
		if s.ended || !r.follow {
			return io.EOF
		}
		if err := s.changed.wait(ctx, &s.mu); err != nil {
			return err
		}
	}
	return nil
}

// read returns the next chunk, at most len(buf) long, after ready said that there is one.
func (r *reader) read(buf []byte) (chunk, error) {
	size, gap, err := r.locate()
	if err != nil {
		return chunk{}, fmt.Errorf("read output: %w", err)
	}
	if gap > 0 {
		return chunk{offset: r.at, gap: gap}, nil
	}
	within := int64(r.at - r.seg.start)
	stream, until := r.stream(within, size)
	n := min(int64(len(buf)), until-within)
	got, err := r.file.ReadAt(buf[:n], within)
	if got == 0 && err != nil {
		return chunk{}, fmt.Errorf("read output: %w", err)
	}
	return chunk{offset: r.at, stream: stream, data: buf[:got]}, nil
}

// locate opens the segment of the reader's offset and returns its present size,
// or the length of the gap there.
func (r *reader) locate() (size int64, gap uint64, err error) {
	s := r.spool
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := slices.BinarySearchFunc(s.segments, r.at, func(seg *segment, at uint64) int {
		switch {
		case seg.end() <= at:
			return -1
		case seg.start > at:
			return 1
		}
		return 0
	})
	switch {
	case !found && i < len(s.segments):
		return 0, s.segments[i].start - r.at, nil
	case !found:
		return 0, s.end - r.at, nil
	}
	seg := s.segments[i]
	if r.seg != seg {
		r.release()
		if r.file, err = os.Open(seg.path(s.dir)); err != nil {
			return 0, 0, err
		}
		r.seg = seg
	}
	if !seg.sealed {
		r.marks = seg.marks
	} else if !r.loaded {
		if r.marks, err = seg.load(s.dir); err != nil {
			return 0, 0, err
		}
		r.loaded = true
	}
	return seg.size, 0, nil
}

// stream says which stream the byte at within belongs to, and where its run ends.
func (r *reader) stream(within, size int64) (guestv1.OutputStream, int64) {
	next, _ := slices.BinarySearchFunc(r.marks, within, func(m mark, within int64) int {
		if m.at <= within {
			return -1
		}
		return 1
	})
	stream, until := r.seg.first, size
	if next > 0 {
		stream = r.marks[next-1].stream
	}
	if next < len(r.marks) {
		until = min(until, r.marks[next].at)
	}
	return stream, until
}

// attached says whether anyone is attached.
func (s *spool) attached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.readers) > 0
}

// atEnd says whether everything that was ever written was handed on.
func (r *reader) atEnd() bool {
	r.spool.mu.Lock()
	defer r.spool.mu.Unlock()
	return r.spool.ended && r.at >= r.spool.end
}
