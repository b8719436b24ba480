//go:build linux

package e2e

import (
	"bytes"
	"regexp"
	"sync"
	"testing"
)

// lineLog collects output that a test looks at while it grows.
type lineLog struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func newLineLog() *lineLog { return &lineLog{} }

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.data.Write(p)
}

func (l *lineLog) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.data.Bytes(), []byte("\n"))
}

func (l *lineLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.data.String()
}

// processID finds the id of a process in the text of a tool's answer.
func processID(t *testing.T, text string) string {
	t.Helper()
	m := regexp.MustCompile(`process(?:_id)?[":= ]+([a-z0-9-]{6,40})`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no process is named in: %s", text)
	}
	return m[1]
}
