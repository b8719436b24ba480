//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// usedMost is the number of ids remembered of processes that were dropped: a
// repeat of a start comes soon or never.
const usedMost = 10_000

// usedIDs are the ids of dropped processes, so that they are not used again. The
// file has one a line and is written anew when half of it is too old.
type usedIDs struct {
	path string
	ids  map[string]struct{}
	list []string // oldest first
}

func loadUsedIDs(path string) (*usedIDs, error) {
	u := &usedIDs{path: path, ids: map[string]struct{}{}}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("load used ids: %w", err)
	}
	for id := range strings.Lines(string(data)) {
		if id = strings.TrimSuffix(id, "\n"); checkProcessID(id) == nil {
			u.list = append(u.list, id)
		}
	}
	u.list = u.list[max(0, len(u.list)-usedMost):]
	for _, id := range u.list {
		u.ids[id] = struct{}{}
	}
	return u, nil
}

func (u *usedIDs) has(id string) bool {
	_, ok := u.ids[id]
	return ok
}

// add remembers an id before its process is dropped.
func (u *usedIDs) add(id string) error {
	if u.has(id) {
		return nil
	}
	if len(u.list) >= 2*usedMost {
		if err := u.compact(); err != nil {
			return err
		}
	}
	file, err := os.OpenFile(u.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(id + "\n")
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	u.list = append(u.list, id)
	u.ids[id] = struct{}{}
	return nil
}

func (u *usedIDs) compact() error {
	kept := u.list[len(u.list)-usedMost:]
	if err := os.WriteFile(u.path+".new", []byte(strings.Join(kept, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.Rename(u.path+".new", u.path); err != nil {
		return err
	}
	for _, id := range u.list[:len(u.list)-usedMost] {
		delete(u.ids, id)
	}
	u.list = append([]string(nil), kept...)
	return nil
}
