package wire

import (
	"log/slog"
	"net/http"
)

// Resolve finds where a request goes: the transport that carries it and the
// path there. Its error is answered as the protocol of the call demands.
type Resolve func(r *http.Request) (next http.RoundTripper, path string, err error)

// PassThrough hands requests on unchanged, streams included, with back-pressure
// and bounded memory. It returns early errors while the request body is still
// open, and a caller that goes away ends the call upstream.
func PassThrough(resolve Resolve, log *slog.Logger) http.Handler {
	panic("to be written")
}
