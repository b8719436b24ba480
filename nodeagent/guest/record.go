//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// A process has a folder StateDir/processes/ID. Making the folder takes the id:
// it is done before the start and fails when the id was taken before. The
// folder holds the output beside two files, each a guestv1.Process in its
// binary form: `record` written before the start and `ended` at the end. A
// folder without a whole `ended` is that of a process that was lost.
const (
	recordFile = "record"
	endedFile  = "ended"
)

var processID = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

func checkProcessID(id string) error {
	if !processID.MatchString(id) {
		return api.Errorf(api.InvalidArgument, "process id %.60q: want 1 to 40 of a-z, 0-9 and -", id)
	}
	return nil
}

// makeRecord takes the id. Nothing is left behind when it fails.
func makeRecord(dir string, p *guestv1.Process) error {
	spare := reserveOf(filepath.Dir(dir))
	err := spare.spend(func() error { return os.Mkdir(dir, 0o700) })
	if errors.Is(err, os.ErrExist) {
		return errIDTaken(p.GetId())
	}
	if err != nil {
		return fsError("start "+p.GetId(), "its record", err)
	}
	if err := spare.spend(func() error { return writeRecord(dir, recordFile, p) }); err != nil {
		_ = os.RemoveAll(dir)
		return fsError("start "+p.GetId(), "its record", err)
	}
	spare.keep()
	return nil
}

func errIDTaken(id string) error {
	return api.Errorf(api.AlreadyExists, "start: process id %s was used before", id).
		WithNext("attach to it, or start with another id")
}

func writeRecord(dir, file string, p *guestv1.Process) error {
	data, err := proto.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), data, 0o600)
}

// loadRecord reads what an earlier guest knew of a process.
func loadRecord(dir, id string) *guestv1.Process {
	if p, err := readRecord(dir, endedFile); err == nil && p.GetId() == id && p.GetState() > guestv1.ProcessState_PROCESS_STATE_RUNNING {
		return p
	}
	p, err := readRecord(dir, recordFile)
	if err != nil || p.GetId() != id {
		p = &guestv1.Process{Id: id}
	}
	p.State = guestv1.ProcessState_PROCESS_STATE_LOST
	p.InputOpen = false
	p.Message = "the guest ended while it ran: whether and how the command ended is not known"
	return p
}

func readRecord(dir, file string) (*guestv1.Process, error) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	p := &guestv1.Process{}
	if err := proto.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return p, nil
}
