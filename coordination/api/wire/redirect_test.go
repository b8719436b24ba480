package wire

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
)

// A guest that answers with a redirect leads nobody anywhere: not past the hop
// that passes its answer on, and not the caller who would repeat the request with
// rights of its own.
func TestRedirectsAreNotFollowed(t *testing.T) {
	for _, status := range []int{http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		var followed atomic.Int32
		guest := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/victim") {
				followed.Add(1)
				return
			}
			w.Header().Set("Location", BaseURL+"/victim"+r.URL.Path)
			w.WriteHeader(status)
		})
		far := pipeClient(t, guest)
		hop := PassThrough(func(r *http.Request) (http.RoundTripper, string, error) {
			return far.Transport, r.URL.Path, nil
		}, slog.New(slog.DiscardHandler))
		for name, client := range map[string]*http.Client{"at the caller": far, "at the hop": pipeClient(t, hop)} {
			files := guestv1connect.NewFileServiceClient(client, BaseURL)
			if _, err := files.StatFile(t.Context(), &guestv1.StatFileRequest{Path: "x"}); err == nil {
				t.Errorf("%d %s: a redirect counted as an answer", status, name)
			} else if name == "at the hop" && (connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(api.From(err).Message, "redirect")) {
				t.Errorf("%d %s: %v", status, name, err)
			}
			stream, err := guestv1connect.NewProcessServiceClient(client, BaseURL).Start(t.Context(), &guestv1.StartRequest{ProcessId: "p"})
			if err == nil {
				if stream.Receive() || stream.Err() == nil {
					t.Errorf("%d %s: a redirected stream began", status, name)
				}
				_ = stream.Close()
			}
		}
		if n := followed.Load(); n > 0 {
			t.Errorf("%d: %d calls were led elsewhere", status, n)
		}
	}
}

// pipeClient is a client of a handler that is served on every connection it dials.
func pipeClient(t *testing.T, handler http.Handler) *http.Client {
	t.Helper()
	return Client(func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			Serve(t.Context(), far, handler)
		}()
		t.Cleanup(func() {
			_ = near.Close()
			<-done
		})
		return near, nil
	})
}
