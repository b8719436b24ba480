//go:build linux

package lxc

import (
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

func TestLife(t *testing.T) {
	r := newRig(t)
	r.up(spec("w1"))
	r.want("w1", "id -u", "0")
	r.want("w1", "echo $FROM_IMAGE", "a b c")
	t.Log(r.sh("w1", "cat /proc/self/status; mount; ip addr; ip route; cat /etc/hosts /etc/resolv.conf; ls -la / /.vendetta /dev; cat /proc/self/uid_map; pwd; env; ls -l /proc/1/fd; cat /proc/1/cgroup; cat /proc/sys/user/max_user_namespaces"))
	t.Log(r.Console(t.Context(), "w1"))
	if err := r.Stop(t.Context(), "w1", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if i := r.inspect("w1"); i.State != providers.StateStopped {
		t.Errorf("%+v", i)
	}
}
