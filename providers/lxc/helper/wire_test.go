package helper

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestServe(t *testing.T) {
	var got Request
	do := func(r Request) Answer {
		got = r
		return Answer{Version: "1"}
	}
	var out bytes.Buffer
	asked := Request{Verb: Start, Path: "/p", Name: "n", Config: "/c", Mounts: []Mount{{Name: "root", FD: 3}}, Environment: []string{"A=b\nc"}}
	raw, err := json.Marshal(asked)
	if err != nil {
		t.Fatal(err)
	}
	if code := Serve(bytes.NewReader(raw), &out, do); code != 0 {
		t.Errorf("exit code %d: %s", code, out.String())
	}
	if a, err := ReadAnswer(out.Bytes()); err != nil || a.Version != "1" {
		t.Errorf("%+v, %v", a, err)
	}
	if got.Environment[0] != "A=b\nc" || got.Mounts[0].FD != 3 || got.Verb != Start {
		t.Errorf("%+v", got)
	}
	for _, bad := range []string{"", "{", `{"Verb":"dance"}`, `{"Verb":"start"}`, `{"Verb":"start","Path":"/p","Name":"n"}`, `{"Verb":"version","More":1}`} {
		out.Reset()
		got = Request{}
		if code := Serve(strings.NewReader(bad), &out, do); code != 1 {
			t.Errorf("%s: exit code %d", bad, code)
		}
		if a, err := ReadAnswer(out.Bytes()); err != nil || a.Error == "" || got.Verb != "" {
			t.Errorf("%s: %+v, %v", bad, a, err)
		}
	}
	if code := Serve(strings.NewReader(`{"Verb":"version"}`), deaf{}, do); code != 1 {
		t.Errorf("exit code %d of an answer that nobody took", code)
	}
}

type deaf struct{ io.Writer }

func (deaf) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestReadAnswer(t *testing.T) {
	for _, bad := range [][]byte{nil, []byte("garbage"), bytes.Repeat([]byte(" "), limit+1)} {
		if a, err := ReadAnswer(bad); err == nil {
			t.Errorf("%+v", a)
		}
	}
}
