package httpapi

import (
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1/nodeagentv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
)

// maxOwnMessage bounds a request to the server's own services.
const maxOwnMessage = 1 << 20

// route is what the descriptor says of one method.
type route struct {
	// name is /SERVICE/METHOD.
	name      string
	input     protoreflect.MessageDescriptor
	streaming bool
	scope     vendettav1.Scope
	audit     []protoreflect.FieldDescriptor
	bulk      bool
	// handler serves one of the server's own methods; nil for a guest's.
	handler http.Handler
	// agent is the path at which a node's agent serves the method, and node the
	// field of the request that names the node; "" where no agent does.
	agent string
	node  protoreflect.FieldDescriptor
}

// routes is the route table, by /SERVICE/METHOD.
type routes struct {
	own   map[string]*route
	guest map[string]*route
}

func newRoutes(o Options) *routes {
	t := &routes{own: map[string]*route{}, guest: map[string]*route{}}
	options := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxOwnMessage),
		connect.WithRecover(recovered(o.Logger)),
		connect.WithInterceptors(&failures{log: o.Logger}),
	}
	for _, mount := range []func() (string, http.Handler){
		func() (string, http.Handler) {
			return vendettav1connect.NewNodeServiceHandler(o.Nodes, options...)
		},
		func() (string, http.Handler) {
			return vendettav1connect.NewWorkspaceServiceHandler(o.Workspaces, options...)
		},
		func() (string, http.Handler) {
			return vendettav1connect.NewOperationServiceHandler(o.Operations, options...)
		},
		func() (string, http.Handler) {
			return vendettav1connect.NewServerServiceHandler(o.Server, options...)
		},
	} {
		prefix, handler := mount()
		t.mount(strings.Trim(prefix, "/"), handler)
	}
	// The images of a node are its agent's to speak of: it serves these methods
	// under the same names, with the same messages.
	t.toAgents(vendettav1.File_vendetta_v1_image_proto)
	// All of the guest's services, those that are yet to come included.
	protoregistry.GlobalFiles.RangeFilesByPackage(guestv1.File_vendetta_guest_v1_guest_proto.Package(), func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			add(t.guest, f.Services().Get(i), nil)
		}
		return true
	})
	return t
}

// mount adds one of the server's own services under its descriptor.
func (t *routes) mount(service string, handler http.Handler) {
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		panic("httpapi: " + err.Error()) // the generated handler names its own service
	}
	add(t.own, found.(protoreflect.ServiceDescriptor), handler)
}

// toAgents adds services whose every request names a node.
func (t *routes) toAgents(f protoreflect.FileDescriptor) {
	for i := range f.Services().Len() {
		service := f.Services().Get(i)
		add(t.own, service, nil)
		for j := range service.Methods().Len() {
			method := service.Methods().Get(j)
			r := t.own["/"+string(service.FullName())+"/"+string(method.Name())]
			r.agent = "/" + nodeagentv1connect.NodeAgentServiceName + "/" + string(method.Name())
			if r.node = method.Input().Fields().ByName("node"); r.node == nil {
				r.scope = vendettav1.Scope_SCOPE_UNSPECIFIED // it goes nowhere
			}
		}
	}
}

// add reads the methods of a service into a table.
func add(table map[string]*route, service protoreflect.ServiceDescriptor, handler http.Handler) {
	for i := range service.Methods().Len() {
		r := newRoute(service.Methods().Get(i))
		r.handler = handler
		table[r.name] = r
	}
}

// newRoute reads the options of a method.
func newRoute(method protoreflect.MethodDescriptor) *route {
	options := method.Options()
	r := &route{
		name:      "/" + string(method.Parent().FullName()) + "/" + string(method.Name()),
		input:     method.Input(),
		streaming: method.IsStreamingClient() || method.IsStreamingServer(),
		scope:     proto.GetExtension(options, vendettav1.E_Scope).(vendettav1.Scope),
		bulk:      proto.GetExtension(options, vendettav1.E_Bulk).(bool),
	}
	for _, name := range proto.GetExtension(options, vendettav1.E_AuditFields).([]string) {
		field := r.input.Fields().ByName(protoreflect.Name(name))
		if field == nil {
			// A method whose record would be incomplete is nobody's to call.
			r.scope = vendettav1.Scope_SCOPE_UNSPECIFIED
			continue
		}
		r.audit = append(r.audit, field)
	}
	return r
}

// find returns the route of a path, and the workspace that it names.
func (t *routes) find(path string) (*route, string, error) {
	rest, guest := strings.CutPrefix(path, "/workspaces/")
	if !guest {
		if r := t.own[path]; r != nil {
			return r, "", nil
		}
		return nil, "", unknown(path)
	}
	workspace, name, found := strings.Cut(rest, "/guest/")
	if !found || workspace == "" || strings.Contains(workspace, "/") {
		return nil, "", unknown(path)
	}
	if r := t.guest["/"+name]; r != nil {
		return r, workspace, nil
	}
	return nil, "", unknown(path)
}

func unknown(path string) error {
	return api.Errorf(api.Unimplemented, "call %s: this server does not know it", clip(path)).
		WithNext("compare the versions of program and server (vendetta version, vendetta server status) and upgrade the older")
}
