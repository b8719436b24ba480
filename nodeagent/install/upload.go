package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// bundled says whether the bundle has a program for the machine.
func bundled(bundle string, m machine, name string) bool {
	_, err := os.Stat(filepath.Join(bundle, "linux-"+m.arch, name))
	return err == nil
}

// upload brings a program of the bundle to the machine, unless that has the same
// already. The file appears under its name whole, checked and at once; a program
// that runs keeps the old one.
func upload(ctx context.Context, r Runner, bundle string, m machine, name string) error {
	source := filepath.Join(bundle, "linux-"+m.arch, name)
	f, err := os.Open(source)
	if errors.Is(err, fs.ErrNotExist) {
		return (&api.Error{
			Code:    api.FailedPrecondition,
			Message: fmt.Sprintf("upload %s: %s is missing", name, source),
			Cause:   err,
		}).WithNext("build it: make build")
	}
	if err != nil {
		return api.Errorf(api.Internal, "upload %s: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return api.Errorf(api.Internal, "upload %s: %w", name, err)
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	if m.sums[name] == sum {
		return nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return api.Errorf(api.Internal, "upload %s: %w", name, err)
	}
	_, err = script(ctx, r, "upload "+name,
		`umask 077; say upload; mkdir -p -- "$1/bin" || fail "make $1/bin"; t=$(mktemp "$1/bin/.upload.XXXXXX") || fail "make a file in $1/bin"; `+
			`trap "rm -f -- \"\$t\"" EXIT; trap "exit 1" HUP INT TERM; `+
			`cat >"$t" || fail "write to $1/bin"; s=$(sha256sum <"$t"); [ "${s%% *}" = "$3" ] || fail "it did not arrive whole"; `+
			`chmod 755 "$t" && mv -f -- "$t" "$1/bin/$2" || fail "put it in place"; say done`,
		f, m.stateDir, name, sum)
	return err
}
