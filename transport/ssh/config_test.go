package ssh

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/transport"
)

func configFile(t *testing.T, lines ...string) string {
	t.Helper()
	return configAt(t, filepath.Join(t.TempDir(), "config"), lines...)
}

func configAt(t *testing.T, file string, lines ...string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestReadConfig(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		lines []string
		want  settings
	}{
		{"empty", nil, settings{}},
		{"outside of any Host", []string{"Port 2222", "User dev"}, settings{port: 2222, user: "dev"}},
		{"first value counts", []string{"Host box", "User one", "Port 1", "Host *", "User two", "Port 2"}, settings{user: "one", port: 1}},
		{"identity files add up", []string{"Host box", "IdentityFile a", "Host *", "IdentityFile b"}, settings{identityFiles: []string{"a", "b"}}},
		{"other hosts", []string{"Host boxes", "User one", "Host ?ox", "User two"}, settings{user: "two"}},
		{"one character", []string{"Host box?", "User one"}, settings{}},
		{"case and tabs", []string{"HOST\tother\tBOX", "\thostNAME\t192.0.2.7"}, settings{hostName: "192.0.2.7"}},
		{"negation", []string{"Host * !b*", "User one"}, settings{}},
		{"negation alone", []string{"Host !other", "User one"}, settings{}},
		{"equals and quotes", []string{`User="de v"`, `Port = 2200 # the port`, `HostKeyAlias 'it''s'`, `IdentityFile a\ b\"c`, `HostName "x\\y"`}, settings{user: "de v", port: 2200, hostKeyAlias: "its", identityFiles: []string{`a b"c`}, hostName: `x\y`}},
		{"comments and unknown words", []string{"# User no", "  ", "ForwardAgent yes", "Compression"}, settings{}},
		{"carriage returns", []string{"Host box\r", "User dev\r"}, settings{user: "dev"}},
		{"match all", []string{"Match all", "User dev"}, settings{user: "dev"}},
		{"match not all", []string{"Match !all", "User dev"}, settings{}},
		{"match host", []string{"HostName 192.0.2.7", "Match host box", "User one", "Match host=192.0.2.*,x", "User two"}, settings{hostName: "192.0.2.7", user: "two"}},
		{"match host before a name", []string{"Match host box", "User one"}, settings{user: "one"}},
		{"match originalhost and users", []string{"HostName x", "Match originalhost box localuser me user me", "User one"}, settings{hostName: "x", user: "one"}},
		{"match user of the config", []string{"User dev", "Match user dev", "Port 1", "Match !user dev", "Port 2"}, settings{user: "dev", port: 1}},
		{"match final", []string{"Match final", "User one", "Match !final host box", "User two", "Match canonical all", "Port 1"}, settings{user: "two"}},
		{"match exec", []string{"Match host other exec \"x y\"", "User one", "Match host box exec \"x y\"", "User two"}, settings{ignored: []string{"FILE:3"}}},
		{"jump before command", []string{"ProxyJump a, b", "ProxyCommand c"}, settings{proxyJump: "a, b", proxyCommandAt: "FILE:1"}},
		{"command before jump", []string{"ProxyCommand nc %h %p", "ProxyJump a"}, settings{proxyCommand: "nc %h %p", proxyCommandAt: "FILE:1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			file := configFile(t, c.lines...)
			got, err := readConfig([]string{filepath.Join(t.TempDir(), "absent"), file}, "", "me", "box", "")
			if err != nil {
				t.Fatal(err)
			}
			got.proxyCommandAt = strings.ReplaceAll(got.proxyCommandAt, file, "FILE")
			for i := range got.ignored {
				got.ignored[i] = strings.ReplaceAll(got.ignored[i], file, "FILE")
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestMatchUserAskedFor(t *testing.T) {
	t.Parallel()
	file := configFile(t, "Match user asked", "Port 7")
	got, err := readConfig([]string{file}, "", "me", "box", "asked")
	if err != nil || got.port != 7 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestReadConfigErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		line, want string
	}{
		{"Port x", `:2: "x" is not a port`},
		{"Port 65536", "not a port"},
		{"User", "user needs a value"},
		{`User ""`, "user needs a value"},
		{"Match", "match needs a criterion"},
		{"Match host", "match host needs a value"},
		{`User "dev`, "a quote is not closed"},
		{"Include [", "include"},
		{"Include " + t.TempDir(), "is not a file"},
	} {
		file := configFile(t, "", c.line)
		_, err := readConfig([]string{file}, "", "me", "box", "")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.line, err, c.want)
		}
	}
	large := configFile(t, strings.Repeat("# \n", maxConfigBytes/2))
	if _, err := readConfig([]string{large}, "", "", "box", ""); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("large file: %v", err)
	}
}

func TestInclude(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	dir := filepath.Join(home, ".ssh")
	if err := os.MkdirAll(filepath.Join(dir, "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	configAt(t, filepath.Join(dir, "conf.d", "1"), "Host box", "User first", "Include deeper")
	configAt(t, filepath.Join(dir, "conf.d", "2"), "Host box", "User second", "Port 2")
	configAt(t, filepath.Join(dir, "deeper"), "HostName 192.0.2.7")
	configAt(t, filepath.Join(home, "own"), "HostKeyAlias own")
	main := configAt(t, filepath.Join(dir, "config"),
		"Include conf.d/* absent ~/own",
		"User third",
		"Host other",
		"  Include conf.d/never",
		"Host *",
		"Port 9",
	)
	// An Include of a Host that does not match counts for nothing, whatever it holds.
	configAt(t, filepath.Join(dir, "conf.d", "never"), "ProxyJump nowhere", "Host box", "ProxyJump nowhere")
	if err := os.Rename(filepath.Join(dir, "conf.d", "never"), filepath.Join(dir, "never")); err != nil {
		t.Fatal(err)
	}
	configAt(t, main, strings.Replace(strings.TrimSpace(mustRead(t, main)), "conf.d/never", "never", 1))
	got, err := readConfig([]string{main}, home, "me", "box", "")
	want := settings{user: "first", port: 2, hostName: "192.0.2.7", hostKeyAlias: "own"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	circle := configAt(t, filepath.Join(dir, "circle"), "Include circle")
	if _, err := readConfig([]string{circle}, home, "", "box", ""); err == nil || !strings.Contains(err.Error(), "levels of Include") {
		t.Errorf("circle: %v", err)
	}
	wide := configAt(t, filepath.Join(dir, "wide"), "Include wide2 wide2 wide2 wide2")
	configAt(t, filepath.Join(dir, "wide2"), "Include narrow narrow narrow narrow narrow")
	configAt(t, filepath.Join(dir, "narrow"), strings.Repeat("Include own2\n", 100))
	configAt(t, filepath.Join(dir, "own2"), "Port 5")
	if _, err := readConfig([]string{wide}, home, "", "box", ""); err == nil || !strings.Contains(err.Error(), "files by Include") {
		t.Errorf("many files: %v", err)
	}
	bad := configAt(t, filepath.Join(dir, "bad"), "Include worse")
	configAt(t, filepath.Join(dir, "worse"), "Port x")
	if _, err := readConfig([]string{bad}, home, "", "box", ""); err == nil || !strings.Contains(err.Error(), "worse:1") {
		t.Errorf("error in an included file: %v", err)
	}
}

func mustRead(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRoute(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := configAt(t, filepath.Join(dir, "config"),
		"Host node", "HostName 192.0.2.7", "User dev", "Port 2200", "ProxyJump admin@inner:2201,last", "IdentityFile ~/%n-%h-%r-%p-%u-%d-%%-%q", "IdentityFile none",
		"Host inner", "HostName inner.%h.example", "ProxyJump outer",
		"Host last", "User l", "ProxyJump nobody",
		"Host direct", "ProxyJump none",
		"Host command", "ProxyCommand nc %h %p",
		"Host nocommand", "ProxyCommand none",
		"Host circle", "ProxyJump circle",
		"Host badjump", "ProxyJump a:b",
		"Host badname", "HostName -x",
		"Host viacommand", "ProxyJump command",
	)
	for _, c := range []struct {
		o    Options
		want string // hops, or the error
	}{
		{Options{Host: "node"}, "me@outer via, admin@inner.inner.example:2201 via, l@last via, dev@192.0.2.7:2200"},
		{Options{Host: "node", User: "u", Port: 1, Jump: []string{"direct"}}, "me@direct via, u@192.0.2.7:1"},
		{Options{Host: "direct"}, "me@direct"},
		{Options{Host: "nocommand"}, "me@nocommand"},
		{Options{Host: "2001:db8::1", Jump: []string{"ssh://j@[2001:db8::2]:23/", "2001:db8::3"}}, "j@[2001:db8::2]:23 via, me@2001:db8::3 via, me@2001:db8::1"},
		{Options{Host: "command"}, "asks for a ProxyCommand"},
		{Options{Host: "viacommand"}, "asks for a ProxyCommand"},
		{Options{Host: "circle"}, "more than 8 jump hosts"},
		{Options{Host: "badjump"}, `"b" is not a port`},
		{Options{Host: "badname"}, "is not a host"},
		{Options{Host: "direct", Jump: []string{"@x"}}, "empty user"},
		{Options{Host: "direct", Jump: []string{"[x"}}, "bracket"},
		{Options{Host: "direct", Jump: []string{"[x]y"}}, "bracket"},
		{Options{Host: "direct", Jump: []string{"x:"}}, "empty port"},
		{Options{Host: "direct", Jump: []string{"u@"}}, "no host"},
	} {
		c.o.ConfigFiles, c.o.Home, c.o.LocalUser = []string{config}, "/home/me", "me"
		hops, err := c.o.route()
		var got []string
		for _, h := range hops {
			s := h.String()
			if h.jump {
				s += " via"
			}
			got = append(got, s)
		}
		if err != nil {
			got = []string{err.Error()}
		}
		if s := strings.Join(got, ", "); s != c.want && (err == nil || !strings.Contains(s, c.want)) {
			t.Errorf("%+v: got %s, want %s", c.o, s, c.want)
		}
	}
	hops, err := Options{Host: "node", ConfigFiles: []string{config}, Home: "/home/me", LocalUser: "me"}.route()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/home/me/node-192.0.2.7-dev-2200-me-/home/me-%-%q"}
	if got := hops[3].configured; !reflect.DeepEqual(got, want) {
		t.Errorf("identity files = %q, want %q", got, want)
	}
	if _, err := (Options{Host: "x"}).route(); err == nil || !strings.Contains(err.Error(), "x@x") && !strings.Contains(err.Error(), "user@x") {
		t.Errorf("no user: %v", err)
	}
	_, err = Options{Host: "command", ConfigFiles: []string{config}, LocalUser: "me"}.route()
	var te *transport.Error
	if !errors.As(err, &te) || !strings.Contains(te.Next, "ProxyJump") || !strings.Contains(te.Message, fmt.Sprintf("%s:%d", config, 17)) {
		t.Errorf("ProxyCommand: %v", err)
	}
	if _, err := (Options{Host: "x", LocalUser: "me", ConfigFiles: []string{dir}}).route(); err == nil {
		t.Error("a folder was read as a config")
	}
}

func TestCheckHost(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"", "-oProxyCommand=x", "a b", "a\nb", "a/b", `a\b`, "\x7f"} {
		if _, err := New(Options{Host: host}); err == nil {
			t.Errorf("%q was taken for a host", host)
		}
	}
	if (Options{Host: "h"}).address() != "h" || (Options{Host: "h", User: "u"}).address() != "u@h" {
		t.Error("an address is not what a user would write")
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("Host a\nUser b\nMatch host x,y !user z exec \"true\"\nPort=22\nInclude \"a b\"\nProxyJump a@b:1,c\n", "a")
	f.Add("match !=\nmatch host=\n\\\"'", "")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text, host string) {
		file := filepath.Join(dir, "config")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Skip(err)
		}
		hops, err := Options{Host: host, LocalUser: "me", Home: dir, ConfigFiles: []string{file}}.route()
		if err != nil {
			return
		}
		if len(hops) == 0 || len(hops) > 1000 {
			t.Fatalf("%d hops", len(hops))
		}
		for _, h := range hops {
			if h.port < 1 || h.port > 65535 || h.user == "" || h.host == "" || strings.HasPrefix(h.host, "-") {
				t.Fatalf("hop %+v", h)
			}
		}
	})
}
