//go:build linux

package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// editMost bounds the file that is edited: it is held in memory.
const editMost = 16 << 20

func randomName() string { return strings.ToLower(rand.Text()) }

func (s fileService) EditFile(_ context.Context, req *guestv1.EditFileRequest) (*guestv1.EditFileResponse, error) {
	if req.GetOldText() == "" || req.GetOldText() == req.GetNewText() {
		return nil, api.Errorf(api.InvalidArgument, "edit %s: old_text must not be empty and must differ from new_text", req.GetPath())
	}
	p, err := s.g.at(req.GetPath())
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	if p, err = p.final("edit"); err != nil {
		return nil, err
	}
	text, err := p.readWhole()
	if err != nil {
		return nil, err
	}
	old := []byte(req.GetOldText())
	count := bytes.Count(text, old)
	switch {
	case count == 0:
		return nil, notFound(p.asked, text, req.GetOldText())
	case count > 1 && !req.GetAll():
		return nil, api.Errorf(api.FailedPrecondition, "edit %s: old_text occurs %d times, at lines %s", p.asked, count, linesOf(text, old)).
			WithNext("give more of the text around it, or set all")
	}
	edited := bytes.ReplaceAll(text, old, []byte(req.GetNewText()))
	if len(edited) > editMost {
		return nil, api.Errorf(api.InvalidArgument, "edit %s: the result has %d bytes, at most %d are possible", p.asked, len(edited), editMost)
	}
	owner, err := s.g.owner()
	if err != nil {
		return nil, err
	}
	info, err := p.write(edited, false, 0o644, owner)
	if err != nil {
		return nil, p.fail("edit", err)
	}
	return &guestv1.EditFileResponse{
		Info: s.g.fileInfo(p.asked, info, ""), Replaced: int32(count), Line: int32(lineAt(text, bytes.Index(text, old))),
	}, nil
}

// readWhole reads a file that is to be edited.
func (p place) readWhole() ([]byte, error) {
	file, _, err := p.openRegular("edit")
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return limitedRead(file, p)
}

func limitedRead(file *os.File, p place) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(file, editMost+1))
	if err != nil {
		return nil, p.fail("edit", err)
	}
	if len(text) > editMost {
		return nil, api.Errorf(api.FailedPrecondition, "edit %s: it has more than %d bytes", p.asked, editMost)
	}
	return text, nil
}

func lineAt(text []byte, offset int) int { return bytes.Count(text[:offset], []byte{'\n'}) + 1 }

// linesOf names the lines of the first few occurrences.
func linesOf(text, old []byte) string {
	var lines []string
	for from := 0; len(lines) < 10; {
		i := bytes.Index(text[from:], old)
		if i < 0 {
			return strings.Join(lines, ", ")
		}
		lines = append(lines, fmt.Sprint(lineAt(text, from+i)))
		from += i + len(old)
	}
	return strings.Join(lines, ", ") + ", ..."
}

// notFound helps with the usual mistakes: other white space, or a first line
// that is there and a later one that is not.
func notFound(asked string, text []byte, old string) error {
	err := api.Errorf(api.FailedPrecondition, "edit %s: old_text does not occur in it", asked)
	if bytes.Contains(text, []byte("\r\n")) && !strings.Contains(old, "\r\n") && strings.Contains(old, "\n") {
		return err.WithNext("the file has lines that end with CR LF; old_text must have them too")
	}
	first := ""
	for line := range strings.Lines(old) {
		if first = strings.TrimSpace(line); first != "" {
			break
		}
	}
	if i := bytes.Index(text, []byte(first)); first != "" && i >= 0 {
		return err.WithNext("its first line is found at line %d, but with other white space or another text after it; read the file there", lineAt(text, i))
	}
	return err.WithNext("read the file and take the text from there")
}
