//go:build linux && cgo && lxc

package liblxc

import (
	"fmt"

	"github.com/lxc/go-lxc"

	"github.com/vendetta-dev/vendetta/providers/lxc/helper"
)

// Do does what the request asks for. The caller has locked the main goroutine to
// the main thread, which is the one that liblxc forks.
func Do(r helper.Request) helper.Answer {
	answer := helper.Answer{Version: lxc.Version()}
	if r.Verb == helper.Version {
		return answer
	}
	if err := act(r, &answer); err != nil {
		answer.Error = fmt.Sprintf("%s: %v", r.Verb, err)
	}
	return answer
}

func act(r helper.Request, answer *helper.Answer) error {
	if r.Verb == helper.Start {
		if err := helper.Prepare(r); err != nil {
			return err
		}
	}
	c, err := lxc.NewContainer(r.Name, r.Path)
	if err != nil {
		return err
	}
	if err := c.LoadConfigFile(r.Config); err != nil {
		return fmt.Errorf("read %s: %w", r.Config, err)
	}
	switch r.Verb {
	case helper.Start:
		err = start(c, r)
	case helper.Stop:
		err = c.Stop()
	case helper.Freeze:
		err = c.Freeze()
	case helper.Unfreeze:
		err = c.Unfreeze()
	default: // helper.State: it is told in any case
	}
	if err == nil {
		answer.State = c.State().String()
		answer.PID = max(c.InitPid(), 0)
	}
	if err == nil && r.Verb == helper.Start {
		err = helper.Finish(r, answer.PID)
	}
	return err
}

func start(c *lxc.Container, r helper.Request) error {
	for _, e := range r.Environment {
		if err := c.SetConfigItem("lxc.environment", e); err != nil {
			return fmt.Errorf("set environment: %w", err)
		}
	}
	if err := c.WantDaemonize(true); err != nil {
		return err
	}
	if err := c.WantCloseAllFds(true); err != nil {
		return err
	}
	return c.Start()
}
