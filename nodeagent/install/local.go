package install

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// Local starts the agent on this machine, if it does not run, and returns its
// socket.
func Local(ctx context.Context, program, stateDir string) (Result, error) {
	const what = "start node agent"
	out, err := local(ctx, what, program, "nodeagent", "start", "--state-dir", stateDir)
	if err != nil {
		return Result{}, err
	}
	socket, err := socketOf(what, strings.TrimSpace(out))
	return Result{Socket: socket, Program: program, StateDir: stateDir}, err
}

// UninstallLocal stops the agent on this machine and removes its state. The
// program stays: it is the user's.
func UninstallLocal(ctx context.Context, program, stateDir string) error {
	_, err := local(ctx, "uninstall node agent", program, "nodeagent", "uninstall", "--state-dir", stateDir)
	return err
}

// local runs the program and returns its stdout.
func local(ctx context.Context, what, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out.String(), nil
	case ctx.Err() != nil:
		return "", api.From(ctx.Err())
	case errors.As(err, &exit):
		lines := strings.TrimSpace(complaint.String())
		if i := strings.LastIndexByte(lines, '\n'); i >= 0 {
			lines = lines[i+1:]
		}
		if lines == "" {
			lines = exit.Error()
		}
		return "", &api.Error{Code: api.FailedPrecondition, Message: what + ": " + printable(lines), Cause: err}
	}
	return "", &api.Error{Code: api.Internal, Message: what + ": " + err.Error(), Cause: err}
}
