//go:build linux

package lxc

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

var _ providers.Consoler = (*Provider)(nil)

// consoleLimit bounds what Console tells.
const consoleLimit = 4 << 10

// Console returns what the guest last wrote to its terminal.
func (p *Provider) Console(_ context.Context, ws string) string {
	if checkID("read the console of", ws) != nil {
		return ""
	}
	if _, err := p.load(ws); err != nil {
		return ""
	}
	return p.console(ws)
}

func (p *Provider) console(ws string) string {
	return strings.TrimSpace(tail(filepath.Join(p.instanceDir(ws), consoleFile), consoleLimit))
}

// tail is the end of a file as printable text, whole lines where there are several.
func tail(path string, limit int64) string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "" // nothing was written yet
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	from := max(info.Size()-limit, 0)
	raw, err := io.ReadAll(io.NewSectionReader(f, from, limit))
	if err != nil {
		return ""
	}
	text := strings.ToValidUTF8(string(raw), "?")
	if _, rest, more := strings.Cut(text, "\n"); from > 0 && more {
		text = rest
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, text)
}
