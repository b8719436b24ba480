// Package wire holds how the contract's bytes travel, the same on every link:
// HTTP/2 in clear text over a stream that a transport made (settings and server
// in http2.go, the client in transport.go), the opening of a guest link
// (link.go), and the pass-through by which node agent and server hand a guest's
// streams on without knowing its methods (passthrough.go).
package wire
