package nodeagent

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/providers"
)

var (
	operationIDs   = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	workspaceNames = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)
	// snapshotNames is the providers' rule.
	snapshotNames = workspaceNames
)

// graceLimit bounds the seconds that a stop may take.
const graceLimit = 3600

func validateApply(r *nodeagentv1.ApplyRequest) error {
	switch {
	case !ids.MatchString(r.GetWorkspaceId()):
		return api.Errorf(api.InvalidArgument, "apply: workspace id %q is not made of 1 to 32 of a-z and 0-9", r.GetWorkspaceId())
	case !operationIDs.MatchString(r.GetOperationId()):
		return api.Errorf(api.InvalidArgument, "apply to workspace %s: operation id %q is not made of 1 to 64 of a-z, 0-9 and -", r.GetWorkspaceId(), r.GetOperationId())
	case !workspaceNames.MatchString(r.GetWorkspaceName()):
		return api.Errorf(api.InvalidArgument, "apply to workspace %s: %q is not a workspace name", r.GetWorkspaceId(), r.GetWorkspaceName())
	case r.GetGraceSeconds() < 0 || r.GetGraceSeconds() > graceLimit:
		return api.Errorf(api.InvalidArgument, "apply to workspace %s: grace of %d seconds is not between 0 and %d", r.GetWorkspaceName(), r.GetGraceSeconds(), graceLimit)
	}
	switch r.GetDesired() {
	case vendettav1.DesiredState_DESIRED_STATE_RUNNING, vendettav1.DesiredState_DESIRED_STATE_STOPPED,
		vendettav1.DesiredState_DESIRED_STATE_DOWN, vendettav1.DesiredState_DESIRED_STATE_REMOVED,
		vendettav1.DesiredState_DESIRED_STATE_PAUSED:
	default:
		return api.Errorf(api.InvalidArgument, "apply to workspace %s: desired state %d is not known here", r.GetWorkspaceName(), r.GetDesired())
	}
	if res := r.GetSpec().GetResources(); res.GetMemoryBytes() > math.MaxInt64 || res.GetDiskBytes() > math.MaxInt64 {
		return api.Errorf(api.InvalidArgument, "apply to workspace %s: a limit of more than %d bytes", r.GetWorkspaceName(), int64(math.MaxInt64))
	}
	if _, err := networkOf(r.GetSpec().GetNetwork()); err != nil {
		return err
	}
	return validateAction(r)
}

// validateAction refuses what cannot be done beside reaching the desired state.
func validateAction(r *nodeagentv1.ApplyRequest) error {
	refuse := func(format string, args ...any) error {
		return api.Errorf(api.InvalidArgument, "apply to workspace %s: %s", r.GetWorkspaceName(), fmt.Sprintf(format, args...))
	}
	if r.GetAction() != nil && r.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
		return refuse("it is to be removed, so nothing is done with it before")
	}
	var snapshot string
	switch action := r.GetAction().(type) {
	case *nodeagentv1.ApplyRequest_CreateSnapshot:
		snapshot = action.CreateSnapshot
	case *nodeagentv1.ApplyRequest_RestoreSnapshot:
		snapshot = action.RestoreSnapshot
	case *nodeagentv1.ApplyRequest_RemoveSnapshot:
		snapshot = action.RemoveSnapshot
	case *nodeagentv1.ApplyRequest_ForkOf:
		if !ids.MatchString(action.ForkOf) || action.ForkOf == r.GetWorkspaceId() {
			return refuse("%q is not the id of a workspace that it can be made from", action.ForkOf)
		}
		return nil
	default:
		return nil
	}
	if !snapshotNames.MatchString(snapshot) {
		return refuse("%q is not the name of a snapshot", snapshot)
	}
	return nil
}

func networkOf(n vendettav1.Network) (providers.Network, error) {
	switch n {
	case vendettav1.Network_NETWORK_UNSPECIFIED, vendettav1.Network_NETWORK_PRIVATE:
		return providers.NetworkPrivate, nil
	case vendettav1.Network_NETWORK_NONE:
		return providers.NetworkNone, nil
	case vendettav1.Network_NETWORK_HOST:
		return providers.NetworkHost, nil
	}
	return "", api.Errorf(api.InvalidArgument, "apply: network %d is not known here", n)
}

// specOf is the request as a provider wants it.
func specOf(r *nodeagentv1.ApplyRequest) (providers.Spec, error) {
	network, err := networkOf(r.GetSpec().GetNetwork())
	if err != nil {
		return providers.Spec{}, err
	}
	return providers.Spec{
		Workspace:  r.GetWorkspaceId(),
		Name:       r.GetWorkspaceName(),
		Generation: r.GetGeneration(),
		Image:      r.GetSpec().GetImage(),
		Digest:     r.GetSpec().GetImageDigest(),
		Checksum:   r.GetSpec().GetChecksum(),
		Privileged: r.GetSpec().GetPrivileged(),
		Network:    network,
		Resources:  resourcesOf(r.GetSpec().GetResources()),
	}, nil
}

func resourcesOf(r *vendettav1.Resources) providers.Resources {
	return providers.Resources{
		CPUs:        r.GetCpus(),
		MemoryBytes: int64(r.GetMemoryBytes()),
		PIDs:        r.GetPids(),
		DiskBytes:   int64(r.GetDiskBytes()),
	}
}

func graceOf(r *nodeagentv1.ApplyRequest) time.Duration {
	if s := r.GetGraceSeconds(); s > 0 {
		return time.Duration(s) * time.Second
	}
	return 10 * time.Second
}

type serverKey struct{}

// serverOf is the id of the server that a call comes from.
func serverOf(ctx context.Context) string {
	id, _ := ctx.Value(serverKey{}).(string)
	return id
}

// fromServer lets only calls in that name the server they come from.
func fromServer(next http.Handler) http.Handler {
	failures := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(api.ServerHeader)
		if !ids.MatchString(id) {
			_ = failures.Write(w, r, api.ToConnect(api.Errorf(api.InvalidArgument,
				"call the node agent: header %s is %q, not the id of a server", api.ServerHeader, id)))
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), serverKey{}, id)))
	})
}
