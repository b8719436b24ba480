package mcp

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// writeMost is what the guest takes in one call.
const writeMost = 4 << 20

func fileTools() []*tool {
	encoding := func(what string) param {
		return param{name: "encoding", kind: text, enum: []string{"text", "base64"}, description: what}
	}
	return []*tool{
		{
			name: "file_read", title: "Read a file", set: setFiles, readOnly: true, idempotent: true,
			description: "Read a file of a workspace, up to 18 kB at a time.",
			params: []param{
				paramWorkspace, paramPath,
				{name: "offset", kind: integer, description: "First byte to read; 0 unless given."},
				{name: "limit", kind: integer, least: 1, most: pageMost, description: "Bytes to read at most."},
				encoding("base64 for the exact bytes of a file that is no text."),
			},
			run: runFileRead,
		},
		{
			name: "file_write", title: "Write a file", set: setFiles, destructive: true, idempotent: true,
			description: "Write a file of a workspace whole, making missing folders. For a small change use file_edit.",
			params: []param{
				paramWorkspace, paramPath,
				{name: "content", kind: text, required: true, description: "What the file will hold."},
				{name: "append", kind: boolean, description: "Add to the file instead."},
				{name: "mode", kind: text, description: "Permission bits of a new file, octal, e.g. 755."},
				encoding("base64 if content is so encoded."),
			},
			run: runFileWrite,
		},
		{
			name: "file_edit", title: "Edit a file", set: setFiles, destructive: true,
			description: "Replace a text in a file. It must occur exactly once, unless all is set.",
			params: []param{
				paramWorkspace, paramPath,
				{name: "old_text", kind: text, required: true, description: "The text as it stands, with enough around it to be unique."},
				{name: "new_text", kind: text, required: true, description: "What replaces it."},
				{name: "all", kind: boolean, description: "Replace every occurrence."},
			},
			run: runFileEdit,
		},
		{
			name: "file_list", title: "List files", set: setFiles, readOnly: true, idempotent: true,
			description: "List a folder of a workspace.",
			params: []param{
				paramWorkspace,
				{name: "path", kind: text, description: "Relative to /workspace, or absolute; /workspace unless given."},
				{name: "depth", kind: integer, most: 20, description: "Levels of folders below to enter; 0 unless given."},
				{name: "limit", kind: integer, least: 1, most: 10_000, description: "Entries at most; 200 unless given."},
			},
			run: runFileList,
		},
		{
			name: "file_search", title: "Search in files", set: setFiles, readOnly: true, idempotent: true,
			description: "Find lines that match a regular expression (RE2).",
			params: []param{
				paramWorkspace,
				{name: "pattern", kind: text, required: true, description: "Regular expression."},
				{name: "path", kind: text, description: "Folder or file to search; /workspace unless given."},
				{name: "glob", kind: text, description: "Only files that match, e.g. *.go or cmd/**."},
				{name: "ignore_case", kind: boolean, description: "Upper and lower case are the same."},
				{name: "hidden", kind: boolean, description: "Also enter .git and other hidden folders."},
				{name: "limit", kind: integer, least: 1, most: 2000, description: "Matches at most; 100 unless given."},
			},
			run: runFileSearch,
		},
	}
}

// fileHint helps with what is not there.
func fileHint(c *call, err error) error {
	return hint(err, asCall("file_list", "workspace", c.text("workspace"))+" shows what there is; workspace_list shows the workspaces")
}

func runFileRead(ctx context.Context, g *Gateway, c *call) (string, error) {
	offset := uint64(c.number("offset", 0))
	limit := uint64(c.number("limit", pageMost))
	raw := c.text("encoding") == "base64"
	if raw {
		limit = min(limit, pageMost/4*3)
	}
	r, err := c.workspace(g).Files.ReadFile(ctx, &guestv1.ReadFileRequest{Path: c.text("path"), Offset: offset, Limit: limit})
	if err != nil {
		return "", fileHint(c, err)
	}
	data := r.GetData()[:min(uint64(len(r.GetData())), limit)]
	shown, used, escaped := base64.StdEncoding.EncodeToString(data), len(data), 0
	if !raw {
		if !r.GetEnd() {
			data = wholeRunes(data)
		}
		shown, used, escaped = escapeHead(data, pageMost)
	}
	end := offset + uint64(used)
	facts := fmt.Sprintf("bytes %d to %d of %d\n", offset, end, r.GetInfo().GetSize())
	if escaped > 0 {
		facts += fmt.Sprintf("binary: %s that are no text show as \\xNN; encoding base64 gives the exact bytes\n", plural(escaped, "byte"))
	}
	if end < r.GetInfo().GetSize() {
		facts += "read on: " + asCall("file_read", "workspace", c.text("workspace"), "path", c.text("path"), "offset", end) + "\n"
	}
	return facts + "---\n" + shown, nil
}

func runFileWrite(ctx context.Context, g *Gateway, c *call) (string, error) {
	data := []byte(c.text("content"))
	if c.text("encoding") == "base64" {
		decoded, err := base64.StdEncoding.DecodeString(c.text("content"))
		if err != nil {
			return "", c.tool.refuse("content is not base64: %v", err)
		}
		data = decoded
	}
	if len(data) > writeMost {
		return "", api.Errorf(api.InvalidArgument, "file_write: content has %d bytes, %d are the most", len(data), writeMost).
			WithNext("write the first part, then the others with append; or the user copies the file with: vendetta workspace cp")
	}
	var mode uint64
	if c.has("mode") {
		var err error
		if mode, err = strconv.ParseUint(c.text("mode"), 8, 9); err != nil {
			return "", c.tool.refuse("mode %q is no octal number up to 777", c.text("mode"))
		}
	}
	info, err := c.workspace(g).Files.WriteFile(ctx, &guestv1.WriteFileRequest{
		Path: c.text("path"), Data: data, Append: c.flag("append"), Mode: uint32(mode), Parents: true,
	})
	if err != nil {
		return "", fileHint(c, err)
	}
	return fmt.Sprintf("wrote %d bytes to %s, which now has %d\n", len(data), c.text("path"), info.GetSize()), nil
}

func runFileEdit(ctx context.Context, g *Gateway, c *call) (string, error) {
	r, err := c.workspace(g).Files.EditFile(ctx, &guestv1.EditFileRequest{
		Path: c.text("path"), OldText: c.text("old_text"), NewText: c.text("new_text"), All: c.flag("all"),
	})
	if err != nil {
		return "", fileHint(c, err)
	}
	return fmt.Sprintf("replaced %s in %s, the first in line %d\n", plural(int(r.GetReplaced()), "occurrence"), c.text("path"), r.GetLine()), nil
}

func folderOf(c *call) string {
	if p := c.text("path"); p != "" {
		return p
	}
	return "/workspace"
}

func runFileList(ctx context.Context, g *Gateway, c *call) (string, error) {
	r, err := c.workspace(g).Files.ListFiles(ctx, &guestv1.ListFilesRequest{
		Path: folderOf(c), Depth: int32(c.number("depth", 0)), Limit: int32(c.number("limit", 200)),
	})
	if err != nil {
		return "", fileHint(c, err)
	}
	var l lines
	l.add("%s: entries: %d", folderOf(c), len(r.GetFiles()))
	for _, f := range r.GetFiles() {
		switch f.GetType() {
		case guestv1.FileType_FILE_TYPE_DIRECTORY:
			l.add("%s/", f.GetPath())
		case guestv1.FileType_FILE_TYPE_SYMLINK:
			l.add("%s -> %s", f.GetPath(), f.GetTarget())
		case guestv1.FileType_FILE_TYPE_REGULAR:
			l.add("%s  %s  %04o", f.GetPath(), bytesText(f.GetSize()), f.GetMode())
		default:
			l.add("%s  (neither file nor folder)", f.GetPath())
		}
	}
	if r.GetTruncated() {
		l.add("[there is more: list a folder below, or raise limit]")
	}
	return l.text("list a folder below"), nil
}

func runFileSearch(ctx context.Context, g *Gateway, c *call) (string, error) {
	r, err := c.workspace(g).Files.SearchFiles(ctx, &guestv1.SearchFilesRequest{
		Path: folderOf(c), Pattern: c.text("pattern"), Glob: c.text("glob"), IgnoreCase: c.flag("ignore_case"),
		Limit: int32(c.number("limit", 100)), Hidden: c.flag("hidden"),
	})
	if err != nil {
		return "", fileHint(c, err)
	}
	var l lines
	l.add("%d matches, %s searched", len(r.GetMatches()), plural(int(r.GetFilesSearched()), "file"))
	for _, m := range r.GetMatches() {
		l.add("%s:%d: %s", m.GetPath(), m.GetLine(), m.GetText())
	}
	if r.GetTruncated() {
		l.add("[there are more: narrow the search with path or glob, or raise limit]")
	}
	return l.text("narrow the search with path or glob"), nil
}
