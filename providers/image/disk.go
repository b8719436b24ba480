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
		got, err := s.fetchDisk(ctx, r, checksum, digest, fresh, said)
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
func (s *Store) fetchDisk(ctx context.Context, r reference, checksum, digest string, fresh bool, said func(string)) (string, error) {
	release, err := lockName(ctx, s.path(locksDir, r.key(s.options.Platform)))
	if err != nil {
		return "", err
	}
	defer release()
	for _, candidate := range s.candidates(r, checksum, digest, fresh) {
		if rec, _, err := s.find(candidate, disksDir); err == nil && rec.meets(checksum) == nil {
			return candidate, nil // another caller was quicker
		}
	}
	select {
	case s.turns <- struct{}{}:
		defer func() { <-s.turns }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	known := s.means(r)
	if _, _, err := s.find(known.Digest, disksDir); err != nil || !fresh {
		known = meaning{} // it must be sent whole
	}
	src, err := s.openDisk(ctx, r, known.Stamp)
	if err != nil {
		return "", err
	}
	defer func() { _ = src.Close() }()
	if src.unchanged {
		return known.Digest, nil
	}
	s.log.Info("fetch disk image", "image", r.text)
	rec, err := s.copyDisk(ctx, r, src, checksum, digest, &teller{said: said})
	if err != nil {
		return "", err
	}
	return rec.Digest, s.setMeaning(ctx, r, meaning{Digest: rec.Digest, Stamp: src.stamp})
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
	return s.settle(whole, s.path(disksDir, name))
}

// copyDisk reads a disk image from where it is into the store.
func (s *Store) copyDisk(ctx context.Context, r reference, src diskSource, checksum, digest string, tell *teller) (record, error) {
	rec := record{Ref: r.text, Created: time.Now()}
	if src.size > s.limits.archive {
		return rec, refuse("it is %d bytes, more than %d", src.size, s.limits.archive)
	}
	work, end, err := s.scratch(ctx)
	if err != nil {
		return rec, err
	}
	defer end()
	whole := filepath.Join(work, "image")
	if err := os.Mkdir(whole, 0o700); err != nil {
		return rec, err
	}
	f, err := os.OpenFile(filepath.Join(whole, diskFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return rec, err
	}
	err = s.fillDisk(ctx, f, tell.watch(src, "disk image", src.size), src.size, &rec)
	if err = errors.Join(err, f.Close()); err != nil {
		return rec, err
	}
	if err := rec.meets(checksum); err != nil {
		return rec, err
	}
	if digest != "" && rec.Digest != digest {
		return rec, &mismatch{what: "the file", want: digest, got: rec.Digest}
	}
	return rec, s.keepDisk(ctx, whole, rec)
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
	buffer := make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := fill(r, buffer)
		if n > 0 && !isZero(buffer[:n]) {
			if _, err := f.WriteAt(buffer[:n], at); err != nil {
				return at, err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return at, f.Truncate(at)
		}
		if err != nil {
			return at, err
		}
	}
}

// fill reads until p is full or r says why not; io.ReadFull would word an end that
// came too early as it does the last block.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var more int
		more, err = r.Read(p[n:])
		n += more
	}
	return n, err
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// diskSource is a disk image where it is.
type diskSource struct {
	io.ReadCloser
	size  int64 // -1 when that is not said
	stamp string
	// unchanged: it still has the stamp that was known, and nothing is sent.
	unchanged bool
}

func (s *Store) openDisk(ctx context.Context, r reference, known string) (diskSource, error) {
	if !r.local() {
		return s.request(ctx, r, known)
	}
	src := diskSource{stamp: stamp(r.path)}
	f, err := s.openLocal(r)
	if err != nil {
		return src, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = refuse("it is not a regular file")
	}
	if err != nil {
		return src, errors.Join(err, f.Close())
	}
	src.ReadCloser, src.size, src.unchanged = f, info.Size(), known != "" && known == src.stamp
	return src, nil
}

// request asks a web server for a disk image, or whether it has another by now.
func (s *Store) request(ctx context.Context, r reference, known string) (diskSource, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.address.String(), nil)
	if err != nil {
		return diskSource{}, err
	}
	request.Header.Set("User-Agent", "vendetta")
	if known != "" {
		request.Header.Set("If-None-Match", known)
	}
	client := &http.Client{Transport: s.wire(r.address.Host), CheckRedirect: func(to *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return refuse("it is redirected too often")
		}
		if isLoopback(to.URL.Hostname()) && !isLoopback(via[0].URL.Hostname()) {
			return refuse("it is redirected to the node itself")
		}
		return nil
	}}
	answer, err := client.Do(request)
	if err != nil {
		return diskSource{}, err
	}
	src := diskSource{ReadCloser: answer.Body, size: answer.ContentLength, stamp: answer.Header.Get("ETag")}
	switch {
	case answer.StatusCode == http.StatusNotModified && known != "":
		src.unchanged = true
	case answer.StatusCode != http.StatusOK:
		_ = answer.Body.Close() // what it says is for people with a browser
		return diskSource{}, &transport.Error{StatusCode: answer.StatusCode}
	}
	return src, nil
}
