//go:build !(linux && cgo && lxc)

package liblxc

import "github.com/vendetta-dev/vendetta/providers/lxc/helper"

// Do says that this build cannot.
func Do(helper.Request) helper.Answer {
	return helper.Answer{Error: "vendetta-lxc was built without liblxc: build it with make build on a machine that has liblxc's headers"}
}
