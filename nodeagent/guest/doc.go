// Package guest is the program inside each workspace: it starts processes and
// keeps their output, reads and writes files, takes the project in and says
// what was changed in it. It is the same in a container and in a virtual machine.
//
// A process belongs to the guest and not to the stream that started it: it and
// its output survive the loss of every connection. Output goes to a spool on
// disk (spool.go) from which any number of readers follow at their own pace;
// the record of a process (record.go) is made before it is started and outlives
// the guest, so that an id never starts anything twice.
//
// The guest trusts its callers with the whole instance, since they may run any
// command there; limits on sizes and counts protect it from mistakes. It never
// runs a command that a caller did not ask for, git for ProjectStatus aside.
//
// It stays small: no dependency enters that is not needed inside every
// workspace. It runs on Linux only.
package guest
