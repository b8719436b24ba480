package image

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/providers"
)

// answers is a network of servers, none of which is there.
type answers struct {
	answer func(*http.Request) *http.Response
	asked  []string
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	a.asked = append(a.asked, r.URL.String())
	answer := a.answer(r)
	answer.Request, answer.Body = r, io.NopCloser(strings.NewReader("{}"))
	return answer, nil
}

// A registry or a web server elsewhere does not make the node ask its own services.
func TestLedToTheNode(t *testing.T) {
	moved := func(*http.Request) *http.Response {
		return &http.Response{StatusCode: http.StatusTemporaryRedirect, Header: http.Header{"Location": {"http://127.0.0.1:9/secret"}}}
	}
	for what, answer := range map[string]func(*http.Request) *http.Response{
		"a redirect": moved,
		"a login": func(*http.Request) *http.Response {
			return &http.Response{StatusCode: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {`Bearer realm="https://localhost:9/secret",service="s"`}}}
		},
	} {
		network := &answers{answer: answer}
		s := New(Options{Dir: t.TempDir(), Transport: network})
		_, err := s.Get(t.Context(), "registry.example.com/team/image:1", "", "")
		if !errors.Is(err, providers.ErrImage) || !strings.Contains(err.Error(), "leads to the node itself") {
			t.Errorf("%s: %v", what, err)
		}
		for _, url := range network.asked {
			if !strings.HasPrefix(url, "https://registry.example.com/") {
				t.Errorf("%s: asked %s", what, url)
			}
		}
	}
	network := &answers{answer: moved}
	s := New(Options{Dir: t.TempDir(), Transport: network})
	if _, err := s.GetDisk(t.Context(), "https://example.com/a.qcow2", "", "", ""); err == nil || len(network.asked) != 1 {
		t.Errorf("a disk: %v, asked %q", err, network.asked)
	}
}
