// Package api is the wire contract: the .proto files with their generated code
// below vendetta/, the error codes, the protocol version and its history.
// Package api/wire beside it holds how bytes travel: the HTTP/2 settings, the
// opening of a guest link and the stream pass-through.
//
// Everything that speaks to another part of vendetta imports this package; it
// imports nothing of ours.
package api
