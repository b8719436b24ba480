package image

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// checkChecksum checks how a checksum is written.
func checkChecksum(checksum string) error {
	if checksum == "" {
		return nil
	}
	name, value, _ := strings.Cut(checksum, ":")
	raw, err := hex.DecodeString(value)
	if err == nil && (name == "sha256" && len(raw) == sha256.Size || name == "sha512" && len(raw) == sha512.Size) {
		return nil
	}
	return invalid(fmt.Sprintf("checksum %.150q is neither sha256:HEX nor sha512:HEX", checksum), "write it as sha512: and the 128 digits that the publisher names")
}

// meets says whether a disk image has the checksum that was asked for.
func (r record) meets(checksum string) error {
	checksum = strings.ToLower(checksum)
	if checksum == "" || checksum == r.Digest || checksum == r.SHA512 {
		return nil
	}
	got := r.Digest
	if strings.HasPrefix(checksum, "sha512:") {
		got = r.SHA512
	}
	return &mismatch{what: "the file", want: checksum, got: got}
}

// getDisk is get for a disk image.
func (s *Store) getDisk(ctx context.Context, r reference, checksum, digest, holder string, fresh bool, said func(string)) (Disk, error) {
	if err := s.prepare(); err != nil {
		return Disk{}, err
	}
	for range rounds {
		for _, candidate := range s.candidates(r, checksum, digest, fresh) {
			rec, dir, err := s.take(ctx, candidate, holder, disksDir)
			if isAbsent(err) {
				continue
			}
			if err == nil && digest == "" && rec.meets(checksum) != nil {
				if holder != "" {
					err = s.letGo(candidate, holder)
				}
				if err == nil {
					continue // the address may have another file by now
				}
			}
			return rec.disk(dir), err
		}
		got, err := s.fetchDisk(ctx, r, checksum, digest, said)
		if err != nil {
			return Disk{}, err
		}
		digest, fresh = got, false
	}
	return Disk{}, absent(digest)
}

// candidates are the digests that may be what is asked for.
func (s *Store) candidates(r reference, checksum, digest string, fresh bool) []string {
	if digest != "" {
		return []string{digest}
	}
	if fresh {
		return nil
	}
	var all []string
	if strings.HasPrefix(checksum, "sha256:") {
		all = append(all, strings.ToLower(checksum))
	}
	if known := s.means(r); known.Digest != "" && (!r.local() || known.Stamp == stamp(r.path)) {
		all = append(all, known.Digest)
	}
	return all
}

// stamp changes when a file does; empty when there is none.
func stamp(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%d bytes, %d, %s", info.Size(), info.ModTime().UnixNano(), identity(info))
}

// letGo takes one holder off one image.
func (s *Store) letGo(digest, holder string) error {
	name, err := digestName(digest)
	if err != nil {
		return err
	}
	file, err := holderName(holder)
	if err != nil {
		return err
	}
	return os.Remove(s.path(holdersDir, name, file))
}

// fetchDisk brings a disk image here and returns its digest.
func (s *Store) fetchDisk(ctx context.Context, r reference, checksum, digest string, said func(string)) (string, error) {
	release, err := lockName(ctx, s.path(locksDir, r.key(s.options.Platform)))
	if err != nil {
		return "", err
	}
	defer release()
	known := s.means(r)
	if rec, _, err := s.find(known.Digest, disksDir); err == nil && rec.meets(checksum) == nil && (digest == "" || digest == known.Digest) && known.Stamp == stamp(r.path) && r.local() {
		return known.Digest, nil // another caller was quicker
	}
	select {
	case s.turns <- struct{}{}:
		defer func() { <-s.turns }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	work, end, err := s.scratch(ctx)
	if err != nil {
		return "", err
	}
	defer end()
	before := stamp(r.path)
	s.log.Info("fetch disk image", "image", r.text)
	whole := filepath.Join(work, "image")
	if err := os.Mkdir(whole, 0o700); err != nil {
		return "", err
	}
	rec := record{Ref: r.text, Created: time.Now()}
	if err := s.copyDisk(ctx, r, filepath.Join(whole, diskFile), &rec, &teller{said: said}); err != nil {
		return "", err
	}
	if err := rec.meets(checksum); err != nil {
		return "", err
	}
	if digest != "" && rec.Digest != digest {
		return "", &mismatch{what: "the file", want: digest, got: rec.Digest}
	}
	if err := s.keepDisk(ctx, whole, rec); err != nil {
		return "", err
	}
	return rec.Digest, s.setMeaning(r, meaning{Digest: rec.Digest, Stamp: before})
}

// keepDisk moves a disk image to where it stays.
func (s *Store) keepDisk(ctx context.Context, whole string, rec record) error {
	name, err := digestName(rec.Digest)
	if err != nil {
		return err
	}
	unlock, err := lockName(ctx, s.path(locksDir, name))
	if err != nil {
		return err
	}
	defer unlock()
	if _, _, err := s.find(rec.Digest, disksDir); err == nil || !isAbsent(err) {
		return err // another address had it
	}
	if err := writeJSON(filepath.Join(whole, recordFile), whole, rec); err != nil {
		return err
	}
	if err := syncTree(whole); err != nil {
		return err
	}
	if err := os.Rename(whole, s.path(disksDir, name)); err != nil {
		return err
	}
	return syncDir(s.path(disksDir))
}

// copyDisk reads a disk image from where it is to path.
func (s *Store) copyDisk(ctx context.Context, r reference, path string, rec *record, tell *teller) error {
	src, size, err := s.openDisk(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	if size > s.limits.archive {
		return refuse("it is %d bytes, more than %d", size, s.limits.archive)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	err = s.fillDisk(ctx, f, tell.watch(src, "disk image", size), size, rec)
	return errors.Join(err, f.Close())
}

func (s *Store) fillDisk(ctx context.Context, f *os.File, src io.Reader, size int64, rec *record) error {
	short, long := sha256.New(), sha512.New()
	limit := s.limits.archive
	bounded := &measured{
		r: &cancelled{ctx: ctx, r: src}, max: func() int64 { return limit },
		word: fmt.Sprintf("it is more than %d bytes", limit),
	}
	n, err := copySparse(f, io.TeeReader(bounded, io.MultiWriter(short, long)))
	if size >= 0 && n < size && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) {
		return &truncated{what: "the file", got: n, want: size, cause: err}
	}
	if err != nil {
		return err
	}
	rec.Digest = "sha256:" + hex.EncodeToString(short.Sum(nil))
	rec.SHA512 = "sha512:" + hex.EncodeToString(long.Sum(nil))
	if rec.Format, err = formatOf(f, n, s.limits.virtual); err != nil {
		return err
	}
	rec.Bytes, err = onDisk(f.Name())
	return err
}

// copySparse copies and leaves out what is zero, which most of a raw image is.
func copySparse(f *os.File, r io.Reader) (int64, error) {
	const block = 64 << 10
	buffer := make([]byte, block)
	var at int64
	for {
		n, err := io.ReadFull(r, buffer)
		if n > 0 && !isZero(buffer[:n]) {
			if _, err := f.WriteAt(buffer[:n], at); err != nil {
				return at, err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n > 0 && n < block {
			// Whether the reader ended well or was cut off shows at once.
			if _, again := r.Read(buffer[:1]); again != nil && !errors.Is(again, io.EOF) {
				return at, again
			}
			return at, f.Truncate(at)
		}
		if err != nil {
			return at, err
		}
	}
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// openDisk opens a disk image where it is; size is -1 when that is not said.
func (s *Store) openDisk(ctx context.Context, r reference) (io.ReadCloser, int64, error) {
	if r.local() {
		f, err := os.OpenFile(r.path, os.O_RDONLY|nonBlocking, 0)
		if err != nil {
			return nil, 0, err
		}
		info, err := f.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = refuse("it is not a regular file")
		}
		if err != nil {
			return nil, 0, errors.Join(err, f.Close())
		}
		return f, info.Size(), nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.address.String(), nil)
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("User-Agent", "vendetta")
	client := &http.Client{Transport: s.wire(), CheckRedirect: func(to *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return errors.New("it is redirected too often")
		}
		if isLoopback(to.URL.Hostname()) && !isLoopback(via[0].URL.Hostname()) {
			return errors.New("it is redirected to the node itself")
		}
		return nil
	}}
	answer, err := client.Do(request)
	if err != nil {
		return nil, 0, err
	}
	if answer.StatusCode != http.StatusOK {
		_ = answer.Body.Close() // what it says is for people with a browser
		return nil, 0, &transport.Error{StatusCode: answer.StatusCode}
	}
	return answer.Body, answer.ContentLength, nil
}
