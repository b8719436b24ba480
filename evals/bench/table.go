//go:build linux

package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// row is one line of the table. Empty cells are printed as a dash.
type row struct {
	goal, what, ours, peer, theirs, ratio, want, met string
}

func (r row) cells() []string {
	return []string{r.goal, r.what, r.ours, r.peer, r.theirs, r.ratio, r.want, r.met}
}

var header = []string{"GOAL", "WHAT", "OURS p50 (p99)", "BESIDE", "ITS p50 (p99)", "RATIO", "GOAL IS", "MET"}

// printTable writes rows in columns as wide as their widest cell.
func printTable(w io.Writer, header []string, rows [][]string) {
	widths := make([]int, len(header))
	lines := append([][]string{header}, rows...)
	for _, cells := range lines {
		for i, cell := range cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(dash(cell)))
		}
	}
	for _, cells := range lines {
		var b strings.Builder
		for i, cell := range cells {
			cell = dash(cell)
			b.WriteString(cell)
			if i < len(cells)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		_, _ = fmt.Fprintln(w, b.String())
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// milliseconds, with as many digits as mean something.
func milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

func both(s sample) string {
	if len(s) == 0 {
		return ""
	}
	return milliseconds(s.p50()) + " (" + milliseconds(s.p99()) + ")"
}

func yes(met bool) string {
	if met {
		return "yes"
	}
	return "NO"
}

// atMost fills a row whose ratio ours/theirs must not be above limit.
func atMost(r row, ours, theirs time.Duration, limit float64) row {
	if theirs <= 0 || ours <= 0 {
		return r
	}
	ratio := float64(ours) / float64(theirs)
	r.ratio = fmt.Sprintf("%.3fx", ratio)
	if limit > 0 {
		r.want = fmt.Sprintf("<= %.2fx", limit)
		r.met = yes(ratio <= limit)
	}
	return r
}

// within fills a row whose value must not be above limit.
func within(r row, ours, limit time.Duration) row {
	r.want = "<= " + milliseconds(limit)
	r.met = yes(ours <= limit)
	return r
}
