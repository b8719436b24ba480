package nodeagent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// journalFormat rises when a record can no longer be read by an older agent.
const journalFormat = 1

// recordLimit bounds a record that is read, in bytes.
const recordLimit = 1 << 20

// ids are the only names that become parts of paths.
var ids = regexp.MustCompile(`^[a-z0-9]{1,32}$`)

// record is what the journal holds of one workspace.
type record struct {
	// request is the latest accepted operation.
	request *nodeagentv1.ApplyRequest
	// observed is what was seen when it ended, its failure included.
	observed *nodeagentv1.ObservedWorkspace
	// pending: the operation was begun and its end was not written down.
	pending bool
	// made: the workspace has run once, so its volume may hold a user's files.
	made bool
	// prior is what was wanted before an operation that may fail and leave the
	// workspace as it is; it is what counts then.
	prior *nodeagentv1.ApplyRequest
}

// failed reports whether the last operation left the workspace failed, rather
// than as it was.
func (r record) failed() bool {
	return !r.pending && r.observed.GetErrorCode() != "" && r.observed.GetState() == vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED
}

type recordJSON struct {
	Format   int             `json:"format"`
	Pending  bool            `json:"pending,omitempty"`
	Made     bool            `json:"made,omitempty"`
	Request  json.RawMessage `json:"request"`
	Observed json.RawMessage `json:"observed,omitempty"`
	Prior    json.RawMessage `json:"prior,omitempty"`
}

// journal keeps one file for each workspace, DIR/SERVERID/WORKSPACEID.json. A
// file is replaced as a whole and is on disk when write returns.
type journal struct {
	dir string
	// replace writes a file durably; tests let it fail.
	replace func(path string, data []byte) error
}

func newJournal(dir string) *journal { return &journal{dir: dir, replace: replaceFile} }

func (j *journal) path(server, workspace string) string {
	return filepath.Join(j.dir, server, workspace+".json")
}

// write makes r the record of its workspace.
func (j *journal) write(server string, r record) error {
	data, err := encodeRecord(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(j.dir, server), 0o700); err != nil {
		return err
	}
	return j.replace(j.path(server, r.request.GetWorkspaceId()), data)
}

// remove forgets a workspace. An absent record is success.
func (j *journal) remove(server, workspace string) error {
	err := os.Remove(j.path(server, workspace))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// load reads all records, by server and workspace. A record that cannot be read
// is set aside under another name and becomes one of the problems: one bad file
// must not keep the others' workspaces down.
func (j *journal) load() (records map[string]map[string]record, problems []error, err error) {
	records = map[string]map[string]record{}
	servers, err := os.ReadDir(j.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return records, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read journal: %w", err)
	}
	for _, server := range servers {
		if !server.IsDir() || !ids.MatchString(server.Name()) {
			continue
		}
		files, err := os.ReadDir(filepath.Join(j.dir, server.Name()))
		if err != nil {
			problems = append(problems, fmt.Errorf("read journal of server %s: %w", server.Name(), err))
			continue
		}
		for _, file := range files {
			id, ok := strings.CutSuffix(file.Name(), ".json")
			if !ok || !ids.MatchString(id) {
				continue
			}
			r, err := j.read(server.Name(), id)
			if err != nil {
				problems = append(problems, j.setAside(server.Name(), id, err))
				continue
			}
			if records[server.Name()] == nil {
				records[server.Name()] = map[string]record{}
			}
			records[server.Name()][id] = r
		}
	}
	return records, problems, nil
}

func (j *journal) read(server, id string) (record, error) {
	info, err := os.Lstat(j.path(server, id))
	if err != nil {
		return record{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > recordLimit {
		return record{}, fmt.Errorf("not a file of at most %d bytes", recordLimit)
	}
	data, err := os.ReadFile(j.path(server, id))
	if err != nil {
		return record{}, err
	}
	return decodeRecord(data, id)
}

func (j *journal) setAside(server, id string, cause error) error {
	path := j.path(server, id)
	aside := path + ".corrupt"
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("read journal of workspace %s: %w; set it aside: %w", id, cause, err)
	}
	return fmt.Errorf("read journal of workspace %s: %w; set aside as %s, the workspace is left as it is until the server applies it again", id, cause, aside)
}

func encodeRecord(r record) ([]byte, error) {
	out := recordJSON{Format: journalFormat, Pending: r.pending, Made: r.made}
	var err error
	if out.Request, err = protojson.Marshal(r.request); err != nil {
		return nil, err
	}
	if r.observed != nil {
		if out.Observed, err = protojson.Marshal(r.observed); err != nil {
			return nil, err
		}
	}
	if r.prior != nil {
		if out.Prior, err = protojson.Marshal(r.prior); err != nil {
			return nil, err
		}
	}
	return json.Marshal(out)
}

// decodeRecord reads the record of the workspace id. Fields it does not know, of
// a newer agent, are passed over.
func decodeRecord(data []byte, id string) (record, error) {
	var in recordJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return record{}, err
	}
	if in.Format != journalFormat {
		return record{}, fmt.Errorf("format %d, this agent reads %d", in.Format, journalFormat)
	}
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true}
	r := record{pending: in.Pending, made: in.Made, request: &nodeagentv1.ApplyRequest{}}
	if err := lenient.Unmarshal(in.Request, r.request); err != nil {
		return record{}, fmt.Errorf("request: %w", err)
	}
	if len(in.Observed) > 0 {
		r.observed = &nodeagentv1.ObservedWorkspace{}
		if err := lenient.Unmarshal(in.Observed, r.observed); err != nil {
			return record{}, fmt.Errorf("observed: %w", err)
		}
	}
	if len(in.Prior) > 0 {
		r.prior = &nodeagentv1.ApplyRequest{}
		if err := lenient.Unmarshal(in.Prior, r.prior); err != nil {
			return record{}, fmt.Errorf("prior: %w", err)
		}
	}
	if !r.pending && r.observed == nil {
		return record{}, errors.New("an operation that ended without a result")
	}
	if r.request.GetWorkspaceId() != id {
		return record{}, fmt.Errorf("it is of workspace %q", r.request.GetWorkspaceId())
	}
	if err := validateApply(r.request); err != nil {
		return record{}, err
	}
	if r.prior != nil {
		if err := validateApply(r.prior); err != nil {
			return record{}, fmt.Errorf("prior: %w", err)
		}
	}
	return r, nil
}

// replaceFile puts data at path: after a crash there is either the old content
// or the new one.
func replaceFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		_ = f.Close()
		return err
	}
	if err = f.Sync(); err != nil {
		_ = f.Close()
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	err = dir.Sync()
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	return err
}
