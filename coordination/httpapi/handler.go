package httpapi

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination"
	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// Guests finds the way to the guest of a workspace.
type Guests interface {
	// Guest returns the workspace's id and what carries requests to its node
	// agent. bulk asks for a connection that may be kept busy. Errors are
	// *api.Error.
	Guest(ctx context.Context, workspace string, bulk bool) (workspaceID string, rt http.RoundTripper, err error)
}

// Agents finds the way to the node agents.
type Agents interface {
	// NodeAgent returns what carries requests to the agent of a node, of the only
	// one where no name is given. bulk asks for a connection that may be kept
	// busy. Errors are *api.Error.
	NodeAgent(ctx context.Context, node string, bulk bool) (http.RoundTripper, error)
}

// Entry is one call for the audit log.
type Entry struct {
	Principal string
	// Method is the full name, /vendetta.v1.NodeService/AddNode.
	Method string
	// Workspace is the name of the workspace that a guest's method is called in.
	Workspace string
	// Fields are the recorded request fields, as JSON.
	Fields string
}

// Options are what the edge stands before.
type Options struct {
	Nodes      vendettav1connect.NodeServiceHandler
	Workspaces vendettav1connect.WorkspaceServiceHandler
	Operations vendettav1connect.OperationServiceHandler
	Server     vendettav1connect.ServerServiceHandler
	Guests     Guests
	Agents     Agents
	// Audit returns when the entry is on disk. A call that cannot be recorded is
	// not carried out.
	Audit func(context.Context, Entry) error
	// Authenticate says whom a request runs for; Local on the server's own
	// socket. Without it every request is refused.
	Authenticate func(*http.Request) (coordination.Principal, error)
	// Hosts are the names that a request may address the server by; none means
	// "vendetta", which our clients use, and "localhost".
	Hosts  []string
	Logger *slog.Logger
}

// Local authenticates what comes over the server's own unix socket: its file
// mode lets in the server's own user alone, who may do everything.
func Local(*http.Request) (coordination.Principal, error) {
	return coordination.Principal{Name: coordination.LocalPrincipal, Scope: vendettav1.Scope_SCOPE_ADMIN, Local: true}, nil
}

// New returns the handler of the whole API:
//
//	/vendetta.v1.SERVICE/METHOD                                  the server's own services
//	/vendetta.v1.ImageService/METHOD                             the agent of the node that the request names
//	/workspaces/NAME/guest/vendetta.guest.v1.SERVICE/METHOD      the guest of a workspace
//
// A request is looked at in this order: Host and Origin, who it is from, which
// method it calls, whether the caller's scope suffices; then, where the method
// has audit fields, it is recorded; then it is carried out. Each refusal is an
// error in the protocol that the call speaks.
func New(o Options) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if len(o.Hosts) == 0 {
		o.Hosts = []string{"vendetta", "localhost"}
	}
	h := &handler{
		options: o,
		log:     o.Logger,
		routes:  newRoutes(o),
		large:   make(chan struct{}, largeMessages),
	}
	h.guests = wire.PassThrough(h.resolve, o.Logger)
	h.agents = wire.PassThrough(h.resolveAgent, o.Logger)
	return h
}

type handler struct {
	options Options
	log     *slog.Logger
	routes  *routes
	guests  http.Handler
	agents  http.Handler
	// large holds a place for each large message that is in memory.
	large chan struct{}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h.checkOrigin(r); err != nil {
		h.forbid(w, r, err)
		return
	}
	c, err := h.admit(r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	defer c.close()
	r = r.WithContext(context.WithValue(coordination.WithPrincipal(r.Context(), c.principal), callKey{}, c))
	if c.route.agent != "" {
		h.agents.ServeHTTP(w, r)
		return
	}
	if c.route.handler == nil {
		h.guests.ServeHTTP(w, r)
		return
	}
	if err := h.record(c, r); err != nil {
		h.refuse(w, r, err)
		return
	}
	c.route.handler.ServeHTTP(w, r)
}

// call is one admitted request.
type call struct {
	route     *route
	principal coordination.Principal
	// workspace is the name in the path of a guest's call.
	workspace string
	// release gives back the place of a large message. It may be called again.
	release func()
}

type callKey struct{}

func (c *call) close() {
	if c.release != nil {
		c.release()
	}
}

// checkOrigin refuses what a web page could have sent: it names its origin, or
// reached us under a name that somebody else chose.
func (h *handler) checkOrigin(r *http.Request) error {
	if origin, sent := r.Header["Origin"]; sent {
		return api.Errorf(api.PermissionDenied, "request from origin %q: web pages may not call this server", clip(strings.Join(origin, " ")))
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if !slices.Contains(h.options.Hosts, strings.ToLower(host)) {
		return api.Errorf(api.PermissionDenied, "request to host %q: this server goes by %s", clip(r.Host), strings.Join(h.options.Hosts, ", "))
	}
	return nil
}

// admit finds out who calls what, and whether that is allowed.
func (h *handler) admit(r *http.Request) (*call, error) {
	if h.options.Authenticate == nil {
		return nil, api.Errorf(api.Unauthenticated, "call %s: this server knows no way to authenticate", clip(r.URL.Path))
	}
	principal, err := h.options.Authenticate(r)
	if err != nil {
		return nil, err
	}
	c := &call{principal: principal}
	if c.route, c.workspace, err = h.routes.find(r.URL.Path); err != nil {
		return nil, err
	}
	switch {
	case c.route.scope == vendettav1.Scope_SCOPE_UNSPECIFIED:
		return nil, api.Errorf(api.PermissionDenied, "call %s: it declares no scope, so nobody may call it", c.route.name)
	case !principal.May(c.route.scope):
		return nil, api.Errorf(api.PermissionDenied, "call %s: it needs the scope %s, %s has %s",
			c.route.name, scopeName(c.route.scope), principal.Name, scopeName(principal.Scope)).
			WithNext("ask who runs the server for the scope %s", scopeName(c.route.scope))
	case r.Method != http.MethodPost:
		return nil, api.Errorf(api.Unimplemented, "call %s: only POST is served", c.route.name)
	}
	return c, nil
}

// resolve is the way of a guest's call. It is recorded when it is known that it
// can be passed on.
func (h *handler) resolve(r *http.Request) (http.RoundTripper, string, error) {
	c := r.Context().Value(callKey{}).(*call)
	id, next, err := h.options.Guests.Guest(r.Context(), c.workspace, c.route.bulk)
	if err != nil {
		return nil, "", err
	}
	if err := h.record(c, r); err != nil {
		return nil, "", err
	}
	// Only the server itself says to a node agent who it is.
	r.Header.Del(api.ServerHeader)
	return next, "/workspaces/" + id + "/guest" + c.route.name, nil
}

// resolveAgent is the way of a call that the agent of a node answers: the first
// message names the node.
func (h *handler) resolveAgent(r *http.Request) (http.RoundTripper, string, error) {
	c := r.Context().Value(callKey{}).(*call)
	message, err := h.peek(c, r)
	if err != nil {
		return nil, "", err
	}
	next, err := h.options.Agents.NodeAgent(r.Context(), message.Get(c.route.node).String(), c.route.bulk)
	if err != nil {
		return nil, "", err
	}
	if len(c.route.audit) > 0 {
		if err := h.write(c, r, message); err != nil {
			return nil, "", err
		}
	}
	r.Header.Del(api.ServerHeader)
	return next, c.route.agent, nil
}

// scopeName is a scope as users write it.
func scopeName(s vendettav1.Scope) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "SCOPE_"))
}

// clip shortens what a caller sent so that it fits into a message.
func clip(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
