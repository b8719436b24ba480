//go:build !linux

package nodeagent

// diskSpace is not known: nodes run Linux, other systems only the CLI.
func diskSpace(string) (total, free uint64) { return 0, 0 }
