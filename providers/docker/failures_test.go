package docker_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/docker"
)

// archived is a folder as the engine gives it.
func archived(mode int64, content string) http.HandlerFunc {
	stat := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `{"name":"x","mode":%d}`, mode))
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Docker-Container-Path-Stat", stat)
		_, _ = io.WriteString(w, content)
	}
}

// folderMode is a folder's, by package io/fs.
const folderMode = 1<<31 | 0o755

// mounted is a container of server "s" with its pair of volumes.
func mounted(id, name string, state map[string]any) map[string]any {
	b := box(state)
	b["Id"], b["Name"], b["Image"] = id, "/"+name, "sha256:base"
	b["HostConfig"] = map[string]any{"NetworkMode": "bridge"}
	b["Mounts"] = []any{
		map[string]any{"Type": "volume", "Name": "vendetta-w-workspace", "Destination": providers.Project},
		map[string]any{"Type": "volume", "Name": "vendetta-w-state", "Destination": providers.GuestState},
	}
	return b
}

// kept is the image of snapshot a.
func kept() map[string]any {
	labels := owned("vendetta.snapshot", "a", "vendetta.created", "2026-01-02T03:04:05.6Z", "vendetta.extra-bytes", "-90", "vendetta.image", "sha256:base")
	return map[string]any{"Id": "sha256:a", "Size": 100, "Config": map[string]any{"Labels": labels, "Env": []string{"VENDETTA_GUEST_USER=dev"}}}
}

// creates makes a copy's containers t and s, and answers otherwise for an instance's.
func creates(instance http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch name := r.URL.Query().Get("name"); {
		case strings.HasSuffix(name, "-target"):
			says(201, map[string]any{"Id": "t"})(w, r)
		case strings.HasSuffix(name, "-source"):
			says(201, map[string]any{"Id": "s"})(w, r)
		default:
			instance(w, r)
		}
	}
}

// copies are the answers of an engine at which each copy works: workspace w runs,
// t fills, s is read.
func copies(change map[string]http.HandlerFunc) map[string]http.HandlerFunc {
	answers := map[string]http.HandlerFunc{
		"GET /containers/json":                            listed(map[string]string{"c": "vendetta-w"}),
		"GET /containers/vendetta-w/json":                 says(200, mounted("c", "vendetta-w", running)),
		"GET /containers/c/json":                          says(200, mounted("c", "vendetta-w", running)),
		"GET /images/sha256:base/json":                    says(200, map[string]any{"Id": "sha256:base", "Size": 90}),
		"GET /images/vendetta-snapshot/w:a/json":          inTurn(says(404, failure("no such image")), says(200, kept())),
		"POST /containers/create":                         creates(says(201, map[string]any{"Id": "n"})),
		"POST /containers/c/pause":                        says(204, nil),
		"GET /containers/s/archive":                       archived(folderMode, "content"),
		"PUT /containers/t/archive":                       func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
		"POST /commit":                                    says(201, map[string]any{"Id": "sha256:a"}),
		"POST /containers/c/rename":                       says(204, nil),
		"DELETE /containers/s":                            says(204, nil),
		"DELETE /containers/t":                            says(204, nil),
		"GET /volumes/vendetta-w-workspace":               says(200, map[string]any{"Name": "vendetta-w-workspace"}),
		"DELETE /images/vendetta-snapshot/w:a":            says(200, []any{}),
		"DELETE /volumes/vendetta-w-snapshot-a-workspace": says(204, nil),
		"DELETE /volumes/vendetta-w-snapshot-a-state":     says(204, nil),
		"DELETE /volumes/vendetta-w-workspace-2":          says(204, nil),
		"DELETE /volumes/vendetta-w-state-2":              says(204, nil),
	}
	maps.Copy(answers, change)
	return answers
}

func TestSnapshotFailures(t *testing.T) {
	trouble := says(500, failure("trouble"))
	undone := []string{"DELETE /containers/s", "DELETE /containers/t", "DELETE /volumes/vendetta-w-snapshot-a-workspace", "DELETE /volumes/vendetta-w-snapshot-a-state", "DELETE /images/vendetta-snapshot/w:a"}
	resumed := append([]string{"POST /containers/c/unpause"}, undone...)
	for name, c := range map[string]struct {
		answers map[string]http.HandlerFunc
		kind    error
		words   []string
		asked   []string
	}{
		"machine":    {map[string]http.HandlerFunc{"GET /info": trouble}, nil, []string{"trouble"}, nil},
		"no cgroups": {map[string]http.HandlerFunc{"GET /info": says(200, machine(func(m map[string]any) { m["CgroupDriver"] = "none" }))}, providers.ErrUnsupported, []string{"without cgroups"}, nil},
		"look":       {map[string]http.HandlerFunc{"GET /images/vendetta-snapshot/w:a/json": trouble}, nil, []string{"look up snapshot a"}, nil},
		"family":     {map[string]http.HandlerFunc{"GET /containers/json": trouble}, nil, []string{"trouble"}, nil},
		"volumes":    {map[string]http.HandlerFunc{"GET /volumes": trouble}, nil, []string{"trouble"}, nil},
		"stale":      {map[string]http.HandlerFunc{"GET /volumes": holding("vendetta-w-state-2"), "DELETE /volumes/vendetta-w-state-2": trouble}, nil, []string{"clean up", "trouble"}, nil},
		"stale snapshot": {map[string]http.HandlerFunc{
			"GET /volumes": holding("vendetta-w-snapshot-b-state"), "GET /images/vendetta-snapshot/w:b/json": trouble,
		}, nil, []string{"look up snapshot b"}, nil},
		"leftover": {map[string]http.HandlerFunc{
			"GET /containers/json": listed(map[string]string{"c": "vendetta-w", "s": "vendetta-w-source"}), "DELETE /containers/s": trouble,
		}, nil, []string{"clean up", "trouble"}, nil},
		"nothing":    {map[string]http.HandlerFunc{"GET /containers/vendetta-w/json": says(404, failure("none"))}, providers.ErrNotFound, nil, nil},
		"base":       {map[string]http.HandlerFunc{"GET /images/sha256:base/json": trouble}, nil, []string{"look up its image"}, nil},
		"containers": {map[string]http.HandlerFunc{"POST /containers/create": trouble}, nil, []string{"trouble"}, undone[2:]},
		"second container": {map[string]http.HandlerFunc{
			"POST /containers/create": inTurn(says(201, map[string]any{"Id": "t"}), trouble),
		}, nil, []string{"trouble"}, undone[1:]},
		"pause":     {map[string]http.HandlerFunc{"POST /containers/c/pause": trouble}, nil, []string{"pause it", "trouble"}, resumed},
		"read":      {map[string]http.HandlerFunc{"GET /containers/s/archive": trouble}, nil, []string{"trouble"}, resumed},
		"no folder": {map[string]http.HandlerFunc{"GET /containers/s/archive": archived(0o644, "content")}, providers.ErrImage, []string{"is no folder"}, resumed},
		"write":     {map[string]http.HandlerFunc{"PUT /containers/t/archive": says(500, failure("no space left on device"))}, providers.ErrExhausted, []string{"full"}, resumed},
		"cut": {map[string]http.HandlerFunc{"GET /containers/s/archive": func(w http.ResponseWriter, r *http.Request) {
			archived(folderMode, strings.Repeat("x", 100000))(w, r)
			panic(http.ErrAbortHandler)
		}}, nil, []string{"snapshot workspace w as a"}, resumed},
		"commit":     {map[string]http.HandlerFunc{"POST /commit": trouble}, nil, []string{"trouble"}, resumed},
		"go on":      {map[string]http.HandlerFunc{"POST /containers/c/unpause": trouble}, nil, []string{"let it go on", "trouble"}, undone},
		"gone on":    {map[string]http.HandlerFunc{"POST /containers/c/unpause": says(500, failure("container c is not paused")), "POST /commit": trouble}, nil, []string{"trouble"}, undone},
		"end":        {map[string]http.HandlerFunc{"DELETE /containers/s": trouble}, nil, []string{"trouble"}, resumed[:1]},
		"look again": {map[string]http.HandlerFunc{"GET /images/vendetta-snapshot/w:a/json": inTurn(says(404, failure("none")), trouble)}, nil, []string{"look up snapshot a"}, nil},
		"stays":      {map[string]http.HandlerFunc{"POST /commit": trouble, "DELETE /images/vendetta-snapshot/w:a": trouble, "DELETE /volumes/vendetta-w-snapshot-a-state": trouble}, nil, []string{"trouble"}, resumed},
	} {
		t.Run(name, func(t *testing.T) {
			s := script(t, copies(c.answers))
			_, err := s.provider(t).Snapshot(t.Context(), "w", "a")
			want(t, err, c.kind, c.words...)
			for _, what := range c.asked {
				if !s.was(what) {
					t.Errorf("no %s: %q", what, s.asked)
				}
			}
		})
	}
}

func TestSnapshotOfScript(t *testing.T) {
	p := script(t, copies(nil)).provider(t)
	for range 2 {
		made, err := p.Snapshot(t.Context(), "w", "a")
		if wanted := (providers.Snapshot{Name: "a", Bytes: 10, CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC)}); err != nil || made != wanted {
			t.Errorf("%+v, %v", made, err)
		}
	}
	// An image that only looks like it.
	strange := kept()
	strange["Config"] = nil
	p = script(t, copies(map[string]http.HandlerFunc{"GET /images/vendetta-snapshot/w:a/json": says(200, strange)})).provider(t)
	want(t, p.Restore(t.Context(), "w", "a"), providers.ErrNotFound, "no snapshot named a")
}

func TestSnapshotsFailures(t *testing.T) {
	p := script(t, map[string]http.HandlerFunc{"GET /images/json": says(500, failure("trouble"))}).provider(t)
	_, err := p.Snapshots(t.Context(), "w")
	want(t, err, nil, "list snapshots of workspace w", "trouble")
	_, err = p.Snapshots(t.Context(), "../w")
	want(t, err, providers.ErrInvalid)
	want(t, p.Restore(t.Context(), "../w", "a"), providers.ErrInvalid)
}

func TestRestoreFailures(t *testing.T) {
	trouble := says(500, failure("trouble"))
	there := says(200, kept())
	undone := []string{"DELETE /containers/s", "DELETE /containers/t", "DELETE /volumes/vendetta-w-workspace-2", "DELETE /volumes/vendetta-w-state-2"}
	for name, c := range map[string]struct {
		answers map[string]http.HandlerFunc
		change  func(*docker.Options)
		kind    error
		words   []string
		asked   []string
	}{
		"machine":  {map[string]http.HandlerFunc{"GET /info": trouble}, nil, nil, []string{"trouble"}, nil},
		"program":  {nil, func(o *docker.Options) { o.GuestProgram = "/absent" }, providers.ErrUnusable, []string{"/absent"}, nil},
		"link":     {nil, func(o *docker.Options) { o.StateDir = "/proc/nothing" }, nil, []string{"make link"}, nil},
		"family":   {map[string]http.HandlerFunc{"GET /containers/json": trouble}, nil, nil, []string{"trouble"}, nil},
		"instance": {map[string]http.HandlerFunc{"GET /containers/vendetta-w/json": trouble}, nil, nil, []string{"trouble"}, nil},
		"volume":   {map[string]http.HandlerFunc{"GET /volumes/vendetta-w-workspace": trouble}, nil, nil, []string{"trouble"}, nil},
		"prepare":  {map[string]http.HandlerFunc{"POST /containers/create": trouble}, nil, nil, []string{"trouble"}, undone[2:]},
		"copy":     {map[string]http.HandlerFunc{"PUT /containers/t/archive": trouble}, nil, nil, []string{"trouble"}, undone},
		"stays":    {map[string]http.HandlerFunc{"PUT /containers/t/archive": trouble, "DELETE /containers/t": trouble}, nil, nil, []string{"trouble"}, nil},
		"rename":   {map[string]http.HandlerFunc{"POST /containers/c/rename": trouble}, nil, nil, []string{"trouble"}, undone},
		"create": {map[string]http.HandlerFunc{
			"POST /containers/create": creates(trouble),
		}, nil, nil, []string{"trouble"}, undone},
	} {
		t.Run(name, func(t *testing.T) {
			answers := copies(map[string]http.HandlerFunc{"GET /images/vendetta-snapshot/w:a/json": there})
			maps.Copy(answers, c.answers)
			s := script(t, answers)
			change := func(*docker.Options) {}
			if c.change != nil {
				change = c.change
			}
			want(t, s.provider(t, change).Restore(t.Context(), "w", "a"), c.kind, c.words...)
			for _, what := range c.asked {
				if !s.was(what) {
					t.Errorf("no %s: %q", what, s.asked)
				}
			}
			if s.was("DELETE /containers/c") {
				t.Error("the instance was removed")
			}
		})
	}
	// What it replaced cannot be removed: it is restored, and a later call removes it.
	s := script(t, copies(map[string]http.HandlerFunc{"GET /images/vendetta-snapshot/w:a/json": there, "DELETE /containers/c": trouble}))
	if err := s.provider(t).Restore(t.Context(), "w", "a"); err != nil {
		t.Error(err)
	}
	if s.was("DELETE /volumes/vendetta-w-workspace") {
		t.Error("removed the volume of an instance that is there")
	}
}

func TestRemoveSnapshotFailures(t *testing.T) {
	trouble, there := says(500, failure("trouble")), says(200, kept())
	used := says(409, failure("must force"))
	for name, c := range map[string]map[string]http.HandlerFunc{
		"look":    {"GET /images/vendetta-snapshot/w:a/json": trouble},
		"image":   {"GET /images/vendetta-snapshot/w:a/json": there, "DELETE /images/vendetta-snapshot/w:a": trouble},
		"tag":     {"GET /images/vendetta-snapshot/w:a/json": there, "DELETE /images/vendetta-snapshot/w:a": used, "POST /images/vendetta-snapshot/w:a/tag": trouble},
		"volumes": {"GET /volumes": trouble},
		"volume":  {"GET /volumes": holding("vendetta-w-snapshot-a-state", "vendetta-w-snapshot-ab-state"), "DELETE /volumes/vendetta-w-snapshot-a-state": trouble},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, script(t, copies(c)).provider(t).RemoveSnapshot(t.Context(), "w", "a"), nil, "trouble")
		})
	}
	want(t, script(t, nil).provider(t).RemoveSnapshot(t.Context(), "w", "-"), providers.ErrInvalid, "snapshot name")
}

func TestForkFailures(t *testing.T) {
	trouble := says(500, failure("trouble"))
	fork := providers.Spec{Workspace: "f", Name: "fork"}
	base := func(change map[string]http.HandlerFunc) map[string]http.HandlerFunc {
		answers := copies(map[string]http.HandlerFunc{
			"GET /containers/json":                  says(200, []any{}),
			"GET /containers/vendetta-f/json":       says(404, failure("none")),
			"DELETE /volumes/vendetta-f-workspace":  says(204, nil),
			"DELETE /volumes/vendetta-f-state":      says(204, nil),
			"DELETE /images/vendetta-root/f:latest": says(200, []any{}),
		})
		maps.Copy(answers, change)
		return answers
	}
	undone := []string{"DELETE /volumes/vendetta-f-workspace", "DELETE /volumes/vendetta-f-state", "DELETE /images/vendetta-root/f:latest"}
	for name, c := range map[string]struct {
		answers map[string]http.HandlerFunc
		change  func(*docker.Options)
		origin  string
		kind    error
		words   []string
		asked   []string
	}{
		"origin":   {origin: "../w", kind: providers.ErrInvalid},
		"machine":  {answers: map[string]http.HandlerFunc{"GET /info": trouble}, words: []string{"trouble"}},
		"program":  {change: func(o *docker.Options) { o.GuestProgram = "/absent" }, kind: providers.ErrUnusable},
		"link":     {change: func(o *docker.Options) { o.StateDir = "/proc/nothing" }, words: []string{"make link"}},
		"family":   {answers: map[string]http.HandlerFunc{"GET /containers/json": trouble}, words: []string{"trouble"}},
		"instance": {answers: map[string]http.HandlerFunc{"GET /containers/vendetta-w/json": trouble}, words: []string{"trouble"}},
		"volumes":  {answers: map[string]http.HandlerFunc{"GET /volumes": inTurn(holding(), trouble)}, words: []string{"fork workspace w to f", "trouble"}},
		"copy":     {answers: map[string]http.HandlerFunc{"PUT /containers/t/archive": trouble}, words: []string{"trouble"}, asked: append([]string{"POST /containers/c/unpause"}, undone...)},
		"create": {answers: map[string]http.HandlerFunc{
			"POST /containers/create": creates(trouble),
		}, words: []string{"trouble"}, asked: undone},
		"stays": {answers: map[string]http.HandlerFunc{
			"PUT /containers/t/archive": trouble, "DELETE /images/vendetta-root/f:latest": trouble,
		}, words: []string{"trouble"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := script(t, base(c.answers))
			change, origin := func(*docker.Options) {}, "w"
			if c.change != nil {
				change = c.change
			}
			if c.origin != "" {
				origin = c.origin
			}
			_, err := s.provider(t, change).Fork(t.Context(), origin, fork)
			want(t, err, c.kind, c.words...)
			for _, what := range c.asked {
				if !s.was(what) {
					t.Errorf("no %s: %q", what, s.asked)
				}
			}
		})
	}
	s := script(t, base(nil))
	if made, err := s.provider(t).Fork(t.Context(), "w", fork); err != nil || made.Digest != "sha256:base" || made.Name != "vendetta-f" {
		t.Errorf("%+v, %v", made, err)
	}
	tooMuch := fork
	tooMuch.Resources.CPUs = 100
	_, err := s.provider(t).Fork(t.Context(), "w", tooMuch)
	want(t, err, providers.ErrInvalid, "ask for 4")
}

func TestPauseAndResizeFailures(t *testing.T) {
	trouble := says(500, failure("trouble"))
	runs := says(200, box(running))
	for name, c := range map[string]struct {
		answers map[string]http.HandlerFunc
		kind    error
	}{
		"machine":    {map[string]http.HandlerFunc{"GET /info": trouble}, nil},
		"no cgroups": {map[string]http.HandlerFunc{"GET /info": says(200, machine(func(m map[string]any) { m["CgroupDriver"] = "none" }))}, providers.ErrUnsupported},
		"engine": {map[string]http.HandlerFunc{
			"GET /containers/vendetta-w/json": runs, "POST /containers/c/pause": trouble, "POST /containers/c/update": trouble,
			"GET /containers/c/stats": says(200, map[string]any{}),
		}, nil},
		"stats": {map[string]http.HandlerFunc{"GET /containers/vendetta-w/json": runs, "POST /containers/c/pause": trouble, "GET /containers/c/stats": trouble}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := script(t, c.answers).provider(t)
			want(t, p.Pause(t.Context(), "w"), c.kind)
			_, err := p.Resize(t.Context(), "w", providers.Resources{MemoryBytes: 1 << 30})
			want(t, err, c.kind)
			if c.kind != nil {
				want(t, p.Resume(t.Context(), "w"), c.kind)
			}
		})
	}
	// An engine that warns is heard, and what it warns of is no failure.
	p := script(t, map[string]http.HandlerFunc{
		"GET /containers/vendetta-w/json": runs, "POST /containers/c/update": says(200, map[string]any{"Warnings": []string{"careful"}}),
	}).provider(t)
	if note, err := p.Resize(t.Context(), "w", providers.Resources{PIDs: 9}); err != nil || note != "" {
		t.Errorf("%q, %v", note, err)
	}
	paused := says(200, box(map[string]any{"Status": "paused", "Running": true, "Paused": true}))
	p = script(t, map[string]http.HandlerFunc{"GET /containers/vendetta-w/json": paused, "POST /containers/c/unpause": trouble}).provider(t)
	want(t, p.Resume(t.Context(), "w"), nil, "resume docker instance of workspace w")
	want(t, p.Stop(t.Context(), "w", 0), nil, "stop docker instance of workspace w")
}

func TestMendFailures(t *testing.T) {
	trouble := says(500, failure("trouble"))
	old := map[string]http.HandlerFunc{"GET /containers/json": listed(map[string]string{"c": "vendetta-w-old"}), "POST /containers/c/rename": trouble}
	p := script(t, old).provider(t)
	_, err := p.Create(t.Context(), spec)
	want(t, err, nil, "clean up", "trouble")
	want(t, p.Start(t.Context(), "w"), nil, "clean up", "trouble")
	want(t, p.Destroy(t.Context(), "w", false), nil, "clean up", "trouble")
	want(t, p.Stop(t.Context(), "../w", 0), providers.ErrInvalid)
	want(t, p.Destroy(t.Context(), "../w", false), providers.ErrInvalid)
	_, err = p.Inspect(t.Context(), "w") // gone when it was looked at
	want(t, err, providers.ErrNotFound)
	_, err = script(t, map[string]http.HandlerFunc{"GET /containers/json": trouble}).provider(t).Inspect(t.Context(), "w")
	want(t, err, nil, "trouble")
	_, err = script(t, map[string]http.HandlerFunc{"GET /containers/vendetta-w/json": trouble}).provider(t).Inspect(t.Context(), "w")
	want(t, err, nil, "trouble")
}

func TestSpecsThatDockerDoesNotTake(t *testing.T) {
	p := script(t, nil).provider(t)
	for _, change := range []func(*providers.Spec){
		func(s *providers.Spec) { s.Privileged = true },
		func(s *providers.Spec) { s.Resources.DiskBytes = 1 << 30 },
	} {
		asked := spec
		change(&asked)
		_, err := p.Create(t.Context(), asked)
		want(t, err, providers.ErrUnsupported, "use provider", "leave")
	}
	for _, change := range []func(*providers.Spec){
		func(s *providers.Spec) { s.Checksum = "sha256:x" },
		func(s *providers.Spec) { s.Resources.DiskBytes = -1 },
	} {
		asked := spec
		change(&asked)
		_, err := p.Create(t.Context(), asked)
		want(t, err, providers.ErrInvalid)
	}
	for _, arch := range []string{"x86_64", "aarch64", "i686", "armv7l", "riscv64"} {
		s := script(t, map[string]http.HandlerFunc{
			"GET /info":             says(200, machine(func(m map[string]any) { m["Architecture"] = arch })),
			"GET /images/base/json": says(200, map[string]any{"Id": "sha256:base", "Architecture": "s390x"}),
		})
		_, err := s.provider(t).Create(t.Context(), spec)
		want(t, err, providers.ErrImage, "is for s390x")
	}
}
