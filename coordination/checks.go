package coordination

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

const (
	// lowDisk is the free space below which a node is reported short of it.
	lowDisk = 1 << 30
	// testCeiling bounds a test of a node.
	testCeiling = 20 * time.Second
)

// TestNode implements vendettav1connect.NodeServiceHandler. It uses a new
// stream, so it finds what is wrong now and not what the link remembers. A check
// that makes no sense after a failed one is left out.
func (s *Server) TestNode(ctx context.Context, req *vendettav1.TestNodeRequest) (*vendettav1.TestNodeResponse, error) {
	n, err := s.storedNode(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, testCeiling)
	defer cancel()
	t := nodeTest{target: targetOf(n), resp: &vendettav1.TestNodeResponse{}}

	begun := time.Now()
	dialCtx, cancelDial := context.WithTimeout(ctx, connectCeiling)
	defer cancelDial()
	conn, err := s.opts.Dialer.Dial(dialCtx, t.target)
	if err != nil {
		t.failed("connection", begun, err)
		return t.resp, nil
	}
	t.passed("connection", begun, "a stream to "+strings.TrimPrefix(addressArgument(n.Address), "--")+" opens")

	once := newChannel(dialed{conn}, func() Target { return t.target }, s.id)
	defer once.close()
	begun = time.Now()
	hello, err := agentOver(once).Hello(ctx, &nodeagentv1.HelloRequest{
		ProtocolMin: api.ProtocolOldest, ProtocolMax: api.Protocol, ServerVersion: s.opts.Version,
	})
	if err != nil {
		t.failed("node agent", begun, err)
		return t.resp, nil
	}
	t.passed("node agent", begun, "version "+hello.GetVersion()+" answers")
	t.rest(hello)
	return t.resp, nil
}

// dialed gives out one connection that was made already.
type dialed struct{ conn net.Conn }

func (d dialed) Dial(context.Context, Target) (net.Conn, error) { return d.conn, nil }
func (d dialed) Forget(string)                                  {}

// nodeTest collects checks.
type nodeTest struct {
	target Target
	resp   *vendettav1.TestNodeResponse
}

func (t *nodeTest) add(c *vendettav1.NodeCheck, begun time.Time) {
	if !begun.IsZero() {
		c.Millis = float64(time.Since(begun)) / float64(time.Millisecond)
	}
	t.resp.Checks = append(t.resp.Checks, c)
}

func (t *nodeTest) passed(name string, begun time.Time, message string) {
	t.add(&vendettav1.NodeCheck{Name: name, Ok: true, Message: message}, begun)
}

func (t *nodeTest) failed(name string, begun time.Time, err error) {
	e := api.From(err)
	fix := e.Next
	if fix == "" {
		fix = repairCommand(t.target)
	}
	t.add(&vendettav1.NodeCheck{Name: name, Message: e.Message, Fix: fix}, begun)
}

// rest judges what the agent said of itself and its machine.
func (t *nodeTest) rest(hello *nodeagentv1.HelloResponse) {
	var untimed time.Time
	if p, err := api.Negotiate(hello.GetProtocol(), hello.GetProtocol(), repairCommand(t.target)); err != nil {
		t.failed("protocol", untimed, err)
	} else {
		t.passed("protocol", untimed, fmt.Sprintf("both speak %d", p))
	}
	usable := 0
	for _, p := range hello.GetReport().GetProviders() {
		c := &vendettav1.NodeCheck{Name: "provider " + p.GetName(), Ok: p.GetUsable(), Message: p.GetReason(), Fix: p.GetFix()}
		if p.GetUsable() {
			usable++
			c.Message = strings.TrimSuffix(p.GetVersion()+"; "+p.GetReason(), "; ")
		}
		t.add(c, untimed)
	}
	if usable == 0 {
		t.add(&vendettav1.NodeCheck{Name: "providers", Message: "none is usable, so no workspace can be here", Fix: "install docker on the node"}, untimed)
	}
	capacity := hello.GetReport().GetCapacity()
	disk := &vendettav1.NodeCheck{Name: "disk", Ok: capacity.GetDiskFreeBytes() >= lowDisk,
		Message: fmt.Sprintf("%.1f of %.1f GiB free", gib(capacity.GetDiskFreeBytes()), gib(capacity.GetDiskBytes()))}
	if !disk.GetOk() {
		disk.Fix = "remove what is not needed on the node, e.g. docker system prune, or workspaces"
	}
	t.add(disk, untimed)
}

func gib(b uint64) float64 { return float64(b) / (1 << 30) }
