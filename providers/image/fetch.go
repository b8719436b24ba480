package image

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/sourcegraph/conc/pool"
)

const (
	// parallel is how many layers of one image are downloaded at the same time.
	parallel = 3
	// tries of one download that is cut off.
	tries = 3
	// rounds bound a race with Prune, which would have to win each of them.
	rounds = 5
)

// get returns an image that is here now, held. fresh asks the registry even if
// the reference is known.
func (s *Store) get(ctx context.Context, r reference, digest, holder string, fresh bool, said func(string)) (Image, error) {
	if err := s.prepare(); err != nil {
		return Image{}, err
	}
	here := digest
	for range rounds {
		if here == "" && r.kind == kindRegistry && !fresh {
			here = s.means(r).Digest
		}
		if here != "" {
			rec, dir, err := s.take(ctx, here, holder, imagesDir)
			if err == nil || !isAbsent(err) {
				return rec.image(dir), err
			}
		}
		var err error
		if here, err = s.fetch(ctx, r, digest, fresh, said); err != nil {
			return Image{}, err
		}
		fresh = false
	}
	return Image{}, absent(here)
}

// take holds what is here.
func (s *Store) take(ctx context.Context, digest, holder string, where ...string) (record, string, error) {
	release, err := lockStore(ctx, s.path(storeLock), false)
	if err != nil {
		return record{}, "", err
	}
	defer release()
	rec, dir, err := s.find(digest, where...)
	if err == nil && holder != "" {
		err = s.hold(digest, holder)
	}
	return rec, dir, err
}

// fetch brings the image of a reference here and returns its digest.
func (s *Store) fetch(ctx context.Context, r reference, digest string, fresh bool, said func(string)) (string, error) {
	release, err := lockName(ctx, s.path(locksDir, r.key(s.options.Platform)))
	if err != nil {
		return "", err
	}
	defer release()
	known := s.means(r).Digest
	if digest == "" && r.kind == kindRegistry && !fresh && known != "" {
		if _, _, err := s.find(known, imagesDir); err == nil {
			return known, nil // another caller was quicker
		}
	}
	var src source
	if r.kind == kindRegistry {
		src, err = s.registry(r)
	} else {
		src, err = s.openPath(r)
	}
	if err != nil {
		if digest == "" && known != "" && errors.Is(err, fs.ErrNotExist) {
			if _, _, err := s.find(known, imagesDir); err == nil {
				return known, nil // the layout was removed, what it held is here
			}
		}
		return "", err
	}
	defer func() { _ = src.close() }()
	got, err := s.install(ctx, r, src, digest, said)
	if err != nil {
		return "", err
	}
	if digest != "" && digest != got {
		return got, nil // what the reference means now was not asked
	}
	return got, s.setMeaning(ctx, r, meaning{Digest: got})
}

// install looks an image up in a source and unpacks it.
func (s *Store) install(ctx context.Context, r reference, src source, digest string, said func(string)) (string, error) {
	p, err := look(ctx, src, digest, s.options.Platform, s.limits)
	if err != nil {
		return "", err
	}
	name, err := digestName(p.digest)
	if err != nil {
		return "", err
	}
	release, err := lockName(ctx, s.path(locksDir, name))
	if err != nil {
		return "", err
	}
	defer release()
	if _, _, err := s.find(p.digest, imagesDir); err == nil || !isAbsent(err) {
		return p.digest, err
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
	s.log.Info("fetch image", "image", r.text, "digest", p.digest, "layers", len(p.layers))
	tell := &teller{said: said}
	tell.line("%s: %s, %d layers", r.text, p.digest, len(p.layers))
	whole := filepath.Join(work, "image")
	if err := s.build(ctx, src, p, whole, tell); err != nil {
		return "", err
	}
	if err := s.describe(r, p, whole); err != nil {
		return "", err
	}
	if err := s.settle(whole, s.path(imagesDir, name)); err != nil {
		return "", err
	}
	tell.line("%s: unpacked", r.text)
	return p.digest, nil
}

// settle moves what was made whole to where it stays.
func (s *Store) settle(whole, place string) error {
	if exists(place) { // without its record: it was being removed
		if err := s.discard(place); err != nil {
			return err
		}
	}
	if err := syncTree(whole); err != nil {
		return err
	}
	if err := os.Rename(whole, place); err != nil {
		return err
	}
	return syncDir(filepath.Dir(place))
}

// describe writes what is known of an image into its folder.
func (s *Store) describe(r reference, p picture, whole string) error {
	file, err := readConfig(p.config, s.options.Platform, len(p.layers))
	if err != nil {
		return err
	}
	rec := record{
		Ref: r.text, Digest: p.digest, Flat: s.flat,
		Env: file.Config.Env, User: file.Config.User, WorkingDir: file.Config.WorkingDir,
		Created: file.Created.Time,
	}
	if err := checkConfig(file.Config); err != nil {
		return err
	}
	if rec.Created.Unix() <= 0 {
		rec.Created = time.Now()
	}
	if rec.Bytes, err = onDisk(filepath.Join(whole, rootDir)); err != nil {
		return err
	}
	return writeJSON(filepath.Join(whole, recordFile), whole, rec)
}

// checkConfig refuses what cannot be a user, a folder or an environment, before a
// provider hands it to the kernel or writes it into a file.
func checkConfig(c v1.Config) error {
	for _, field := range append([]string{c.User, c.WorkingDir}, c.Env...) {
		if strings.IndexByte(field, 0) >= 0 {
			return refuse("its config has a zero byte in %.100q", field)
		}
	}
	if strings.ContainsFunc(c.User+c.WorkingDir, unicode.IsControl) {
		return refuse("its config has no sense: user %.100q, folder %.100q", c.User, c.WorkingDir)
	}
	return nil
}

// build unpacks the layers, each as soon as it and those below are here.
func (s *Store) build(ctx context.Context, src source, p picture, whole string, tell *teller) error {
	if _, err := readConfig(p.config, s.options.Platform, len(p.layers)); err != nil {
		return err
	}
	root := filepath.Join(whole, rootDir)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil { // whatever the umask
		return err
	}
	t, err := openTree(root, s.flat, s.limits)
	if err != nil {
		return err
	}
	defer func() { _ = t.close() }()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	here := make([]chan error, len(p.layers))
	downloads := pool.New().WithMaxGoroutines(parallel)
	open := func(i int) (io.ReadCloser, error) { return p.layers[i].open(ctx) }
	if src.far() {
		blobs := filepath.Dir(whole)
		blob := func(i int) string { return filepath.Join(blobs, fmt.Sprintf("layer%d", i)) }
		open = func(i int) (io.ReadCloser, error) {
			if err := <-here[i]; err != nil {
				return nil, err
			}
			f, err := os.Open(blob(i))
			if err != nil {
				return nil, err
			}
			return f, os.Remove(blob(i)) // it ends with the descriptor
		}
		for i := range p.layers {
			here[i] = make(chan error, 1)
		}
		starter := pool.New()
		starter.Go(func() { // Go blocks while all are busy
			for i, layer := range p.layers {
				downloads.Go(func() { here[i] <- s.download(ctx, layer, blob(i), tell) })
			}
			downloads.Wait()
		})
		defer starter.Wait()
		defer cancel(nil) // before the wait
	}
	b := &budget{limits: s.limits}
	for i, layer := range p.layers {
		if err := s.unpackLayer(ctx, t, b, layer, func() (io.ReadCloser, error) { return open(i) }); err != nil {
			return err
		}
		tell.line("unpacked layer %d of %d", i+1, len(p.layers))
	}
	return nil
}

func (s *Store) unpackLayer(ctx context.Context, t *tree, b *budget, layer part, open func() (io.ReadCloser, error)) error {
	r, err := open()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return t.unpack(ctx, b, r, layer.digest, layer.size, layer.diff)
}

// download brings a layer to a file, checked. A download that is cut off is begun
// anew, a few times.
func (s *Store) download(ctx context.Context, layer part, path string, tell *teller) error {
	wait := s.wait
	for try := 1; ; try++ {
		err := s.downloadOnce(ctx, layer, path, tell)
		if err == nil || ctx.Err() != nil || try == tries || !isCut(err) {
			return err
		}
		s.log.Warn("download layer again", "layer", layer.digest, "error", err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		wait *= 3
	}
}

func (s *Store) downloadOnce(ctx context.Context, layer part, path string, tell *teller) error {
	r, err := layer.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	c := check(tell.watch(r, "layer "+layer.digest, layer.size), "layer "+layer.digest, layer.digest, layer.size)
	_, err = io.Copy(f, c)
	if err == nil {
		err = c.finish()
	}
	return errors.Join(err, f.Close())
}

// isCut says whether a download ended before its time, so that another may not.
func isCut(err error) bool {
	var short *truncated
	return errors.As(err, &short) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errStalled)
}

// scratch makes a folder to work in, which end removes.
func (s *Store) scratch(ctx context.Context) (dir string, end func(), err error) {
	if err := s.sweep(ctx); err != nil {
		return "", nil, err
	}
	unlock, err := lockStore(ctx, s.path(storeLock), false)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	dir = s.path(tmpDir, "work."+rand.Text())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	release, ok, err := claim(dir)
	if err != nil || !ok {
		return "", nil, cmp.Or(err, fmt.Errorf("%s is locked", dir))
	}
	return dir, func() {
		if err := os.RemoveAll(dir); err != nil {
			s.log.Warn("remove what was in the making", "dir", dir, "error", err)
		}
		release()
	}, nil
}

// sweep removes what dead processes left in the making.
func (s *Store) sweep(ctx context.Context) error {
	left, err := os.ReadDir(s.path(tmpDir))
	if err != nil || len(left) == 0 {
		return err
	}
	// Alone: a folder that is made and not locked yet is not seen.
	unlock, err := lockStore(ctx, s.path(storeLock), true)
	if err != nil {
		return err
	}
	err = s.sweepAlone()
	unlock()
	return errors.Join(err, s.emptyTrash())
}

func (s *Store) sweepAlone() error {
	left, err := os.ReadDir(s.path(tmpDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range left {
		path := s.path(tmpDir, entry.Name())
		if !entry.IsDir() { // of setMeaning, which does not run now
			errs = append(errs, os.Remove(path))
			continue
		}
		release, ok, err := claim(path)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		if ok {
			errs = append(errs, os.Rename(path, s.path(trashDir, rand.Text())))
			release()
		}
	}
	return errors.Join(errs...)
}

// teller passes progress on, a line at a time.
type teller struct {
	mu   sync.Mutex
	said func(string)
}

func (t *teller) line(format string, args ...any) {
	if t.said == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.said(fmt.Sprintf(format, args...))
}

// steps of a download that are told of.
const steps = 10

// watch tells of each tenth of a large download.
func (t *teller) watch(r io.Reader, what string, size int64) io.Reader {
	if t.said == nil || size < 16<<20 {
		return r
	}
	return &watched{r: r, what: what, size: size, tell: t}
}

type watched struct {
	r       io.Reader
	what    string
	n, size int64
	told    int64
	tell    *teller
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.n += int64(n)
	if step := w.n * steps / w.size; step > w.told {
		w.told = step
		w.tell.line("%.25s: %d of %d MB", w.what, w.n>>20, w.size>>20)
	}
	return n, err
}
