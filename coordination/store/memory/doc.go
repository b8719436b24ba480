// Package memory is a store in RAM for unit tests. It keeps every promise of
// package store except that of surviving the process.
package memory
