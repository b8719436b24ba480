package source

import (
	"net/url"
	"strings"
)

// cleanOrigin returns a remote's address without credentials: for http neither
// user, password nor query, for other schemes the user name alone. An address
// whose credentials cannot be told apart becomes "".
func cleanOrigin(address string) string {
	if !strings.Contains(address, "://") {
		// A path, or user@host:path as ssh has it, which holds no password;
		// transport::address may hold anything.
		if strings.Contains(address, "::") {
			return ""
		}
		return address
	}
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	switch u.Scheme {
	case "http", "https", "ftp", "ftps":
		u.User = nil
		u.RawQuery, u.Fragment = "", ""
	default:
		if u.User != nil {
			u.User = url.User(u.User.Username())
		}
	}
	return u.String()
}
