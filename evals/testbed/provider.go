package testbed

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// providersVariable names the providers that must be there, comma-separated.
const providersVariable = "VENDETTA_TEST_PROVIDERS"

// Wants goes on only when VENDETTA_TEST_PROVIDERS names the provider; the test is
// skipped with that reason otherwise. What the provider then needs and does not
// find is a failure, never a skip.
func Wants(t testing.TB, provider string) {
	t.Helper()
	if !slices.Contains(strings.Split(os.Getenv(providersVariable), ","), provider) {
		t.Skipf("%s does not name %s", providersVariable, provider)
	}
}
