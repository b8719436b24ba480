// Package store is the contract of the server's durable memory and its records.
// Package sqlite is the real one, memory the one for unit tests, storetest the
// suite that both pass. The store is the truth for what should be.
package store
