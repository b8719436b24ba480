package ssh

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what a config file may ask for.
const (
	maxConfigBytes = 1 << 20
	maxIncludes    = 16
	maxFiles       = 1000
)

// settings are what the config files say about one host. A value is set by the
// first line that gives it, as ssh_config(5) has it; identity files add up.
type settings struct {
	hostName     string
	user         string
	port         int
	hostKeyAlias string
	proxyJump    string
	proxyCommand string
	// proxyCommandAt is the line of proxyCommand.
	proxyCommandAt string
	identityFiles  []string
	identitiesOnly string
	// ignored are the Match lines that could not be judged.
	ignored []string
}

// configReader gathers the settings of one host from config files.
type configReader struct {
	home      string
	localUser string
	// alias is the host as the user wrote it, user the one asked for, if any.
	alias string
	user  string

	files    int
	settings settings
}

// readConfig returns what files say about alias. kevinburke/ssh_config was not
// taken: a single Match user or Match exec makes it refuse the whole file, it
// resolves an Include against another home than the file's, and splits Host
// lines at spaces only.
func readConfig(files []string, home, localUser, alias, user string) (settings, error) {
	r := &configReader{home: home, localUser: localUser, alias: alias, user: user}
	for _, file := range files {
		if err := r.file(file, filepath.Dir(file), true, 0); err != nil {
			return settings{}, err
		}
	}
	return r.settings, nil
}

// file reads one file; base is the folder of relative Includes, active says
// whether the file's first lines count.
func (r *configReader) file(name, base string, active bool, depth int) error {
	if depth > maxIncludes {
		return fmt.Errorf("read ssh config %s: more than %d levels of Include", name, maxIncludes)
	}
	if r.files++; r.files > maxFiles {
		return fmt.Errorf("read ssh config %s: more than %d files by Include", name, maxFiles)
	}
	data, err := readBounded(name, maxConfigBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read ssh config: %w", err)
	}
	parent := active
	for i, line := range strings.Split(string(data), "\n") {
		at := fmt.Sprintf("%s:%d", name, i+1)
		keyword, args, err := splitLine(line)
		if err != nil {
			return fmt.Errorf("read ssh config %s: %w", at, err)
		}
		switch keyword {
		case "":
			continue
		case "host":
			active = parent && matchPatterns(args, r.alias)
		case "match":
			matched, err := r.match(args, at)
			if err != nil {
				return fmt.Errorf("read ssh config %s: %w", at, err)
			}
			active = parent && matched
		case "include":
			err = r.include(args, base, active, depth)
			if err != nil {
				return err
			}
		default:
			if !active {
				continue
			}
			if err := r.set(keyword, args, at); err != nil {
				return fmt.Errorf("read ssh config %s: %w", at, err)
			}
		}
	}
	return nil
}

func (r *configReader) include(patterns []string, base string, active bool, depth int) error {
	for _, pattern := range patterns {
		pattern = r.expandHome(pattern)
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(base, pattern)
		}
		names, err := filepath.Glob(pattern)
		if err != nil {
			return fmt.Errorf("read ssh config: include %s: %w", pattern, err)
		}
		for _, name := range names {
			if err := r.file(name, base, active, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// set takes a line that counts.
func (r *configReader) set(keyword string, args []string, at string) error {
	s := &r.settings
	var target *string
	switch keyword {
	case "hostname":
		target = &s.hostName
	case "user":
		target = &s.user
	case "hostkeyalias":
		target = &s.hostKeyAlias
	case "identitiesonly":
		target = &s.identitiesOnly
	case "proxyjump":
		target = &s.proxyJump
	case "proxycommand":
		target = &s.proxyCommand
	case "port", "identityfile":
	default:
		return nil
	}
	if len(args) == 0 || args[0] == "" {
		return fmt.Errorf("%s needs a value", keyword)
	}
	switch keyword {
	case "identityfile":
		if len(s.identityFiles) < 100 {
			s.identityFiles = append(s.identityFiles, args[0])
		}
	case "port":
		port, err := parsePort(args[0])
		if err != nil {
			return err
		}
		if s.port == 0 {
			s.port = port
		}
	case "proxyjump", "proxycommand":
		// The two exclude each other: whichever comes first counts.
		if s.proxyJump == "" && s.proxyCommand == "" {
			*target = strings.Join(args, " ")
			s.proxyCommandAt = at
		}
	default:
		if *target == "" {
			*target = args[0]
		}
	}
	return nil
}

// match judges the criteria of a Match line.
func (r *configReader) match(args []string, at string) (bool, error) {
	if len(args) == 0 {
		return false, errors.New("match needs a criterion")
	}
	matched, unknown := true, false
	for i := 0; i < len(args); i++ {
		name, negated := strings.CutPrefix(strings.ToLower(args[i]), "!")
		var value string
		switch name {
		case "all":
			matched = matched && !negated
			continue
		case "canonical", "final":
			// They match in a second pass over the files, which there is none of.
			matched = matched && negated
			continue
		}
		// A criterion's value may follow an equals sign.
		name, value, found := strings.Cut(name, "=")
		if found {
			value = args[i][len(args[i])-len(value):]
		} else {
			i++
			if i >= len(args) {
				return false, fmt.Errorf("match %s needs a value", name)
			}
			value = args[i]
		}
		subject, known := r.subject(name)
		if !known {
			unknown = true
			continue
		}
		matched = matched && matchPatterns(strings.Split(value, ","), subject) != negated
	}
	if unknown && matched {
		r.settings.ignored = append(r.settings.ignored, at)
	}
	return matched && !unknown, nil
}

// subject is what a criterion's patterns are compared with.
func (r *configReader) subject(criterion string) (string, bool) {
	switch criterion {
	case "originalhost":
		return r.alias, true
	case "host":
		if r.settings.hostName != "" {
			return expand(r.settings.hostName, map[byte]string{'h': r.alias}), true
		}
		return r.alias, true
	case "user":
		for _, user := range []string{r.user, r.settings.user} {
			if user != "" {
				return user, true
			}
		}
		return r.localUser, true
	case "localuser":
		return r.localUser, true
	}
	return "", false
}

func (r *configReader) expandHome(path string) string { return expandHome(path, r.home) }

func expandHome(path, home string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok && home != "" {
		return filepath.Join(home, rest)
	}
	return path
}

// expand replaces the %-tokens of ssh_config(5) that have a value; others stay.
func expand(s string, tokens map[byte]string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			out.WriteByte(s[i])
			continue
		}
		i++
		value, ok := tokens[s[i]]
		switch {
		case s[i] == '%':
			out.WriteByte('%')
		case ok:
			out.WriteString(value)
		default:
			out.WriteString(s[i-1 : i+1])
		}
	}
	return out.String()
}

// splitLine takes a line apart: the keyword in lower case and its arguments,
// quoted ones as one.
func splitLine(line string) (keyword string, args []string, err error) {
	line = strings.Trim(line, " \t\r\f\v")
	if line == "" || line[0] == '#' {
		return "", nil, nil
	}
	end := strings.IndexAny(line, " \t=\"")
	if end < 0 {
		return strings.ToLower(line), nil, nil
	}
	keyword = strings.ToLower(line[:end])
	rest := strings.TrimLeft(line[end:], " \t")
	if after, ok := strings.CutPrefix(rest, "="); ok {
		rest = after
	}
	args, err = splitArgs(rest)
	return keyword, args, err
}

// splitArgs splits at blanks, as OpenSSH does: both kinds of quotes, a backslash
// before a quote, a backslash or a blank, and # at a word's beginning ends the line.
func splitArgs(s string) ([]string, error) {
	var args []string
	for i := 0; i < len(s); {
		if s[i] == ' ' || s[i] == '\t' {
			i++
			continue
		}
		if s[i] == '#' {
			break
		}
		var word strings.Builder
		var quote byte
		for ; i < len(s); i++ {
			c := s[i]
			switch {
			case c == '\\' && i+1 < len(s) && (strings.IndexByte(`'"\`, s[i+1]) >= 0 || quote == 0 && s[i+1] == ' '):
				i++
				word.WriteByte(s[i])
				continue
			case quote == 0 && (c == ' ' || c == '\t'):
			case quote == 0 && (c == '"' || c == '\''):
				quote = c
				continue
			case c == quote && quote != 0:
				quote = 0
				continue
			default:
				word.WriteByte(c)
				continue
			}
			break
		}
		if quote != 0 {
			return nil, errors.New("a quote is not closed")
		}
		args = append(args, word.String())
	}
	return args, nil
}

// matchPatterns says whether one of the patterns matches and no negated one does.
func matchPatterns(patterns []string, s string) bool {
	matched := false
	for _, p := range patterns {
		if rest, ok := strings.CutPrefix(p, "!"); ok {
			if matchPattern(strings.ToLower(rest), strings.ToLower(s)) {
				return false
			}
			continue
		}
		matched = matched || matchPattern(strings.ToLower(p), strings.ToLower(s))
	}
	return matched
}

// matchPattern knows * and ?. It keeps one place to return to, so its time is
// bounded by the product of the lengths.
func matchPattern(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return !slices.ContainsFunc([]byte(pattern[p:]), func(c byte) bool { return c != '*' })
}

func parsePort(s string) (int, error) {
	port, err := strconv.Atoi(s)
	if err != nil || port < 1 || port > 65535 {
		return 0, fmt.Errorf("%q is not a port", s)
	}
	return port, nil
}

// readBounded reads a regular file of at most limit bytes. Anything else is
// refused before it is opened: a named pipe would block.
func readBounded(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		if name == os.DevNull {
			return nil, nil
		}
		return nil, fmt.Errorf("%s is not a file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return data, nil
}
