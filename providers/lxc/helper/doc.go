// Package helper is what the lxc provider and the program vendetta-lxc say to one
// another, and what that program does before and after it calls liblxc: one
// request on standard input, one answer on standard output, then its end.
//
// It is small on purpose, links nothing but the standard library and x/sys, and
// knows no container but the one that it is asked about.
package helper
