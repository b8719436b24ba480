//go:build linux

package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

const (
	searchDefault = 200
	searchMost    = 2000
	patternMost   = 1000
	// searchFileMost is the size above which a file is not searched.
	searchFileMost = 32 << 20
	// searchLineMost is how much of a line is looked at.
	searchLineMost = 1 << 20
	matchTextMost  = 400
	// binaryPrefix is looked through for a NUL byte, which no text has.
	binaryPrefix = 8 << 10
)

// search is one search under way.
type search struct {
	place place
	expr  *regexp.Regexp
	glob  *glob
	limit int
	resp  *guestv1.SearchFilesResponse
}

func (s fileService) SearchFiles(ctx context.Context, req *guestv1.SearchFilesRequest) (*guestv1.SearchFilesResponse, error) {
	find, err := newSearch(req)
	if err != nil {
		return nil, err
	}
	p, err := s.g.at(req.GetPath())
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	find.place = p
	info, err := p.Stat(p.name)
	if err != nil {
		return nil, p.fail("search", err)
	}
	if !info.IsDir() {
		if err := find.file(ctx, ""); err != nil && !errors.Is(err, errEnough) {
			return nil, p.fail("search", err)
		}
		return find.resp, nil
	}
	err = p.walk(ctx, "search", func(below string, entry fs.DirEntry) (bool, error) {
		if entry.IsDir() {
			return req.GetHidden() || !strings.HasPrefix(entry.Name(), "."), nil
		}
		if !entry.Type().IsRegular() || !find.glob.match(below) {
			return false, nil
		}
		return false, find.file(ctx, below)
	})
	if err != nil {
		return nil, err
	}
	return find.resp, nil
}

func newSearch(req *guestv1.SearchFilesRequest) (*search, error) {
	pattern := req.GetPattern()
	if pattern == "" || len(pattern) > patternMost {
		return nil, api.Errorf(api.InvalidArgument, "search: want a pattern of 1 to %d bytes", patternMost)
	}
	if req.GetIgnoreCase() {
		pattern = "(?i)" + pattern
	}
	expr, err := regexp.Compile(pattern)
	if err != nil {
		return nil, api.Errorf(api.InvalidArgument, "search: pattern %q: %w", req.GetPattern(), err).
			WithNext("use RE2 syntax, without look-around and back references")
	}
	match, err := newGlob(req.GetGlob())
	if err != nil {
		return nil, err
	}
	limit := int(req.GetLimit())
	if limit <= 0 {
		limit = searchDefault
	}
	return &search{expr: expr, glob: match, limit: min(limit, searchMost), resp: &guestv1.SearchFilesResponse{}}, nil
}

// file searches one file. What cannot be read is passed over, unless it is the
// one that was asked for.
func (s *search) file(ctx context.Context, below string) error {
	at := s.place
	at.name = path.Join(at.name, below)
	file, info, err := at.openRegular("search")
	if err != nil {
		if below == "" {
			return err
		}
		return nil
	}
	defer func() { _ = file.Close() }()
	if info.Size() > searchFileMost {
		return nil
	}
	return s.lines(ctx, file, below)
}

func (s *search) lines(ctx context.Context, file *os.File, below string) error {
	in := bufio.NewReaderSize(file, 64<<10)
	head, _ := in.Peek(binaryPrefix)
	if bytes.IndexByte(head, 0) >= 0 {
		return nil
	}
	s.resp.FilesSearched++
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, searchLineMost)
	for number := int32(1); lines.Scan(); number++ {
		if number%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		line := lines.Bytes()
		if !s.expr.Match(line) {
			continue
		}
		if len(s.resp.GetMatches()) == s.limit {
			s.resp.Truncated = true
			return errEnough
		}
		s.resp.Matches = append(s.resp.Matches, &guestv1.SearchMatch{
			Path: strings.ToValidUTF8(path.Join(s.place.asked, below), "\uFFFD"), Line: number,
			Text: strings.ToValidUTF8(string(line[:min(len(line), matchTextMost)]), "\uFFFD"),
		})
	}
	return nil // a line beyond the limit ends the file, as binary content would
}
