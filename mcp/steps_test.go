package mcp

import "testing"

func TestStepsOfTheCLIBecomeTools(t *testing.T) {
	for next, want := range map[string]string{
		"vendetta workspace list":               "workspace_list",
		"vendetta workspace up fix-login":       `workspace_up {"name":"fix-login"}`,
		"vendetta node status build1":           `node_status {"name":"build1"}`,
		"vendetta workspace rm fix-login, or x": "vendetta workspace rm fix-login, or x",
		"vendetta node add local --local":       "vendetta node add local --local",
		"try again":                             "try again",
	} {
		if got := toolStep(next); got != want {
			t.Errorf("%q became %q, not %q", next, got, want)
		}
	}
}
