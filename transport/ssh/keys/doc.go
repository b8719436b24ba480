// Package keys finds or makes the server's own SSH key, by which it logs in to
// nodes without anybody's session.
package keys
