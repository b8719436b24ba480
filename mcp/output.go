package mcp

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// marksMost bounds the lines that say which stream comes next.
const marksMost = 100

// The streams of a command's output.
const (
	stdout byte = iota
	stderr
)

// span is a run of output bytes and the stream of each.
type span struct {
	data, streams []byte
}

func (s *span) add(stream byte, p []byte) {
	s.data = append(s.data, p...)
	for range p {
		s.streams = append(s.streams, stream)
	}
}

func (s *span) slice(from, to int) span { return span{s.data[from:to], s.streams[from:to]} }

// collector keeps the head and the tail of a command's output, whatever its length.
type collector struct {
	mu sync.Mutex
	// next is the offset that follows what was seen, seen how many bytes came.
	next, seen uint64
	head, tail span
	gap        uint64
}

func (c *collector) writer(stream byte) io.Writer { return collectorWriter{c, stream} }

type collectorWriter struct {
	c      *collector
	stream byte
}

func (w collectorWriter) Write(p []byte) (int, error) {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next += uint64(len(p))
	c.seen += uint64(len(p))
	room := min(len(p), headMost-len(c.head.data))
	c.head.add(w.stream, p[:room])
	c.tail.add(w.stream, p[room:])
	if extra := len(c.tail.data) - tailMost; extra > tailMost {
		c.tail = c.tail.slice(extra, len(c.tail.data))
	}
	return len(p), nil
}

// dropped notes that the guest had thrown bytes away.
func (c *collector) dropped(offset, bytes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gap += bytes
	c.next = max(c.next, offset+bytes)
}

func (c *collector) position() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

// render shows what was collected; readOn is the call that reads from an offset.
func (c *collector) render(readOn func(offset uint64) string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var r renderer
	from := c.next - c.seen
	head := c.head.data
	cut := c.seen > uint64(len(head)+len(c.tail.data))
	if len(c.tail.data) > tailMost {
		c.tail, cut = c.tail.slice(len(c.tail.data)-tailMost, len(c.tail.data)), true
	}
	if cut {
		head = wholeRunes(head)
	}
	_, used, _ := escapeHead(head, headMost)
	_, usedTail, _ := escapeTail(c.tail.data, tailMost)
	if cut {
		for usedTail > 0 && !utf8.RuneStart(c.tail.data[len(c.tail.data)-usedTail]) {
			usedTail--
		}
	}
	left := c.seen - uint64(used+usedTail)
	r.show(c.head.slice(0, used))
	if left > 0 {
		r.line(fmt.Sprintf("[... %d bytes left out here; read on with %s ...]", left, readOn(from+uint64(used))))
	}
	r.show(c.tail.slice(len(c.tail.data)-usedTail, len(c.tail.data)))
	if c.gap > 0 {
		r.line(fmt.Sprintf("[%d bytes of older output are no longer kept]", c.gap))
	}
	return r.text()
}

// wholeRunes leaves out a rune that is cut at the end.
func wholeRunes(data []byte) []byte {
	for back := 1; back < utf8.UTFMax && back <= len(data); back++ {
		if b := data[len(data)-back]; utf8.RuneStart(b) {
			if !utf8.FullRune(data[len(data)-back:]) {
				return data[:len(data)-back]
			}
			break
		}
	}
	return data
}

// renderer puts spans together and marks where the stream changes.
type renderer struct {
	b       strings.Builder
	current byte
	marks   int
	escaped int
}

func (r *renderer) show(s span) {
	for i := 0; i < len(s.data); {
		end := i + 1
		for end < len(s.data) && (s.streams[end] == s.streams[i] || r.marks > marksMost) {
			end++
		}
		r.mark(s.streams[i])
		shown, _, escaped := escapeHead(s.data[i:end], resultMost)
		r.b.WriteString(shown)
		r.escaped += escaped
		i = end
	}
}

func (r *renderer) mark(stream byte) {
	if stream == r.current || r.marks > marksMost {
		return
	}
	r.current = stream
	r.marks++
	switch {
	case r.marks > marksMost:
		r.line("[stdout and stderr alternate; from here on they are not marked]")
	case stream == stderr:
		r.line("[stderr]")
	default:
		r.line("[stdout]")
	}
}

// line writes a remark on a line of its own.
func (r *renderer) line(remark string) {
	if s := r.b.String(); s != "" && !strings.HasSuffix(s, "\n") {
		r.b.WriteByte('\n')
	}
	r.b.WriteString(remark + "\n")
}

func (r *renderer) text() string {
	if r.escaped > 0 {
		r.line(fmt.Sprintf("[%s that are no text show as \\xNN]", plural(r.escaped, "byte")))
	}
	return r.b.String()
}

// describe says how a process stands, one fact a line.
func describe(p *guestv1.Process) string {
	var b strings.Builder
	switch p.GetState() {
	case guestv1.ProcessState_PROCESS_STATE_EXITED:
		fmt.Fprintf(&b, "exit_code: %d\n", p.GetExitCode())
	case guestv1.ProcessState_PROCESS_STATE_SIGNALLED:
		fmt.Fprintf(&b, "exit_code: %d (killed by signal %d)\n", p.GetExitCode(), p.GetSignal())
	case guestv1.ProcessState_PROCESS_STATE_LOST:
		b.WriteString("lost: true (the workspace went down under it; its exit code is not known)\n")
	default:
		b.WriteString("running: true\n")
	}
	fmt.Fprintf(&b, "process_id: %s\n", printable([]byte(p.GetId()), 100))
	if p.GetMessage() != "" {
		fmt.Fprintf(&b, "message: %s\n", printable([]byte(p.GetMessage()), 1000))
	}
	return b.String()
}
