package unix

import (
	"testing"

	"github.com/vendetta-dev/vendetta/transport"
	"github.com/vendetta-dev/vendetta/transport/transporttest"
)

func TestSuite(t *testing.T) {
	t.Parallel()
	transporttest.Run(t, transporttest.Setup{
		New: func(_ *testing.T, socket string) transport.Transport { return New(socket) },
	})
}
