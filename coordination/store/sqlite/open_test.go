package sqlite

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/coordination/store"
	"github.com/vendetta-dev/vendetta/coordination/store/storetest"
)

// refused opens a store that must be refused, with a next step.
func refused(t *testing.T, path string, says ...string) {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err == nil {
		_ = s.Close()
		t.Fatal("the store was opened")
	}
	e := api.From(err)
	if e.Code != api.FailedPrecondition || e.Next == "" {
		t.Errorf("error is %+v, want failed_precondition with a next step", e)
	}
	for _, s := range append(says, path) {
		if !strings.Contains(e.Message, s) {
			t.Errorf("message %q does not say %q", e.Message, s)
		}
	}
}

// alter runs SQL in the file, past the store.
func alter(t *testing.T, path string, queries ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "rwc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queries {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vendetta.db")
	s := open(t, filepath.Dir(path))
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.CreateNode(storetest.NewNode("n", "n")) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenMakesPrivateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b ?#%41ü")
	path := filepath.Join(dir, "vendetta.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, s)
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.SetMeta("k", "v") }); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 4 { // the file, its lock, WAL and shared memory
		t.Errorf("files are %v, want 4", names)
	}
	for _, e := range names {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; want 0600", e.Name(), info.Mode(), err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: mode %v, %v; want 0700", info.Mode(), err)
	}
}

func TestOpenNarrowsTheFile(t *testing.T) {
	path := create(t)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := open(t, filepath.Dir(path)).Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

func TestOpenRefusesASecondServer(t *testing.T) {
	path := create(t)
	s := open(t, filepath.Dir(path))
	refused(t, path, fmt.Sprintf("process %d has it open", os.Getpid()))
	if err := os.Truncate(path+".lock", 0); err != nil {
		t.Fatal(err)
	}
	refused(t, path, "another process has it open")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, filepath.Dir(path)).Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesANewerSchema(t *testing.T) {
	path := create(t)
	alter(t, path, fmt.Sprintf(`PRAGMA user_version = %d`, len(migrations)+1))
	refused(t, path, fmt.Sprintf("version %d", len(migrations)+1))
}

func TestOpenRefusesWhatIsNoStore(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other.db")
	alter(t, other, `CREATE TABLE theirs (x)`)
	refused(t, other, "not a vendetta store")
	text := filepath.Join(dir, "text.db")
	if err := os.WriteFile(text, []byte(strings.Repeat("hello, this is no database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, text, "not a vendetta store")
	b, err := os.ReadFile(text)
	if err != nil || !strings.HasPrefix(string(b), "hello") || len(b) != 2700 {
		t.Errorf("the refused file was changed: %d bytes, %v", len(b), err)
	}
}

func TestOpenReportsPathsThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	taken := filepath.Join(dir, "taken.db")
	if err := os.Mkdir(taken, 0o700); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(dir, "locked.db")
	if err := os.Mkdir(locked+".lock", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(file, "vendetta.db"), taken, locked} {
		if s, err := Open(t.Context(), path); err == nil {
			_ = s.Close()
			t.Errorf("%s was opened", path)
		}
	}
}

func TestMigrationsRunOnceAndInOrder(t *testing.T) {
	released := migrations
	t.Cleanup(func() { migrations = released })
	path := create(t)

	migrations = append(append([][]string{}, released...),
		[]string{`CREATE TABLE extra (x INTEGER) STRICT`, `INSERT INTO extra VALUES (1)`},
		[]string{`UPDATE extra SET x = x + 1`})
	for range 2 {
		s := open(t, filepath.Dir(path)).(*Store)
		x, err := number(s.writer, `SELECT x FROM extra`)
		if err != nil || x != 2 {
			t.Errorf("x = %d, %v; want 2", x, err)
		}
		if err := s.View(t.Context(), func(tx store.Tx) error { _, err := tx.Node("n"); return err }); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}

	// One that fails changes nothing.
	migrations = append(migrations, []string{`DROP TABLE extra`, `DROP TABLE absent`})
	if _, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("migrate to schema %d", len(migrations))) {
		t.Errorf("error is %v, want one that names the migration", err)
	}
	migrations = migrations[:len(migrations)-1]
	if err := open(t, filepath.Dir(path)).Close(); err != nil {
		t.Error(err)
	}
}

// Every query that selects by something does so by an index.
func TestQueriesUseIndexes(t *testing.T) {
	s := open(t, t.TempDir()).(*Store)
	defer closed(t, s)
	for _, query := range []string{
		selectNode + `WHERE id = ?`,
		selectNode + `WHERE name = ?`,
		selectWorkspace + `WHERE id = ?`,
		selectWorkspace + `WHERE name = ?`,
		selectWorkspace + `WHERE node_id = ? ORDER BY name`,
		selectOperation + `WHERE id = ?`,
		selectOperation + `WHERE principal = ? AND idempotency_key = ? AND idempotency_key <> ''`,
		selectOperation + `WHERE workspace_id = ? ORDER BY seq DESC LIMIT ?`,
		selectOperation + `WHERE state = 1 ORDER BY seq`,
		selectAudit + `WHERE seq > ? ORDER BY seq LIMIT ?`,
		selectAudit + `WHERE workspace = ? AND seq > ? ORDER BY seq LIMIT ?`,
	} {
		var plan []string
		err := s.writer.each("EXPLAIN QUERY PLAN "+query, func(row scanner) error {
			var id, parent, unused int
			var detail string
			err := row.Scan(&id, &parent, &unused, &detail)
			plan = append(plan, detail)
			return err
		}, make([]any, strings.Count(query, "?"))...)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range plan {
			if strings.Contains(step, "TEMP B-TREE") || strings.HasPrefix(step, "SCAN") && !strings.Contains(step, "INDEX") {
				t.Errorf("%s\nplan: %v", query, plan)
			}
		}
	}
}

func TestWriterSettings(t *testing.T) {
	s := open(t, t.TempDir()).(*Store)
	defer closed(t, s)
	for pragma, want := range map[string]int{"synchronous": 2, "foreign_keys": 1, "busy_timeout": busyTimeout} {
		if got, err := number(s.writer, "PRAGMA "+pragma); err != nil || got != want {
			t.Errorf("%s = %d, %v; want %d", pragma, got, err, want)
		}
	}
	reader, err := s.readers.take()
	if err != nil {
		t.Fatal(err)
	}
	defer s.readers.give(reader)
	if err := reader.exec(`INSERT INTO meta VALUES ('k', 'v')`); err == nil {
		t.Error("a reader's connection can write")
	}
}

// A file of the first schema is brought forward, and what was in it reads as
// what it was: a node without spares, a workspace that is none.
func TestFirstSchemaIsBroughtForward(t *testing.T) {
	released := migrations
	t.Cleanup(func() { migrations = released })
	path := filepath.Join(t.TempDir(), "vendetta.db")
	migrations = released[:1]
	if err := open(t, filepath.Dir(path)).Close(); err != nil {
		t.Fatal(err)
	}
	alter(t, path,
		`INSERT INTO nodes (id, name, state, message, draining) VALUES ('n', 'build1', 2, '', 0)`,
		`INSERT INTO workspaces (id, name, node_id, desired, generation, state, instance, error_code, message, next, operation_id)
			VALUES ('w', 'web', 'n', 1, 7, 2, '', '', '', '', 'o')`,
		`INSERT INTO operations (id, workspace_id, workspace_name, node_id, verb, principal, idempotency_key, generation, grace_seconds,
			state, error_code, message, next) VALUES ('o', 'w', 'web', 'n', 'stop', 'p', '', 7, 3, 2, '', '', '')`)
	migrations = released
	s := open(t, filepath.Dir(path))
	defer closed(t, s)
	err := s.View(t.Context(), func(tx store.Tx) error {
		n, err := tx.Node("n")
		if err != nil || n.Name != "build1" || n.Spares != nil {
			t.Errorf("node %+v, %v", n, err)
		}
		w, err := tx.Workspace("w")
		if err != nil || w.Generation != 7 || w.Spare {
			t.Errorf("workspace %+v, %v", w, err)
		}
		o, err := tx.Operation("o")
		if err != nil || o.GraceSeconds != 3 || o.Argument != "" || o.Note != "" || o.Before != (store.Limits{}) {
			t.Errorf("operation %+v, %v", o, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
