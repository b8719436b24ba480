package ssh_test

import (
	"testing"

	"github.com/vendetta-dev/vendetta/transport"
	"github.com/vendetta-dev/vendetta/transport/ssh"
	"github.com/vendetta-dev/vendetta/transport/transporttest"
)

func TestSuite(t *testing.T) {
	t.Parallel()
	bare := func(o ssh.Options) ssh.Options { return o }
	withProgram := func(o ssh.Options) ssh.Options { o.Program = program(t); return o }
	for _, c := range []struct {
		name   string
		config []string
		adapt  func(ssh.Options) ssh.Options
	}{
		{"direct", nil, bare},
		{"direct with program", nil, withProgram},
		{"forwarding forbidden", []string{"AllowStreamLocalForwarding no"}, withProgram},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, c.config...)
			transporttest.Run(t, transporttest.Setup{
				New: func(t *testing.T, socket string) transport.Transport {
					o := c.adapt(n.options())
					o.Socket = socket
					return connect(t, o)
				},
				Break: func(*testing.T) { n.Disconnect() },
			})
		})
	}
}
