package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// failures is the interceptor that makes the errors of the server's own services
// fit for the wire and logs their causes, which do not travel.
type failures struct{ log *slog.Logger }

var _ connect.Interceptor = (*failures)(nil)

// WrapUnary implements connect.Interceptor.
func (f *failures) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err != nil {
			return nil, f.convert(ctx, req.Spec().Procedure, err)
		}
		return resp, nil
	}
}

// WrapStreamingClient implements connect.Interceptor; there are no clients here.
func (f *failures) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (f *failures) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return f.convert(ctx, conn.Spec().Procedure, err)
		}
		return nil
	}
}

func (f *failures) convert(ctx context.Context, procedure string, err error) error {
	logFailure(ctx, f.log, procedure, err)
	return api.ToConnect(err)
}

// logFailure writes an error down once, as loud as it deserves.
func logFailure(ctx context.Context, log *slog.Logger, path string, err error) {
	e := api.From(err)
	level := slog.LevelInfo
	switch {
	case ctx.Err() != nil: // the caller is gone
		level = slog.LevelDebug
	case e.Code == api.Internal:
		level = slog.LevelError
	case e.Code == api.Unavailable || e.Code == api.ResourceExhausted:
		level = slog.LevelWarn
	}
	args := []any{"call", clip(path), "code", string(e.Code), "error", e.Message}
	if e.Cause != nil {
		args = append(args, "cause", e.Cause.Error())
	}
	log.Log(ctx, level, "call failed", args...)
}

// recovered answers for a method that panicked. Its interceptor stands outside
// the one above, so the error is made for the wire here.
func recovered(log *slog.Logger) func(context.Context, connect.Spec, http.Header, any) error {
	return func(ctx context.Context, spec connect.Spec, _ http.Header, value any) error {
		log.ErrorContext(ctx, "call panicked", "call", spec.Procedure, "panic", value, "stack", string(debug.Stack()))
		return api.ToConnect(api.Errorf(api.Internal, "call %s: the server has a fault in it; its log says more", spec.Procedure).
			WithNext("report it with the server's log (server.log in the state directory)"))
	}
}

var errorWriter = connect.NewErrorWriter()

// refuse answers err in the protocol that the request speaks.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	logFailure(r.Context(), h.log, r.URL.Path, err)
	if err := errorWriter.Write(w, r, api.ToConnect(err)); err != nil {
		h.log.DebugContext(r.Context(), "error not delivered", "call", clip(r.URL.Path), "error", err)
	}
}

// forbid answers what comes from a web page: with a plain status, which browsers
// understand, whatever protocol the request pretends to speak.
func (h *handler) forbid(w http.ResponseWriter, r *http.Request, err error) {
	logFailure(r.Context(), h.log, r.URL.Path, err)
	body, merr := json.Marshal(map[string]string{"code": string(api.CodeOf(err)), "message": err.Error()})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusForbidden)
	_, werr := w.Write(body)
	if err := errors.Join(merr, werr); err != nil {
		h.log.DebugContext(r.Context(), "error not delivered", "call", clip(r.URL.Path), "error", err)
	}
}
