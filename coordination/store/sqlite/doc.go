// Package sqlite is the durable store: one SQLite file in WAL mode with
// synchronous=FULL, one writer that shares commits among those who wait, and
// readers that never wait for it. A lock file keeps a second server out.
//
// Only records and SQL live here. What a record means is the business of
// package coordination.
package sqlite
