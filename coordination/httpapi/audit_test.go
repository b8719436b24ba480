package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"

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

// protocols are all the ways in which a client may speak.
var protocols = map[string][]connect.ClientOption{
	"connect":               nil,
	"connect, JSON":         {connect.WithProtoJSON()},
	"connect, gzip":         {connect.WithSendGzip()},
	"connect, JSON, gzip":   {connect.WithProtoJSON(), connect.WithSendGzip()},
	"gRPC":                  {connect.WithGRPC()},
	"gRPC, gzip":            {connect.WithGRPC(), connect.WithSendGzip()},
	"gRPC, JSON":            {connect.WithGRPC(), connect.WithProtoJSON()},
	"gRPC-Web":              {connect.WithGRPCWeb()},
	"gRPC-Web, JSON, gzip":  {connect.WithGRPCWeb(), connect.WithProtoJSON(), connect.WithSendGzip()},
	"connect, small ungzip": {connect.WithSendGzip(), connect.WithCompressMinBytes(1 << 20)},
}

func TestCallsAreRecordedBeforeTheyArePassedOn(t *testing.T) {
	for name, options := range protocols {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			base := wire.BaseURL + "/workspaces/hello/guest"
			processes := guestv1connect.NewProcessServiceClient(w.client, base, options...)
			files := guestv1connect.NewFileServiceClient(w.client, base, options...)
			nodes := vendettav1connect.NewNodeServiceClient(w.client, wire.BaseURL, options...)
			same := func(got, want proto.Message) {
				t.Helper()
				if !proto.Equal(got, want) {
					t.Errorf("came as %v, want %v", got, want)
				}
			}
			last := func(entries int, method, workspace, fields string) {
				t.Helper()
				all := w.recorded()
				if len(all) != entries {
					t.Fatalf("%d entries, want %d: %v", len(all), entries, all)
				}
				want := Entry{Principal: "local", Method: method, Workspace: workspace, Fields: fields}
				if all[entries-1] != want {
					t.Errorf("recorded\n%+v\nwant\n%+v", all[entries-1], want)
				}
			}

			start := &guestv1.StartRequest{
				ProcessId: "p1", Argv: []string{"sh", "-c", "echo <\"ü\">"}, Env: map[string]string{"TOKEN": "hunter2"}, Dir: "/d",
				Stdin: []byte("hunter2"),
			}
			stream, err := processes.Start(t.Context(), start)
			if err != nil {
				t.Fatal(err)
			}
			if !stream.Receive() || stream.Msg().GetStarted().GetId() != "p1" {
				t.Errorf("the answer is %v, %v", stream.Msg(), stream.Err())
			}
			if stream.Receive() || stream.Err() != nil {
				t.Errorf("the stream ends with %v", stream.Err())
			}
			same(w.guest.start, start)
			last(1, "/vendetta.guest.v1.ProcessService/Start", "hello", `{"process_id":"p1","argv":["sh","-c","echo <\"ü\">"],"dir":"/d"}`)

			signal := &guestv1.SignalRequest{ProcessId: "p1", Signal: "TERM"}
			if _, err := processes.Signal(t.Context(), signal); err != nil {
				t.Fatal(err)
			}
			same(w.guest.signal, signal)
			last(2, "/vendetta.guest.v1.ProcessService/Signal", "hello", `{"process_id":"p1","signal":"TERM"}`)

			imports := files.Import
			up, err := imports(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			parts := []*guestv1.ImportRequest{
				{Part: &guestv1.ImportRequest_Begin{Begin: &guestv1.ImportBegin{Path: "/workspace", Project: true}}},
				{Part: &guestv1.ImportRequest_Data{Data: bytes.Repeat([]byte("x"), 100_000)}},
				{Part: &guestv1.ImportRequest_Data{Data: []byte("y")}},
			}
			for _, part := range parts {
				if err := up.Send(part); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := up.CloseAndReceive(); err != nil {
				t.Fatal(err)
			}
			if len(w.guest.imported) != len(parts) {
				t.Errorf("%d parts came, want %d", len(w.guest.imported), len(parts))
			}
			last(3, "/vendetta.guest.v1.FileService/Import", "hello", `{"begin":{"path":"/workspace","project":true}}`)
			if w.guest.recordedBefore != 3 {
				t.Errorf("%d entries were on disk when the call came, want 3", w.guest.recordedBefore)
			}

			if _, err := files.WriteFile(t.Context(), &guestv1.WriteFileRequest{}); err != nil { // an empty message
				t.Fatal(err)
			}
			last(4, "/vendetta.guest.v1.FileService/WriteFile", "hello", `{}`)

			add := &vendettav1.AddNodeRequest{
				Name: "n1", AcceptedFingerprints: []string{"SHA256:a"},
				Login: &vendettav1.Login{Password: "hunter2"},
			}
			if _, err := nodes.AddNode(t.Context(), add); err != nil {
				t.Fatal(err)
			}
			same(w.nodes.add, add)
			last(5, "/vendetta.v1.NodeService/AddNode", "", `{"name":"n1","accepted_fingerprints":["SHA256:a"]}`)

			attached, err := processes.Attach(t.Context(), &guestv1.AttachRequest{}) // has no audit fields
			if err == nil {
				attached.Receive()
			}
			if got := len(w.recorded()); got != 5 {
				t.Errorf("%d entries after a call that is not recorded, want 5", got)
			}
			if strings.Contains(w.log.String(), "hunter2") {
				t.Error("a secret stands in the log")
			}
		})
	}
}

// A stream that ends before its first message is passed on, since the guest has
// the answer to that.
func TestEmptyStream(t *testing.T) {
	w := newWorld(t, nil)
	files := guestv1connect.NewFileServiceClient(w.client, wire.BaseURL+"/workspaces/hello/guest")
	up, err := files.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := up.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	if got := w.recorded(); len(got) != 1 || got[0].Fields != "{}" {
		t.Errorf("recorded %+v", got)
	}
}

// What cannot be recorded is not carried out.
func TestUnrecordedCallsAreNotCarriedOut(t *testing.T) {
	full := &api.Error{Code: api.ResourceExhausted, Message: "the disk is full", Next: "free space"}
	for _, c := range []struct {
		err  error
		code api.Code
		next string
	}{
		{errors.New("boom"), api.Internal, ""},
		{full, api.ResourceExhausted, "free space"},
	} {
		w := newWorld(t, nil)
		w.auditErr = c.err
		processes := guestv1connect.NewProcessServiceClient(w.client, wire.BaseURL+"/workspaces/hello/guest")
		_, err := processes.Signal(t.Context(), &guestv1.SignalRequest{})
		if e := api.From(err); e.Code != c.code || e.Next != c.next || !strings.Contains(e.Message, "not carried out") {
			t.Errorf("error is %+v, want %s", e, c.code)
		}
		nodes := vendettav1connect.NewNodeServiceClient(w.client, wire.BaseURL)
		if _, err := nodes.AddNode(t.Context(), &vendettav1.AddNodeRequest{}); api.CodeOf(err) != c.code {
			t.Errorf("error is %v, want %s", err, c.code)
		}
		if w.guest.signal != nil || w.nodes.add != nil {
			t.Error("the call was carried out")
		}
	}
}

func TestFields(t *testing.T) {
	long := strings.Repeat("ü", maxValue)
	manyWords := make([]string, 1000)
	for i := range manyWords {
		manyWords[i] = strings.Repeat("w", 1000)
	}
	for _, c := range []struct {
		name    string
		message proto.Message
		fields  []string
		want    string
	}{
		{"nothing set", &guestv1.StartRequest{}, []string{"argv", "dir"}, `{}`},
		{"content and environments", &guestv1.StartRequest{Env: map[string]string{"A": "b"}, Stdin: []byte("x")}, []string{"env", "stdin"},
			`{"env":"...(not recorded)","stdin":"...(not recorded)"}`},
		{"numbers and truth", &guestv1.StartRequest{SpoolBytes: 1 << 60, Detach: true}, []string{"spool_bytes", "detach"}, `{"spool_bytes":1152921504606846976,"detach":true}`},
		{"floats", &vendettav1.Resources{Cpus: 1.5}, []string{"cpus"}, `{"cpus":1.5}`},
		{"a float that is no number", &vendettav1.Resources{Cpus: math.NaN()}, []string{"cpus"}, `{"cpus":null}`},
		{"enums", &vendettav1.Workspace{State: vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN, Desired: 99}, []string{"state", "desired"},
			`{"state":"WORKSPACE_STATE_DOWN","desired":99}`},
		{"a message", &vendettav1.AddNodeRequest{Address: &vendettav1.NodeAddress{Host: "h", Jump: []string{"a", "b"}}}, []string{"address"},
			`{"address":{"host":"h","jump":["a","b"]}}`},
		{"a message that cannot be", &vendettav1.AddNodeRequest{Address: &vendettav1.NodeAddress{Host: "\xff"}}, []string{"address"}, `{"address":"...(not readable)"}`},
		{"a long value", &guestv1.StartRequest{Dir: "x" + long}, []string{"dir"}, `{"dir":"x` + long[:maxValue-2] + `...(4098 more bytes)"}`},
		{"empty arguments", &guestv1.StartRequest{Argv: []string{"a", "", "-"}}, []string{"argv"}, `{"argv":["a","","-"]}`},
		{"what JSON must quote", &guestv1.StartRequest{Dir: "\x00\n\"<&>\u2028"}, []string{"dir"}, `{"dir":"\u0000\n\"<&>\u2028"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := render(t, c.message, c.fields...)
			if got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}

	var many struct{ Argv []string }
	got := render(t, &guestv1.StartRequest{Argv: manyWords}, "argv")
	if err := json.Unmarshal([]byte(got), &many); err != nil {
		t.Fatal(err)
	}
	if len(got) > maxFields+2*maxValue || many.Argv[len(many.Argv)-1] != "...(934 more)" {
		t.Errorf("%d bytes, the last of %d is %q", len(got), len(many.Argv), many.Argv[len(many.Argv)-1])
	}
	var big struct{ Address string }
	got = render(t, &vendettav1.AddNodeRequest{Address: &vendettav1.NodeAddress{Host: long}}, "address")
	if err := json.Unmarshal([]byte(got), &big); err != nil {
		t.Fatal(err)
	}
	if len(got) > 2*maxValue || !strings.HasSuffix(big.Address, "more bytes)") {
		t.Errorf("a long message is %d bytes and ends with %q", len(got), big.Address[len(big.Address)-20:])
	}
}

func render(t *testing.T, m proto.Message, names ...string) string {
	t.Helper()
	var audited []protoreflect.FieldDescriptor
	for _, name := range names {
		field := m.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(name))
		if field == nil {
			t.Fatalf("there is no field %s", name)
		}
		audited = append(audited, field)
	}
	got := fields(m.ProtoReflect(), audited)
	if !json.Valid([]byte(got)) {
		t.Errorf("not JSON: %s", got)
	}
	return got
}
