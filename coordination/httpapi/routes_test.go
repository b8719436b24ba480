package httpapi

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1" // its methods are held to the rules too
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// Every method of every service has a scope, and its audit fields are fields of
// its request that may be recorded.
func TestDescriptors(t *testing.T) {
	methods := 0
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(f.Package()), "vendetta.") {
			return true
		}
		for i := range f.Services().Len() {
			service := f.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				methods++
				if proto.GetExtension(method.Options(), vendettav1.E_Scope) == vendettav1.Scope_SCOPE_UNSPECIFIED {
					t.Errorf("%s has no scope", method.FullName())
				}
				if method.IsStreamingClient() && method.IsStreamingServer() {
					t.Errorf("%s is bidirectional", method.FullName())
				}
				seen := map[string]bool{}
				for _, name := range proto.GetExtension(method.Options(), vendettav1.E_AuditFields).([]string) {
					field := method.Input().Fields().ByName(protoreflect.Name(name))
					if field == nil {
						t.Errorf("%s records %s, which is no field of its request", method.FullName(), name)
						continue
					}
					if seen[name] {
						t.Errorf("%s records %s twice", method.FullName(), name)
					}
					seen[name] = true
					if held := unrecordable(field, nil); held != "" {
						t.Errorf("%s records %s, which holds %s", method.FullName(), name, held)
					}
				}
			}
		}
		return true
	})
	if methods < 40 {
		t.Errorf("%d methods were looked at; are some not linked in?", methods)
	}
}

// unrecordable names what must not be recorded within a field: content,
// environments and secrets.
func unrecordable(field protoreflect.FieldDescriptor, path []protoreflect.FullName) string {
	name := string(field.Name())
	if field.IsMap() || field.Kind() == protoreflect.BytesKind || slices.Contains([]string{"env", "stdin", "data", "password", "login"}, name) {
		return name
	}
	message := field.Message()
	if message == nil || slices.Contains(path, message.FullName()) {
		return ""
	}
	for i := range message.Fields().Len() {
		if held := unrecordable(message.Fields().Get(i), append(path, message.FullName())); held != "" {
			return name + "." + held
		}
	}
	return ""
}

func TestRoutes(t *testing.T) {
	r := newRoutes(bare())
	for path, want := range map[string]struct {
		workspace string
		scope     vendettav1.Scope
		audited   int
		bulk      bool
		own       bool
	}{
		"/vendetta.v1.NodeService/AddNode":                                   {"", vendettav1.Scope_SCOPE_ADMIN, 2, false, true},
		"/vendetta.v1.WorkspaceService/ListWorkspaces":                       {"", vendettav1.Scope_SCOPE_READ, 0, false, true},
		"/vendetta.v1.OperationService/WaitOperation":                        {"", vendettav1.Scope_SCOPE_READ, 0, false, true},
		"/vendetta.v1.ServerService/Shutdown":                                {"", vendettav1.Scope_SCOPE_ADMIN, 0, false, true},
		"/workspaces/a/guest/vendetta.guest.v1.ProcessService/Start":         {"a", vendettav1.Scope_SCOPE_OPERATE, 4, false, false},
		"/workspaces/a/guest/vendetta.guest.v1.FileService/Export":           {"a", vendettav1.Scope_SCOPE_READ, 0, true, false},
		"/workspaces/b/guest/vendetta.guest.v1.GuestService/Hello":           {"b", vendettav1.Scope_SCOPE_READ, 0, false, false},
		"/workspaces/b/guest/vendetta.guest.v1.ProjectService/ProjectStatus": {"b", vendettav1.Scope_SCOPE_READ, 0, false, false},
	} {
		got, workspace, err := r.find(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if workspace != want.workspace || got.scope != want.scope || len(got.audit) != want.audited || got.bulk != want.bulk || (got.handler != nil) != want.own {
			t.Errorf("%s: %q %+v, want %+v", path, workspace, got, want)
		}
	}
}

// A method whose options are wanting is refused to everybody.
func TestWantingOptions(t *testing.T) {
	build := func(options *descriptorpb.MethodOptions) *route {
		t.Helper()
		file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
			Name: proto.String("wanting.proto"), Package: proto.String("wanting"), Syntax: proto.String("proto3"),
			MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("M")}},
			Service: []*descriptorpb.ServiceDescriptorProto{{
				Name: proto.String("S"),
				Method: []*descriptorpb.MethodDescriptorProto{{
					Name: proto.String("Call"), InputType: proto.String(".wanting.M"), OutputType: proto.String(".wanting.M"), Options: options,
				}},
			}},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return newRoute(file.Services().Get(0).Methods().Get(0))
	}
	if r := build(nil); r.name != "/wanting.S/Call" || r.scope != vendettav1.Scope_SCOPE_UNSPECIFIED {
		t.Errorf("without options: %+v", r)
	}
	options := &descriptorpb.MethodOptions{}
	proto.SetExtension(options, vendettav1.E_Scope, vendettav1.Scope_SCOPE_READ)
	if r := build(options); r.scope != vendettav1.Scope_SCOPE_READ {
		t.Errorf("with a scope: %+v", r)
	}
	proto.SetExtension(options, vendettav1.E_AuditFields, []string{"absent"})
	r := build(options)
	if r.scope != vendettav1.Scope_SCOPE_UNSPECIFIED {
		t.Errorf("with an audit field that does not exist: %+v", r)
	}

	w := newWorld(t, nil)
	w.handler.routes.own[r.name] = r
	_, err := w.handler.admit(peekRequestTo(r.name))
	if err == nil || !strings.Contains(err.Error(), "declares no scope") {
		t.Errorf("error is %v, want a refusal", err)
	}
}

func TestUnknownServicesCannotBeMounted(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a service without a descriptor was mounted")
		}
	}()
	newRoutes(bare()).mount("vendetta.v1.NoService", nil)
}
