package mcp

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// resultMost is about what a result may hold, in bytes; clients cut or spill
// what is much longer. headMost and tailMost are the parts of a long output.
const (
	resultMost = 20_000
	headMost   = 8_000
	tailMost   = 10_000
	pageMost   = headMost + tailMost
)

// printable shows bytes as text of at most limit bytes. What is no text shows as
// \xNN, so nothing is lost and no terminal sequence passes.
func printable(data []byte, limit int) string {
	shown, _, _ := escapeHead(data, limit)
	return shown
}

// escapeHead shows as much of the beginning as fits; used is how many bytes that
// is, escaped how many of them were no text.
func escapeHead(data []byte, limit int) (shown string, used, escaped int) {
	var b strings.Builder
	for used < len(data) {
		r, size := utf8.DecodeRune(data[used:])
		piece, binary := pieceOf(r, data[used:used+size])
		if b.Len()+len(piece) > limit {
			break
		}
		b.WriteString(piece)
		used += size
		if binary {
			escaped += size
		}
	}
	return b.String(), used, escaped
}

// escapeTail is escapeHead from the end.
func escapeTail(data []byte, limit int) (shown string, used, escaped int) {
	length, from := 0, len(data)
	for from > 0 {
		r, size := utf8.DecodeLastRune(data[:from])
		piece, _ := pieceOf(r, data[from-size:from])
		if length+len(piece) > limit {
			break
		}
		length += len(piece)
		from -= size
	}
	return escapeHead(data[from:], limit)
}

// pieceOf shows one rune.
func pieceOf(r rune, raw []byte) (piece string, binary bool) {
	if r == '\n' || r == '\t' || r != utf8.RuneError && unicode.IsGraphic(r) || r == utf8.RuneError && len(raw) > 1 {
		return string(raw), false
	}
	if r == '\r' {
		return `\r`, false
	}
	var b strings.Builder
	for _, c := range raw {
		fmt.Fprintf(&b, `\x%02x`, c)
	}
	return b.String(), true
}

// asCall is a tool call as a model would write it, fields in the order given.
func asCall(name string, fields ...any) string {
	var b strings.Builder
	b.WriteString(name + " {")
	for i := 0; i+1 < len(fields); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(encode(fields[i]))
		b.WriteByte(':')
		b.Write(encode(fields[i+1]))
	}
	return b.String() + "}"
}

// lines collects the lines of an answer up to the size of a result.
type lines struct {
	b       strings.Builder
	skipped int
}

func (l *lines) add(format string, args ...any) {
	line := printable([]byte(fmt.Sprintf(format, args...)), 2000)
	if l.b.Len()+len(line) > resultMost-500 {
		l.skipped++
		return
	}
	l.b.WriteString(line + "\n")
}

// text ends the answer; more says how to get at lines that had no room.
func (l *lines) text(more string) string {
	if l.skipped > 0 {
		fmt.Fprintf(&l.b, "[%s had no room; %s]\n", plural(l.skipped, "more line"), more)
	}
	return l.b.String()
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// state turns WORKSPACE_STATE_RUNNING into running.
func state(enum fmt.Stringer, prefix string) string {
	name := strings.ToLower(strings.TrimPrefix(enum.String(), prefix))
	if name == "unspecified" {
		return "unknown"
	}
	return name
}

func bytesText(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return plural(int(n), "byte")
}

func stamp(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}
