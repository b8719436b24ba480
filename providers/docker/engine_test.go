package docker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/docker"
)

// scripted is an engine that answers what a test tells it to, for the answers
// that a real one does not give on demand.
type scripted struct {
	*httptest.Server
	version string

	mu      sync.Mutex
	answers map[string]http.HandlerFunc
	asked   []string
}

// versionPrefix is what the client puts before each path but the ping's.
var versionPrefix = regexp.MustCompile(`^/v1\.\d+`)

func script(t *testing.T, answers map[string]http.HandlerFunc) *scripted {
	t.Helper()
	s := &scripted{version: "1.44", answers: map[string]http.HandlerFunc{
		"GET /info":                                   says(200, machine()),
		"GET /containers/vendetta-w/json":             says(404, failure("no such container")),
		"GET /images/base/json":                       says(200, map[string]any{"Id": "sha256:base", "Os": "linux"}),
		"GET /volumes":                                says(200, map[string]any{"Volumes": []any{}}),
		"GET /images/json":                            says(200, []any{}),
		"DELETE /images/vendetta-root/w:latest":       says(404, failure("no such image")),
		"DELETE /volumes/vendetta-w-workspace":        says(204, nil),
		"DELETE /volumes/vendetta-w-state":            says(204, nil),
		"POST /containers/create":                     says(201, map[string]any{"Id": "c", "Warnings": []string{"careful"}}),
		"DELETE /containers/c":                        says(204, nil),
		"GET /containers/c/logs":                      says(500, failure("no logs")),
		"POST /containers/c/wait":                     says(500, failure("cannot wait")),
		"GET /containers/json":                        says(200, []any{}),
		"POST /containers/c/start":                    says(204, nil),
		"POST /containers/c/unpause":                  says(204, nil),
		"POST /containers/c/stop":                     says(204, nil),
		"GET /containers/c/json":                      says(404, failure("no such container")),
		"POST /images/create":                         says(200, map[string]any{"status": "Pulling"}),
		"GET /images/registry.example/absent:1/json":  says(404, failure("no such image")),
		"GET /images/registry.example/windows:1/json": says(200, map[string]any{"Id": "sha256:w", "Os": "windows"}),
		"GET /images/registry.example/trouble:1/json": says(500, failure("trouble")),
	}}
	for path, answer := range answers {
		s.answers[path] = answer
	}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", s.version)
		w.Header().Set("Ostype", "linux")
		if strings.HasSuffix(r.URL.Path, "/_ping") {
			return
		}
		what := r.Method + " " + versionPrefix.ReplaceAllString(r.URL.Path, "")
		s.mu.Lock()
		s.asked = append(s.asked, what)
		answer := s.answers[what]
		s.mu.Unlock()
		if answer == nil {
			t.Errorf("unexpected call %s", what)
			answer = says(500, failure("unexpected"))
		}
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *scripted) was(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.asked, what)
}

// provider is one of server "s" on this engine.
func (s *scripted) provider(t *testing.T, change ...func(*docker.Options)) *docker.Provider {
	t.Helper()
	o := docker.Options{
		ServerID:     "s",
		StateDir:     filepath.Join(stateDir(t), "docker"),
		GuestProgram: program(t, "#!/bin/sh\n"),
		Host:         "tcp://" + strings.TrimPrefix(s.URL, "http://"),
	}
	for _, c := range change {
		c(&o)
	}
	p, err := docker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func says(status int, body any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if body != nil {
			_ = json.NewEncoder(w).Encode(body)
		}
	}
}

func failure(message string) map[string]any { return map[string]any{"message": message} }

// inTurn gives one answer after the other, and the last one from then on.
func inTurn(answers ...http.HandlerFunc) http.HandlerFunc {
	var mu sync.Mutex
	n := 0
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		answer := answers[min(n, len(answers)-1)]
		n++
		mu.Unlock()
		answer(w, r)
	}
}

// hangs answers only when the asker has gone, which a server sees once it has
// read the request.
func hangs(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func machine(change ...func(map[string]any)) map[string]any {
	m := map[string]any{
		"OSType": "linux", "ServerVersion": "25.0", "MemTotal": 8 << 30, "NCPU": 4,
		"MemoryLimit": true, "SwapLimit": true, "CpuCfsQuota": true, "CpuCfsPeriod": true, "PidsLimit": true,
		"SecurityOptions": []string{"name=seccomp,profile=builtin", "name=apparmor"},
	}
	for _, c := range change {
		c(m)
	}
	return m
}

// box is an inspected container of server "s" and workspace "w".
func box(state map[string]any) map[string]any {
	return map[string]any{
		"Id": "c", "Name": "/vendetta-w", "State": state,
		"Config": map[string]any{"Labels": map[string]string{
			providers.LabelServer: "s", providers.LabelWorkspace: "w", providers.LabelGeneration: "5",
		}},
	}
}

var running = map[string]any{"Status": "running", "Running": true, "StartedAt": "2026-01-02T03:04:05.6Z"}

func program(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// want fails unless err has that kind, says all of words and, when it may, what next.
func want(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	e, ok := err.(*providers.Error) //nolint:errorlint // the contract's word
	if !ok || e.Kind != kind {      //nolint:errorlint // a sentinel, bare
		t.Errorf("%T %v, want one of kind %v", err, err, kind)
		return
	}
	for _, word := range words {
		if !strings.Contains(e.Message+" | "+e.Next, word) {
			t.Errorf("%q | %q does not say %q", e.Message, e.Next, word)
		}
	}
}

func TestNewRefusesBadOptions(t *testing.T) {
	good := docker.Options{ServerID: "s", StateDir: "/x", GuestProgram: "/y"}
	for what, change := range map[string]func(*docker.Options){
		"server id":     func(o *docker.Options) { o.ServerID = "a=b" },
		"state folder":  func(o *docker.Options) { o.StateDir = "x" },
		"guest program": func(o *docker.Options) { o.GuestProgram = "y" },
		"host":          func(o *docker.Options) { o.Host = "nonsense" },
	} {
		o := good
		change(&o)
		if _, err := docker.New(o); err == nil {
			t.Errorf("took a bad %s", what)
		}
	}
}

func TestProbe(t *testing.T) {
	s := script(t, nil)
	status := s.provider(t).Probe(t.Context())
	if !status.Usable || status.Version != "25.0" || status.Reason != "" {
		t.Errorf("%+v", status)
	}
	wantCapabilities := []string{
		"apparmor", "fork", "images", "limit-cpu", "limit-memory", "limit-pids", "network", "network-none",
		"pause", "resize", "seccomp", "snapshot",
	}
	if !slices.Equal(status.Capabilities, wantCapabilities) {
		t.Errorf("capabilities %q", status.Capabilities)
	}
}

func TestProbeSaysWhyNot(t *testing.T) {
	for name, c := range map[string]struct {
		version     string
		info        http.HandlerFunc
		change      func(*docker.Options)
		reason, fix string
		usable      bool
	}{
		"old": {version: "1.40", reason: "too old", fix: "upgrade docker"},
		"windows": {
			info:   says(200, machine(func(m map[string]any) { m["OSType"] = "windows" })),
			reason: "windows containers", fix: "linux containers",
		},
		"broken":     {info: says(500, failure("broken")), reason: "broken"},
		"no program": {change: func(o *docker.Options) { o.GuestProgram = "/absent" }, reason: "/absent", fix: "install the node agent again"},
		"a folder":   {change: func(o *docker.Options) { o.GuestProgram = "/tmp" }, reason: "not an executable file"},
		"not running": {
			change: func(o *docker.Options) { o.Host = "unix:///absent/docker.sock" },
			reason: "docker is not running at unix:///absent/docker.sock", fix: "sudo systemctl start docker",
		},
		"nobody listens": {
			change: func(o *docker.Options) { o.Host = "tcp://127.0.0.1:1" },
			reason: "docker is not running", fix: "sudo systemctl start docker",
		},
		"rootless without limits": {
			info: says(200, machine(func(m map[string]any) {
				m["MemoryLimit"], m["SecurityOptions"] = false, []string{"name=rootless"}
			})),
			reason: "cannot enforce all limits", fix: "delegate cgroup controllers", usable: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := script(t, nil)
			if c.version != "" {
				s.version = c.version
			}
			if c.info != nil {
				s.answers["GET /info"] = c.info
			}
			change := c.change
			if change == nil {
				change = func(*docker.Options) {}
			}
			status := s.provider(t, change).Probe(t.Context())
			if status.Usable != c.usable || !strings.Contains(status.Reason, c.reason) || !strings.Contains(status.Fix, c.fix) {
				t.Errorf("%+v", status)
			}
		})
	}
}

// spec is workspace w of image base.
var spec = providers.Spec{Workspace: "w", Name: "box", Generation: 5, Image: "base"}

func TestCreateFailures(t *testing.T) {
	trouble := says(500, failure("trouble"))
	foreign := says(200, map[string]any{"Volumes": []any{map[string]any{"Name": "vendetta-w-state", "Labels": map[string]string{providers.LabelServer: "another"}}}})
	user := says(200, map[string]any{"Id": "sha256:base", "Os": "linux", "Config": map[string]any{"User": "dev"}})
	for name, c := range map[string]struct {
		answers map[string]http.HandlerFunc
		change  func(*providers.Spec)
		kind    error
		words   []string
		undone  []string
	}{
		"lookup":  {answers: map[string]http.HandlerFunc{"GET /containers/json": trouble}, words: []string{"trouble"}},
		"machine": {answers: map[string]http.HandlerFunc{"GET /info": trouble}, words: []string{"trouble"}},
		"image":   {change: func(s *providers.Spec) { s.Image = "registry.example/trouble:1" }, words: []string{"look up image", "trouble"}},
		"windows": {change: func(s *providers.Spec) { s.Image = "registry.example/windows:1" }, kind: providers.ErrImage, words: []string{"windows"}},
		"no image": {
			answers: map[string]http.HandlerFunc{"GET /images/debian:12/json": trouble},
			change:  func(s *providers.Spec) { s.Image = "" },
			words:   []string{"look up image debian:12", "trouble"},
		},
		"host network": {
			change: func(s *providers.Spec) { s.Network = providers.NetworkHost },
			kind:   providers.ErrInvalid, words: []string{"private or none"},
		},
		"too many cpus":   {change: func(s *providers.Spec) { s.Resources.CPUs = 5 }, kind: providers.ErrInvalid, words: []string{"ask for 4"}},
		"too much memory": {change: func(s *providers.Spec) { s.Resources.MemoryBytes = 9 << 30 }, kind: providers.ErrInvalid, words: []string{"memory"}},
		"too little memory": {
			change: func(s *providers.Spec) { s.Resources.MemoryBytes = 1 << 20 },
			kind:   providers.ErrInvalid, words: []string{"6 MiB"},
		},
		"volume lookup": {answers: map[string]http.HandlerFunc{"GET /volumes": trouble}, words: []string{"trouble"}},
		"another's volume": {
			answers: map[string]http.HandlerFunc{"GET /volumes": foreign},
			words:   []string{"not this server's", "docker volume rm vendetta-w-state"},
		},
		"another's container": {
			answers: map[string]http.HandlerFunc{"POST /containers/create": says(409, failure("name in use"))},
			words:   []string{"not this server's", "docker rm vendetta-w"},
			undone:  []string{"DELETE /volumes/vendetta-w-workspace", "DELETE /volumes/vendetta-w-state"},
		},
		"disk full": {
			answers: map[string]http.HandlerFunc{
				"POST /containers/create": says(500, failure("mkdir: no space left on device")),
			},
			kind: providers.ErrExhausted, words: []string{"full", "docker system df"},
			undone: []string{"DELETE /volumes/vendetta-w-workspace"},
		},
		"out of memory": {
			answers: map[string]http.HandlerFunc{"POST /containers/create": says(500, failure("fork: cannot allocate memory"))},
			kind:    providers.ErrExhausted,
		},
		"refused": {
			answers: map[string]http.HandlerFunc{"POST /containers/create": says(400, failure("bad parameter"))},
			kind:    providers.ErrInvalid, words: []string{"bad parameter"},
		},
		"slow": {
			answers: map[string]http.HandlerFunc{"POST /containers/create": hangs},
			words:   []string{"took too long"},
			undone:  []string{"DELETE /volumes/vendetta-w-workspace", "DELETE /volumes/vendetta-w-state"},
		},
		"undo fails": {
			answers: map[string]http.HandlerFunc{
				"POST /containers/create":              trouble,
				"DELETE /volumes/vendetta-w-workspace": trouble,
			},
			words: []string{"trouble"},
		},
		"undo cannot look": {
			answers: map[string]http.HandlerFunc{
				"GET /containers/vendetta-w/json": trouble,
				"POST /containers/create":         trouble,
			},
			words: []string{"trouble"},
		},
		"undo cannot remove": {
			answers: map[string]http.HandlerFunc{
				"GET /images/base/json":           user,
				"GET /containers/vendetta-w/json": says(200, box(map[string]any{"Status": "created"})),
				"GET /containers/c/archive":       trouble,
				"DELETE /containers/c":            trouble,
			},
			words: []string{"trouble"},
		},
		"project": {
			answers: map[string]http.HandlerFunc{
				"GET /images/base/json":           user,
				"GET /containers/vendetta-w/json": says(200, box(map[string]any{"Status": "created"})),
				"GET /containers/c/archive":       trouble,
			},
			words:  []string{"trouble"},
			undone: []string{"DELETE /containers/c", "DELETE /volumes/vendetta-w-workspace", "DELETE /volumes/vendetta-w-state"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := script(t, c.answers)
			p := s.provider(t, func(o *docker.Options) { o.CreateTimeout = 300 * time.Millisecond })
			asked := spec
			if c.change != nil {
				c.change(&asked)
			}
			_, err := p.Create(t.Context(), asked)
			want(t, err, c.kind, c.words...)
			for _, what := range c.undone {
				if !s.was(what) {
					t.Errorf("no %s: %q", what, s.asked)
				}
			}
		})
	}
}

func TestCreateSends(t *testing.T) {
	var body struct {
		Hostname, User, StopSignal string
		Env, Entrypoint            []string
		Labels                     map[string]string
		HostConfig                 struct {
			NetworkMode        string
			Memory, MemorySwap int64
			NanoCpus           int64
			PidsLimit          int64
			CapAdd, CapDrop    []string
			SecurityOpt        []string
			Privileged         bool
			RestartPolicy      struct{ Name string }
			Mounts             []struct{ Type, Source, Target string }
		}
	}
	s := script(t, map[string]http.HandlerFunc{"POST /containers/create": func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		says(201, map[string]any{"Id": "c"})(w, r)
	}})
	made, err := s.provider(t).Create(t.Context(), providers.Spec{Workspace: "w", Generation: 5, Image: "base", Resources: providers.Resources{CPUs: 1.5}})
	if err != nil {
		t.Fatal(err)
	}
	if made.Name != "vendetta-w" || made.State != providers.StateStopped || made.Generation != 5 {
		t.Errorf("%+v", made)
	}
	h := body.HostConfig
	for what, bad := range map[string]bool{
		"host name":    body.Hostname != "w",
		"user":         body.User != "0" || !slices.Contains(body.Env, providers.EnvGuestUser+"=0"),
		"memory":       h.Memory != 4<<30 || h.MemorySwap != 4<<30,
		"cpus":         h.NanoCpus != 1.5e9,
		"pids":         h.PidsLimit != 4096,
		"capabilities": !slices.Equal(h.CapDrop, []string{"ALL"}) || slices.Contains(h.CapAdd, "NET_RAW") || len(h.CapAdd) != 9,
		"security":     !slices.Equal(h.SecurityOpt, []string{"no-new-privileges:true"}) || h.Privileged,
		"restart":      h.RestartPolicy.Name != "no",
		"network":      h.NetworkMode != "bridge",
		"stop signal":  body.StopSignal != "SIGTERM",
		"labels":       body.Labels[providers.LabelServer] != "s" || body.Labels[providers.LabelWorkspace] != "w" || body.Labels[providers.LabelGeneration] != "5",
		"entrypoint":   len(body.Entrypoint) != 7 || body.Entrypoint[0] != providers.GuestProgram,
		"mounts":       len(h.Mounts) != 4,
	} {
		if bad {
			t.Errorf("%s: %+v", what, body)
		}
	}
	for _, m := range h.Mounts {
		if strings.Contains(m.Source, "docker.sock") {
			t.Errorf("mounts %+v", m)
		}
	}
}

func TestLimitsThatTheMachineLacks(t *testing.T) {
	s := script(t, map[string]http.HandlerFunc{"GET /info": says(200, machine(func(m map[string]any) {
		for _, limit := range []string{"MemoryLimit", "CpuCfsQuota", "PidsLimit"} {
			m[limit] = false
		}
	}))})
	p := s.provider(t)
	for _, r := range []providers.Resources{{CPUs: 1}, {MemoryBytes: 1 << 30}, {PIDs: 100}} {
		asked := spec
		asked.Resources = r
		_, err := p.Create(t.Context(), asked)
		want(t, err, providers.ErrInvalid, "cannot limit", "leave")
	}
	if _, err := p.Create(t.Context(), spec); err != nil {
		t.Error(err)
	}
}

func TestRemappedRoot(t *testing.T) {
	for root, known := range map[string]bool{"/var/lib/docker/100000.100000": true, "/elsewhere": false} {
		s := script(t, map[string]http.HandlerFunc{"GET /info": says(200, machine(func(m map[string]any) {
			m["SecurityOptions"], m["DockerRootDir"] = []string{"name=userns"}, root
		}))})
		var dir string
		p := s.provider(t, func(o *docker.Options) { dir = o.StateDir })
		if _, err := p.Create(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		for path, mode := range map[string]os.FileMode{"w": 0o711, "w/link": 0o755, "w/link/guest.sock": 0o666} {
			info, err := os.Stat(filepath.Join(dir, path))
			if err != nil || info.Mode().Perm() != mode {
				t.Errorf("%s (%v): %v, %v", path, known, info.Mode(), err)
			}
		}
	}
}

func TestPullFailures(t *testing.T) {
	absent := providers.Spec{Workspace: "w", Image: "registry.example/absent:1"}
	stream := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, text) }
	}
	detail := func(message string) http.HandlerFunc {
		return stream(`{"status":"Downloading"}{"id":"a","status":"Waiting"}` + fmt.Sprintf(`{"errorDetail":{"message":%q}}`, message))
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		kind   error
		words  []string
	}{
		"absent":       {says(404, failure("manifest for it not found")), providers.ErrImage, []string{"does not exist", "check the name"}},
		"unknown":      {detail("manifest unknown"), providers.ErrImage, []string{"does not exist", "check the name"}},
		"private":      {says(500, failure("unauthorized: authentication required")), providers.ErrImage, []string{"without a login", "docker login"}},
		"unreachable":  {says(500, failure("dial tcp: lookup registry.example: connection refused")), providers.ErrImage, []string{"cannot be reached", "docker load"}},
		"disk full":    {detail("write /layer: no space left on device"), providers.ErrExhausted, []string{"full"}},
		"else":         {detail("something else"), providers.ErrImage, []string{"something else"}},
		"junk":         {stream("junk"), providers.ErrImage, []string{"invalid character"}},
		"slow":         {hangs, providers.ErrImage, []string{"longer than", "docker pull"}},
		"still absent": {stream(`{"status":"done"}`), nil, []string{"look up image"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := script(t, map[string]http.HandlerFunc{"POST /images/create": c.answer})
			p := s.provider(t, func(o *docker.Options) { o.PullTimeout = 300 * time.Millisecond })
			_, err := p.Create(t.Context(), absent)
			want(t, err, c.kind, c.words...)
		})
	}
}

func TestInstances(t *testing.T) {
	for name, c := range map[string]struct {
		state   map[string]any
		want    providers.State
		message string
	}{
		"created":   {map[string]any{"Status": "created", "StartedAt": "0001-01-01T00:00:00Z"}, providers.StateStopped, ""},
		"running":   {running, providers.StateRunning, ""},
		"paused":    {map[string]any{"Status": "paused", "Running": true, "Paused": true}, providers.StatePaused, ""},
		"exited":    {map[string]any{"Status": "exited", "ExitCode": 3}, providers.StateStopped, "ended with status 3"},
		"no memory": {map[string]any{"Status": "exited", "OOMKilled": true}, providers.StateStopped, "memory"},
		"no start":  {map[string]any{"Status": "created", "Error": "no such file"}, providers.StateStopped, "no such file"},
		"dead":      {map[string]any{"Status": "dead", "Dead": true, "Error": "busy"}, providers.StateBroken, "busy"},
		"removing":  {map[string]any{"Status": "removing"}, providers.StateBroken, "state removing"},
	} {
		t.Run(name, func(t *testing.T) {
			p := script(t, map[string]http.HandlerFunc{"GET /containers/vendetta-w/json": says(200, box(c.state))}).provider(t)
			i, err := p.Inspect(t.Context(), "w")
			if err != nil || i.State != c.want || !strings.Contains(i.Message, c.message) || c.message == "" && i.Message != "" {
				t.Errorf("%+v, %v", i, err)
			}
			if i.Name != "vendetta-w" || i.Generation != 5 || i.StartedAt.IsZero() != (name != "running") {
				t.Errorf("%+v", i)
			}
		})
	}
}

func TestListFailures(t *testing.T) {
	one := says(200, []any{map[string]any{"Id": "c"}})
	foreign := box(running)
	foreign["Config"] = map[string]any{"Labels": map[string]string{providers.LabelServer: "another"}}
	for name, c := range map[string]struct {
		list, inspect http.HandlerFunc
		fails         bool
	}{
		"list":      {says(500, failure("trouble")), nil, true},
		"inspect":   {one, says(500, failure("trouble")), true},
		"gone":      {one, says(404, failure("gone")), false},
		"another's": {one, says(200, foreign), false},
	} {
		t.Run(name, func(t *testing.T) {
			answers := map[string]http.HandlerFunc{"GET /containers/json": c.list}
			if c.inspect != nil {
				answers["GET /containers/c/json"] = c.inspect
			}
			all, err := script(t, answers).provider(t).List(t.Context())
			if c.fails {
				want(t, err, nil, "list docker instances", "trouble")
			} else if err != nil || len(all) != 0 {
				t.Errorf("%+v, %v", all, err)
			}
		})
	}
}

// listed is what the engine lists of server "s" and workspace "w": containers by
// their names, each with the id of its letter.
func listed(names map[string]string) http.HandlerFunc {
	all := []any{}
	for id, name := range names {
		all = append(all, map[string]any{"Id": id, "Names": []string{"/" + name}, "Labels": owned()})
	}
	return says(200, all)
}

// owned are the labels of server "s" and workspace "w".
func owned(more ...string) map[string]string {
	labels := map[string]string{providers.LabelServer: "s", providers.LabelWorkspace: "w", providers.LabelGeneration: "5"}
	for i := 0; i < len(more); i += 2 {
		labels[more[i]] = more[i+1]
	}
	return labels
}

// holding is an answer that lists volumes of workspace "w".
func holding(names ...string) http.HandlerFunc {
	all := []any{}
	for _, name := range names {
		all = append(all, map[string]any{"Name": name, "Labels": owned()})
	}
	return says(200, map[string]any{"Volumes": all})
}

func TestDestroy(t *testing.T) {
	there := listed(map[string]string{"c": "vendetta-w"})
	mine := holding("vendetta-w-state")
	trouble := says(500, failure("trouble"))
	busy := says(409, failure("removal of container c is already in progress"))
	for name, c := range map[string]struct {
		answers map[string]http.HandlerFunc
		fails   bool
	}{
		"lookup":        {map[string]http.HandlerFunc{"GET /containers/json": trouble}, true},
		"container":     {map[string]http.HandlerFunc{"GET /containers/json": there, "DELETE /containers/c": trouble}, true},
		"gone":          {map[string]http.HandlerFunc{"GET /containers/json": there, "DELETE /containers/c": says(404, failure("gone"))}, false},
		"in progress":   {map[string]http.HandlerFunc{"GET /containers/json": there, "DELETE /containers/c": busy, "POST /containers/c/wait": says(200, map[string]any{"StatusCode": 0})}, false},
		"never done":    {map[string]http.HandlerFunc{"GET /containers/json": there, "DELETE /containers/c": busy}, true},
		"volume lookup": {map[string]http.HandlerFunc{"GET /volumes": trouble}, true},
		"volume":        {map[string]http.HandlerFunc{"GET /volumes": mine, "DELETE /volumes/vendetta-w-state": trouble}, true},
		"volume gone":   {map[string]http.HandlerFunc{"GET /volumes": mine, "DELETE /volumes/vendetta-w-state": says(404, failure("gone"))}, false},
		"root":          {map[string]http.HandlerFunc{"DELETE /images/vendetta-root/w:latest": trouble}, true},
		"image lookup":  {map[string]http.HandlerFunc{"GET /images/json": trouble}, true},
		"image":         {map[string]http.HandlerFunc{"GET /images/json": says(200, []any{map[string]any{"Id": "i", "RepoTags": []string{"mine:1", "vendetta-snapshot/w:a"}}}), "DELETE /images/vendetta-snapshot/w:a": trouble}, true},
		"leftover":      {map[string]http.HandlerFunc{"GET /containers/json": listed(map[string]string{"c": "vendetta-w-target"}), "DELETE /containers/c": trouble}, true},
	} {
		t.Run(name, func(t *testing.T) {
			err := script(t, c.answers).provider(t).Destroy(t.Context(), "w", true)
			if c.fails {
				want(t, err, nil)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStartAndStop(t *testing.T) {
	paused := says(200, box(map[string]any{"Status": "paused", "Running": true, "Paused": true}))
	s := script(t, map[string]http.HandlerFunc{"GET /containers/vendetta-w/json": paused})
	if err := s.provider(t).Start(t.Context(), "w"); err != nil || !s.was("POST /containers/c/unpause") {
		t.Errorf("%v, %q", err, s.asked)
	}
	s = script(t, map[string]http.HandlerFunc{
		"GET /containers/vendetta-w/json": says(200, box(map[string]any{"Status": "exited"})),
		"POST /containers/c/start":        says(500, failure("no such file or directory")),
		"POST /containers/c/stop":         says(500, failure("trouble")),
		"GET /info":                       inTurn(says(500, failure("trouble")), says(200, machine())),
	})
	p := s.provider(t)
	want(t, p.Start(t.Context(), "w"), nil, "trouble")
	want(t, p.Start(t.Context(), "w"), nil, "start docker instance of workspace w", "no such file")
	want(t, p.Stop(t.Context(), "w", -time.Second), nil, "stop docker instance of workspace w")
}

func TestStopRoundsGraceUp(t *testing.T) {
	for grace, seconds := range map[time.Duration]string{-time.Second: "0", 0: "0", time.Millisecond: "1", 1500 * time.Millisecond: "2"} {
		s := script(t, map[string]http.HandlerFunc{
			"GET /containers/vendetta-w/json": says(200, box(running)),
			"POST /containers/c/stop": func(w http.ResponseWriter, r *http.Request) {
				if got := r.URL.Query().Get("t"); got != seconds {
					t.Errorf("grace %v is sent as %q", grace, got)
				}
				w.WriteHeader(http.StatusNoContent)
			},
		})
		if err := s.provider(t).Stop(t.Context(), "w", grace); err != nil {
			t.Error(err)
		}
	}
}

func TestUsageOfANewerEngine(t *testing.T) {
	stats := map[string]any{
		"cpu_stats":    map[string]any{"cpu_usage": map[string]any{"total_usage": 5e9}},
		"memory_stats": map[string]any{"usage": 100, "stats": map[string]any{"inactive_file": 30}},
	}
	labels := map[string]string{providers.LabelServer: "s", providers.LabelWorkspace: "w"}
	volumes := map[string]any{"Volumes": []any{
		map[string]any{"Name": "a", "Labels": labels, "UsageData": map[string]any{"Size": 7}},
		map[string]any{"Name": "b", "Labels": labels, "UsageData": map[string]any{"Size": 5}},
		map[string]any{"Name": "c", "Labels": labels},
		map[string]any{"Name": "d", "UsageData": map[string]any{"Size": 1000}},
	}}
	answers := map[string]http.HandlerFunc{
		"GET /containers/vendetta-w/json": says(200, box(running)),
		"GET /containers/c/stats":         says(200, stats),
		"GET /system/df":                  says(200, volumes),
	}
	usage, err := script(t, answers).provider(t).Usage(t.Context(), "w")
	if wantUsage := (providers.Usage{CPU: 5 * time.Second, MemoryBytes: 70, DiskBytes: 12}); err != nil || usage != wantUsage {
		t.Errorf("%+v, %v", usage, err)
	}
	stats["memory_stats"] = map[string]any{"usage": 100, "stats": map[string]any{"total_inactive_file": 300}}
	if usage, err = script(t, answers).provider(t).Usage(t.Context(), "w"); err != nil || usage.MemoryBytes != 100 {
		t.Errorf("%+v, %v", usage, err)
	}
	for path, answer := range map[string]http.HandlerFunc{
		"GET /system/df":          says(500, failure("trouble")),
		"GET /containers/c/stats": says(500, failure("trouble")),
	} {
		answers[path] = answer
		_, err := script(t, answers).provider(t).Usage(t.Context(), "w")
		want(t, err, nil, "measure workspace w", "trouble")
	}
	answers["GET /containers/c/stats"] = func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "junk") }
	_, err = script(t, answers).provider(t).Usage(t.Context(), "w")
	want(t, err, nil, "measure workspace w")
}

func TestConnectWhenTheWatchFails(t *testing.T) {
	// The engine goes away while Connect waits: its error ends the waiting.
	s := script(t, map[string]http.HandlerFunc{"GET /containers/vendetta-w/json": says(200, box(running))})
	_, err := s.provider(t).Connect(t.Context(), "w")
	want(t, err, nil, "connect to the guest of workspace w", "cannot wait")

	s = script(t, map[string]http.HandlerFunc{
		"GET /containers/vendetta-w/json": says(200, box(running)),
		"GET /info":                       says(500, failure("trouble")),
	})
	_, err = s.provider(t).Connect(t.Context(), "w")
	want(t, err, nil, "trouble")

	s = script(t, map[string]http.HandlerFunc{
		"GET /containers/vendetta-w/json": says(200, box(running)),
		"POST /containers/c/wait":         hangs,
	})
	p := s.provider(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = p.Connect(ctx, "w")
	want(t, err, nil, "took too long")
}

func TestStateFolderThatCannotBeMade(t *testing.T) {
	file := program(t, "")
	for _, path := range []string{filepath.Join(file, "docker"), "/proc/nothing"} {
		p := script(t, nil).provider(t, func(o *docker.Options) { o.StateDir = path })
		_, err := p.Create(t.Context(), spec)
		if err == nil || !strings.Contains(err.Error(), "make link of workspace w") {
			t.Errorf("%s: %v", path, err)
		}
	}
	// A file where the link's folder belongs.
	var dir string
	p := script(t, nil).provider(t, func(o *docker.Options) { dir = o.StateDir })
	if err := os.MkdirAll(filepath.Join(dir, "w"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "w", "link"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := p.Create(t.Context(), spec)
	want(t, err, nil, "make link of workspace w")
}
