// Package host is what drivers need of the machine that their instances run on:
// processes that are told apart for good, records and locks in folders of their
// own, ranges of user ids to hand out, and control groups of both generations.
//
// What is here is about the machine alone. Nothing in it knows what an instance
// is, and it never opens a path that a workspace controls.
package host
