// Command vendetta-lxc does one thing to one LXC container and ends. The lxc
// provider runs it, because liblxc forks and needs cgo, and vendetta itself shall
// do neither.
package main

import (
	"os"
	"runtime"

	"github.com/vendetta-dev/vendetta/providers/lxc/helper"
	"github.com/vendetta-dev/vendetta/providers/lxc/liblxc"
)

// Namespaces belong to threads, and liblxc asks /proc/self for the main one's.
func init() { runtime.LockOSThread() }

func main() { os.Exit(helper.Serve(os.Stdin, os.Stdout, liblxc.Do)) }
