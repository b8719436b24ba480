//go:build linux

package guest

import (
	"path"
	"regexp"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// glob matches names or, when it has a slash, paths: * and ? within one part, **
// across parts, [...] one of a set. It is turned into RE2, so no pattern takes
// long.
type glob struct {
	expr  *regexp.Regexp
	paths bool
}

// globMost bounds the pattern.
const globMost = 1000

func newGlob(pattern string) (*glob, error) {
	if pattern == "" {
		return &glob{}, nil
	}
	refuse := api.Errorf(api.InvalidArgument, "glob %.60q: want *, **, ? and [...] around names", pattern)
	if len(pattern) > globMost {
		return nil, refuse
	}
	pattern = strings.TrimPrefix(pattern, "./")
	var b strings.Builder
	b.WriteString(`^(?s:`)
	for rest := pattern; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**/"):
			b.WriteString(`(?:.*/)?`)
			rest = rest[3:]
		case strings.HasPrefix(rest, "**"):
			b.WriteString(`.*`)
			rest = rest[2:]
		case rest[0] == '*':
			b.WriteString(`[^/]*`)
			rest = rest[1:]
		case rest[0] == '?':
			b.WriteString(`[^/]`)
			rest = rest[1:]
		case rest[0] == '[':
			end := strings.IndexByte(rest[1:], ']') + 1
			if end <= 1 {
				return nil, refuse
			}
			set := rest[1:end]
			b.WriteByte('[')
			if set[0] == '!' || set[0] == '^' {
				b.WriteByte('^')
				set = set[1:]
			}
			b.WriteString(strings.NewReplacer(`\`, `\\`, `[`, `\[`, `^`, `\^`).Replace(set))
			b.WriteByte(']')
			rest = rest[end+1:]
		default:
			end := strings.IndexAny(rest, "*?[")
			if end < 0 {
				end = len(rest)
			}
			b.WriteString(regexp.QuoteMeta(rest[:end]))
			rest = rest[end:]
		}
	}
	b.WriteString(`)$`)
	expr, err := regexp.Compile(b.String())
	if err != nil {
		return nil, refuse
	}
	return &glob{expr: expr, paths: strings.Contains(pattern, "/")}, nil
}

func (g *glob) match(below string) bool {
	if g.expr == nil {
		return true
	}
	if !g.paths {
		below = path.Base(below)
	}
	return g.expr.MatchString(below)
}
