package coordination

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

const (
	// lookCeiling bounds the look into a workspace before it is removed.
	lookCeiling = 15 * time.Second
	// mostNamed is how many files and commits a refusal names.
	mostNamed = 10
	// maxLook bounds what a guest may answer to it.
	maxLook = 1 << 20
)

// mayRemove refuses the removal of a workspace that holds what exists nowhere
// else, or into which nobody can look.
func (s *Server) mayRemove(ctx context.Context, ws store.Workspace) error {
	sourced := ws.Spec.GetSource() != nil
	link := s.linkTo(ws.NodeID)
	if ws.State != vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING || link == nil {
		if !sourced {
			return nil
		}
		ran, err := s.everRan(ctx, ws.ID)
		if err != nil || !ran {
			return err
		}
		return api.Errorf(api.FailedPrecondition,
			"rm workspace %s: it is %s, so nobody can look whether changes exist only there", ws.Name, stateWord(ws.State)).
			WithNext("vendetta workspace up %s, then rm again; or vendetta workspace rm %s --force", ws.Name, ws.Name)
	}
	status, err := s.projectStatus(ctx, link, ws.ID)
	if err != nil {
		if !sourced {
			return nil // it holds no project that anyone knows of
		}
		s.log.WarnContext(ctx, "look into workspace", "workspace", ws.Name, "error", err)
		return api.Errorf(api.FailedPrecondition,
			"rm workspace %s: its guest does not answer, so nobody can look whether changes exist only there: %s", ws.Name, clipMessage(api.From(err).Message)).
			WithNext("vendetta workspace stop %s and up %s, then rm again; or vendetta workspace rm %s --force", ws.Name, ws.Name, ws.Name)
	}
	if !sourced && !status.GetImported() {
		return nil
	}
	return unsaved(ws.Name, status)
}

// projectStatus asks a guest what stands in its workspace that did not come with the import.
func (s *Server) projectStatus(ctx context.Context, l *link, workspaceID string) (*guestv1.ProjectStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, lookCeiling)
	defer cancel()
	client := guestv1connect.NewProjectServiceClient(l.guests.client(), wire.BaseURL+guestPath(workspaceID), connect.WithReadMaxBytes(maxLook), uncompressed())
	return client.ProjectStatus(ctx, &guestv1.ProjectStatusRequest{Limit: mostNamed})
}

// everRan tells whether a workspace was ever up, so that there can be something in it.
func (s *Server) everRan(ctx context.Context, workspaceID string) (ran bool, err error) {
	err = s.store.View(ctx, func(tx store.Tx) error {
		ops, err := tx.Operations(workspaceID, mostOperations)
		for _, op := range ops {
			if op.Verb != verbCreate && op.Verb != verbUp && op.Verb != verbFork {
				continue
			}
			// One that was superseded may have come far enough.
			ran = ran || op.State == vendettav1.OperationState_OPERATION_STATE_SUCCEEDED ||
				op.State == vendettav1.OperationState_OPERATION_STATE_SUPERSEDED
		}
		return err
	})
	if err != nil {
		return false, s.storeError(ctx, "rm workspace", err)
	}
	return ran, nil
}

// unsaved refuses a removal and names what would be lost; nil when that is nothing.
func unsaved(name string, status *guestv1.ProjectStatusResponse) error {
	files := max(int(status.GetChangedFilesTotal()), len(status.GetChangedFiles()))
	commits := max(int(status.GetNewCommitsTotal()), len(status.GetNewCommits()))
	var parts []string
	if commits > 0 {
		parts = append(parts, fmt.Sprintf("%d %s (%s)", commits, plural(commits, "commit"), named(status.GetNewCommits(), commits)))
	}
	if files > 0 {
		parts = append(parts, fmt.Sprintf("%d changed %s (%s)", files, plural(files, "file"), named(status.GetChangedFiles(), files)))
	}
	if len(parts) == 0 {
		return nil
	}
	return api.Errorf(api.FailedPrecondition, "rm workspace %s: only there exist %s", name, strings.Join(parts, " and ")).
		WithNext("bring them out with vendetta workspace cp %s:/workspace DIR, or lose them with vendetta workspace rm %s --force", name, name)
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// named lists what a guest named, cut to size and made fit to print, since a
// guest may say anything.
func named(list []string, total int) string {
	var out []string
	for _, s := range list[:min(len(list), mostNamed)] {
		out = append(out, clipMessage(s))
	}
	if total > len(out) {
		out = append(out, fmt.Sprintf("and %d more", total-len(out)))
	}
	return strings.Join(out, ", ")
}

// clipMessage makes a guest's words one printable line of bounded length.
func clipMessage(s string) string {
	const most = 200
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// stateWord is a workspace's state as people read it.
func stateWord(state vendettav1.WorkspaceState) string {
	return strings.ToLower(strings.TrimPrefix(state.String(), "WORKSPACE_STATE_"))
}
