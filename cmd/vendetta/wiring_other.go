//go:build !linux

package main

import (
	"context"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// errOnlyLinux: a node is a Linux machine; the CLI and the server run elsewhere too.
func errOnlyLinux() error {
	return api.Errorf(api.Unimplemented, "node agent: it runs on Linux only").
		WithNext("add a Linux machine: vendetta node add NAME USER@HOST")
}

func startNodeAgent(context.Context, *app) (string, error) { return "", errOnlyLinux() }
func superviseNodeAgent(context.Context, *app) error       { return errOnlyLinux() }
func runNodeAgent(context.Context, *app) error             { return errOnlyLinux() }
func connectNodeAgent(context.Context, *app, string) error { return errOnlyLinux() }
func uninstallNodeAgent(context.Context, *app) error       { return errOnlyLinux() }
func nativeInit() int                                      { return 1 }
