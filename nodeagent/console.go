package nodeagent

import (
	"context"
	"fmt"
	"strings"
	"unicode"

	"github.com/vendetta-dev/vendetta/providers"
)

// consoleLines bounds what of a console stands in an error.
const (
	consoleLines = 8
	consoleBytes = 600
)

// lastWords are the last lines of an instance's console, for an error's text;
// "" when the provider has no console or there is nothing on it. They come from
// inside the instance: they are made fit to print and kept short.
func (k *keeper) lastWords(ctx context.Context, p providers.Provider) string {
	c, ok := p.(providers.Consoler)
	if !ok {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), inspectCeiling)
	defer cancel()
	if words := tail(c.Console(ctx, k.id)); words != "" {
		return fmt.Sprintf("; its console ends with:\n%s", words)
	}
	return ""
}

// tail makes the end of a console's text fit for a message: the last lines that
// are not empty, without terminal sequences and other control characters.
func tail(console string) string {
	var lines []string
	left := consoleBytes
	all := strings.Split(strings.ToValidUTF8(console, "?"), "\n")
	for i := len(all) - 1; i >= 0 && len(lines) < consoleLines; i-- {
		line := strings.TrimSpace(plain(all[i]))
		if line == "" {
			continue
		}
		if len(line) > left {
			if len(lines) > 0 {
				break
			}
			line = "..." + strings.ToValidUTF8(line[len(line)-left:], "")
		}
		left -= len(line)
		lines = append([]string{line}, lines...)
	}
	return strings.Join(lines, "\n")
}

// plain is a line as a terminal that knows only letters would show it: what
// stands before the last carriage return is overwritten, escape sequences go.
func plain(line string) string {
	line = strings.TrimRight(line, "\r")
	line = line[strings.LastIndexByte(line, '\r')+1:]
	var b strings.Builder
	for i := 0; i < len(line); {
		if line[i] == 0x1b {
			i += escape(line[i:])
			continue
		}
		b.WriteByte(line[i])
		i++
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case unicode.IsControl(r):
			return -1
		}
		return r
	}, b.String())
}

// escape is the length of the escape sequence that s begins with (ECMA-48): ESC
// [, parameters, and a final byte; or ESC and one byte.
func escape(s string) int {
	if len(s) < 2 {
		return len(s)
	}
	if s[1] != '[' {
		return 2
	}
	for i := 2; i < len(s); i++ {
		if s[i] >= 0x40 && s[i] <= 0x7e {
			return i + 1
		}
	}
	return len(s)
}
