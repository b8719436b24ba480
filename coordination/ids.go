package coordination

import (
	"encoding/base32"
	"fmt"
	"io"
)

// Lengths of ids in characters of five bits each. A workspace's stays short
// since it becomes part of names that providers limit.
const (
	serverIDLength    = 16
	nodeIDLength      = 12
	workspaceIDLength = 12
	operationIDLength = 20
)

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newID returns a random id of n characters, [a-z2-7], a letter first.
func (s *Server) newID(n int) (string, error) {
	raw := make([]byte, (n*5+7)/8)
	if _, err := io.ReadFull(s.opts.Rand, raw); err != nil {
		return "", fmt.Errorf("make an id: %w", err)
	}
	raw[0] &= 0x7f // the first five bits stay below 16, a letter
	return idEncoding.EncodeToString(raw)[:n], nil
}
