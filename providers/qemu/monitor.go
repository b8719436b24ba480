//go:build linux

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"github.com/sourcegraph/conc"
)

// The sockets of a machine, in its folder.
const (
	monitorSocket = "qmp"
	linkSocket    = "link"
	controlSocket = "control"
)

// monitorPatience bounds one conversation with a QEMU when ctx does not.
const monitorPatience = 30 * time.Second

// monitor is one conversation with a QEMU. They are kept short: it talks to one
// at a time, and the library's answers live in a buffer that a long one moves.
type monitor struct {
	m *qmp.SocketMonitor
}

// talk holds a conversation and ends it with ctx. The library knows no context:
// a conversation that is given up is ended from outside.
func (p *Provider) talk(ctx context.Context, ws string, say func(*monitor) error) error {
	ctx, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	folder, err := os.Open(p.instanceDir(ws))
	if err != nil {
		return err
	}
	// A path through the descriptor has any length; see unix(7) on sun_path.
	address := fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), monitorSocket)
	defer func() { _ = folder.Close() }() // only a name for the socket
	if err := greets(ctx, address); err != nil {
		return fmt.Errorf("reach QEMU: %w", err)
	}
	sm, err := qmp.NewSocketMonitor("unix", address, monitorPatience)
	if err != nil {
		return fmt.Errorf("reach QEMU: %w", err)
	}
	if err := sm.Connect(); err != nil {
		return fmt.Errorf("reach QEMU: %w", errors.Join(err, sm.Disconnect()))
	}
	ended := make(chan error, 1)
	var talking conc.WaitGroup
	talking.Go(func() { ended <- say(&monitor{m: sm}) })
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = ctx.Err()
	}
	_ = sm.Disconnect() // nothing is lost with it, and a command that waits ends
	talking.Wait()
	return err
}

// greets waits until a QEMU says its first word. The library's own greeting could
// not be given up, and one that does not greet at all is stuck or not ours.
func greets(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

// do runs one command. arguments and result may be nil.
func (m *monitor) do(command string, arguments, result any) error {
	return m.send(command, arguments, nil, result)
}

// send is do with a descriptor that goes along.
func (m *monitor) send(command string, arguments any, file *os.File, result any) error {
	raw, err := json.Marshal(qmp.Command{Execute: command, Args: arguments})
	if err != nil {
		return err
	}
	answer, err := m.m.RunWithFile(raw, file)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if result == nil {
		return nil
	}
	var response struct {
		Return json.RawMessage `json:"return"`
	}
	if err := json.Unmarshal(answer, &response); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if err := json.Unmarshal(response.Return, result); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// command runs one command in a conversation of its own.
func (p *Provider) command(ctx context.Context, ws, command string, arguments, result any) error {
	return p.talk(ctx, ws, func(m *monitor) error { return m.do(command, arguments, result) })
}

// status asks QEMU what its machine does.
func (p *Provider) status(ctx context.Context, ws string) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := p.command(ctx, ws, "query-status", nil, &s)
	return s.Status, err
}

// await waits until the machine's status is one that ok takes.
func (p *Provider) await(ctx context.Context, ws string, ok func(status string) (bool, error)) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := p.status(ctx, ws)
		if err != nil {
			return err
		}
		if done, err := ok(s); done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dismiss ends a QEMU that nobody has a record of, if there is one: its agent
// died between starting it and writing that down.
func (p *Provider) dismiss(ctx context.Context, ws string) error {
	if _, err := os.Lstat(filepath.Join(p.instanceDir(ws), monitorSocket)); err != nil {
		return nil // never started
	}
	ctx, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for p.command(ctx, ws, "quit", nil, nil) == nil {
		select { // until nobody answers any more
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
