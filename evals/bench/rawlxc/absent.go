//go:build !(linux && cgo && lxc)

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "rawlxc: built without liblxc; build it with -tags lxc")
	os.Exit(1)
}
