package coordination

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1/nodeagentv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

type failingDialer struct{ err error }

func (d failingDialer) Dial(context.Context, Target) (net.Conn, error) { return nil, d.err }
func (failingDialer) Forget(string)                                    {}

// What a dial failed of reaches the caller of an RPC whole, an end of file deep
// inside it notwithstanding.
func TestDialErrorsReachTheCaller(t *testing.T) {
	for name, cause := range map[string]error{
		"no agent":                  ErrNoAgent,
		"no agent, by way of stdio": errors.Join(ErrNoAgent, fmt.Errorf("greeting: %w", io.EOF)),
	} {
		t.Run(name, func(t *testing.T) {
			failed := &api.Error{Code: api.Unavailable, Message: "nobody listens", Next: "start it", Cause: cause}
			c := newChannel(failingDialer{failed}, func() Target { return Target{Name: "n"} }, "s")
			defer c.close()
			agent := nodeagentv1connect.NewNodeAgentServiceClient(c.client(), wire.BaseURL)
			_, err := agent.Hello(t.Context(), &nodeagentv1.HelloRequest{})
			if e := api.From(err); e.Message != "nobody listens" || e.Next != "start it" || !errors.Is(err, ErrNoAgent) {
				t.Errorf("got %#v", e)
			}
		})
	}
}
