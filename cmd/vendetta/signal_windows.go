package main

import (
	"os"

	"github.com/vendetta-dev/vendetta/coordination/client"
)

// forwardedSignals are those that exec passes on to the command.
var forwardedSignals = []os.Signal{os.Interrupt}

func signalName(os.Signal) string { return "INT" }

// watchSize does nothing: a Windows console tells of no changed size.
func watchSize(*os.File, chan<- client.Size) (stop func()) { return func() {} }
