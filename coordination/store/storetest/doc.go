// Package storetest is the suite that every store passes. A new store joins by
// calling Run, and Same with another store to be compared with, from a test.
package storetest
