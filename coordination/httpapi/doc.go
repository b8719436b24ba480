// Package httpapi is the server's edge: one route table, authentication,
// authorisation and audit by what the descriptors say of each method, and the
// pass-through of guest calls. It knows the methods of no service by name; what
// a call means is the business of package coordination and of the guest.
package httpapi
