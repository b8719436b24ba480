//go:build !unix

package nodeagent

import (
	"errors"
	"os"
	"os/exec"
)

// tryLock fails: nodes run Linux, other systems only the CLI.
func tryLock(*os.File) error { return errors.ErrUnsupported }

func detach(*exec.Cmd) {}
