package main

import (
	"os"

	"github.com/vendetta-dev/vendetta/coordination/client"
)

// forwardedSignals are those that exec passes on to the command.
var forwardedSignals = []os.Signal{os.Interrupt}

func signalName(os.Signal) string { return "INT" }

// processEnded tells whether a process is gone.
func processEnded(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil {
		return true
	}
	_ = p.Release()
	return false
}

// watchSize does nothing: a Windows console tells of no changed size.
func watchSize(*os.File, chan<- client.Size) (stop func()) { return func() {} }
