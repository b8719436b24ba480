//go:build unix

package main

import "syscall"

// detached starts a daemon in a session of its own, so that it outlives the
// terminal it was started from.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
