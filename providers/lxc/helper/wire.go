package helper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Verb is what the helper shall do.
type Verb string

// The verbs.
const (
	// Version tells liblxc's, and with it that the helper can run at all.
	Version Verb = "version"
	// Start runs a container in the background, under a monitor of liblxc's.
	Start Verb = "start"
	// Stop kills a container.
	Stop Verb = "stop"
	// Freeze and Unfreeze halt a container's processes and let them go on.
	Freeze   Verb = "freeze"
	Unfreeze Verb = "unfreeze"
	// State tells what liblxc thinks of a container.
	State Verb = "state"
)

// Request is the one thing that the helper reads.
type Request struct {
	Verb Verb
	// Path and Name together are what liblxc knows the container by.
	Path, Name string
	// Config is the container's config file.
	Config string
	// Stage is StageOf the folder of containers.
	Stage string
	// Mounts are attached there, in this order, before a start.
	Mounts []Mount
	// Keep are folders on the machine that a start needs; what is mounted
	// elsewhere is let go, so that a container never keeps a file system busy.
	Keep []string
	// Environment of the container's first process, KEY=VALUE. It does not go
	// through the config file, where a value could not hold a new line.
	Environment []string
	// Pingers are the first and last of the group ids that may ping, which no
	// container may without a capability unless its network says so.
	Pingers [2]uint32
}

// Mount is a tree that the provider opened and the helper attaches in the stage.
type Mount struct {
	// Name in the stage.
	Name string
	// FD is the descriptor that the helper has inherited.
	FD int
	// File: it is a file and no folder.
	File bool
}

// Answer is the one thing that the helper writes.
type Answer struct {
	// Error is empty when it did what it was asked for.
	Error string
	// Version of liblxc.
	Version string
	// State as liblxc names it, RUNNING say.
	State string
	// PID of the container's first process, 0 when it does not run.
	PID int
}

// limit bounds a request and an answer.
const limit = 4 << 20

// Serve reads a request, has it done and answers. What it returns is the exit
// code of the process.
func Serve(in io.Reader, out io.Writer, do func(Request) Answer) int {
	var answer Answer
	request, err := decode(in)
	if err == nil {
		answer = do(request)
	} else {
		answer.Error = err.Error()
	}
	if err := json.NewEncoder(out).Encode(answer); err != nil || answer.Error != "" {
		return 1
	}
	return 0
}

func decode(in io.Reader) (Request, error) {
	var r Request
	d := json.NewDecoder(io.LimitReader(in, limit))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("read request: %w", err)
	}
	switch r.Verb {
	case Version:
		return r, nil
	case Start, Stop, Freeze, Unfreeze, State:
		if r.Path == "" || r.Name == "" || r.Config == "" {
			return r, fmt.Errorf("%s: no container is named", r.Verb)
		}
		return r, nil
	}
	return r, fmt.Errorf("unknown verb %q", r.Verb)
}

// ReadAnswer reads what Serve wrote.
func ReadAnswer(raw []byte) (Answer, error) {
	var a Answer
	if len(raw) > limit {
		return a, errors.New("its answer is too long")
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return a, fmt.Errorf("its answer makes no sense: %w", err)
	}
	return a, nil
}
