package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// maxMessage bounds one message from the server. The largest that the contract
// knows is a listing of 10,000 files; nothing comes near this.
const maxMessage = 16 << 20

// Client talks to one coordination server. Its methods and fields may be used
// from many goroutines at once. Errors of the services are read with api.From.
type Client struct {
	Nodes      vendettav1connect.NodeServiceClient
	Workspaces vendettav1connect.WorkspaceServiceClient
	Operations vendettav1connect.OperationServiceClient
	Server     vendettav1connect.ServerServiceClient
	Images     vendettav1connect.ImageServiceClient

	http *roundTripper
}

// New makes a client of the server that dial reaches. Nothing is dialled before
// the first call; a connection that was lost is dialled anew by the next call.
// A failed dial reads unavailable, or as the *api.Error that dial returned.
func New(dial func(ctx context.Context) (net.Conn, error)) *Client {
	marked := func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			return nil, dialFailed(err)
		}
		return conn, nil
	}
	rt := &roundTripper{small: wire.Client(marked), bulk: wire.Client(marked), bulkPaths: bulkMethods()}
	opts := connect.WithReadMaxBytes(maxMessage)
	return &Client{
		Nodes:      vendettav1connect.NewNodeServiceClient(rt, wire.BaseURL, opts),
		Workspaces: vendettav1connect.NewWorkspaceServiceClient(rt, wire.BaseURL, opts),
		Operations: vendettav1connect.NewOperationServiceClient(rt, wire.BaseURL, opts),
		Server:     vendettav1connect.NewServerServiceClient(rt, wire.BaseURL, opts),
		Images:     vendettav1connect.NewImageServiceClient(rt, wire.BaseURL, opts),
		http:       rt,
	}
}

// Close drops the connections that no call is using.
func (c *Client) Close() {
	c.http.small.CloseIdleConnections()
	c.http.bulk.CloseIdleConnections()
}

// Guest is the API of one workspace's guest, by way of the server.
type Guest struct {
	Processes guestv1connect.ProcessServiceClient
	Files     guestv1connect.FileServiceClient
	Project   guestv1connect.ProjectServiceClient
	Guest     guestv1connect.GuestServiceClient

	workspace string
}

// Guest gives the API of the named workspace. Nothing is asked yet, so a name
// that does not exist shows at the first call.
func (c *Client) Guest(workspace string) *Guest {
	base := wire.BaseURL + "/workspaces/" + url.PathEscape(workspace) + "/guest"
	opts := connect.WithReadMaxBytes(maxMessage)
	return &Guest{
		Processes: guestv1connect.NewProcessServiceClient(c.http, base, opts),
		Files:     guestv1connect.NewFileServiceClient(c.http, base, opts),
		Project:   guestv1connect.NewProjectServiceClient(c.http, base, opts),
		Guest:     guestv1connect.NewGuestServiceClient(c.http, base, opts),
		workspace: workspace,
	}
}

// Workspace is the name that g was made for.
func (g *Guest) Workspace() string { return g.workspace }

// roundTripper keeps two connections, so that no small call waits behind the
// bytes of a bulk one. Which methods are bulk is said in the contract.
type roundTripper struct {
	small, bulk *http.Client
	bulkPaths   map[string]bool
}

func (rt *roundTripper) Do(r *http.Request) (*http.Response, error) {
	p := r.URL.Path
	if i := strings.LastIndex(p, "/vendetta."); i >= 0 {
		p = p[i:]
	}
	if rt.bulkPaths[p] {
		return rt.bulk.Do(r) //nolint:gosec // the connection decides where it goes, not the address
	}
	return rt.small.Do(r) //nolint:gosec // as above
}

// bulkMethods reads from the descriptors which methods move many bytes.
func bulkMethods() map[string]bool {
	found := map[string]bool{}
	for _, file := range []protoreflect.FileDescriptor{guestv1.File_vendetta_guest_v1_file_proto, vendettav1.File_vendetta_v1_image_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				if m := service.Methods().Get(j); isBulk(m) {
					found["/"+string(service.FullName())+"/"+string(m.Name())] = true
				}
			}
		}
	}
	return found
}

func isBulk(m protoreflect.MethodDescriptor) bool {
	bulk, _ := proto.GetExtension(m.Options(), vendettav1.E_Bulk).(bool)
	return bulk
}

// errNotDialled marks a call that never left this program.
var errNotDialled = errors.New("not connected")

type dialError struct{ cause error }

func (e *dialError) Error() string        { return e.cause.Error() }
func (e *dialError) Unwrap() error        { return e.cause }
func (e *dialError) Is(target error) bool { return target == errNotDialled }

func dialFailed(err error) error {
	var own *api.Error
	if errors.As(err, &own) {
		marked := *own
		marked.Cause = &dialError{cause: err}
		return &marked
	}
	return &api.Error{
		Code:    api.Unavailable,
		Message: "connect to the server: " + err.Error(),
		Next:    "see whether it runs: vendetta server status",
		Cause:   &dialError{cause: err},
	}
}

// lost tells whether err says that the way to the guest broke, so that the same
// question may be answered when it is asked again. An error that the other side
// gave as its answer is not one of these.
func lost(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var wireErr *connect.Error
	if !errors.As(err, &wireErr) {
		return true
	}
	if connect.IsWireError(err) {
		// The other side may notice the end of ctx first; ctx then says so too.
		return api.CodeOf(err) == api.Unavailable || wireErr.Code() == connect.CodeCanceled || wireErr.Code() == connect.CodeDeadlineExceeded
	}
	// What the client made itself: of a status that stands for an answer, or of a
	// stream that ended in the middle, for which it has several codes.
	answers := []connect.Code{connect.CodeResourceExhausted, connect.CodeUnimplemented, connect.CodeUnauthenticated, connect.CodePermissionDenied}
	return !slices.Contains(answers, wireErr.Code())
}
