package image

import "errors"

// OverlayOptions of Overlay.
type OverlayOptions struct {
	// Lower is the read-only base.
	Lower string
	// IDBase and IDCount: ids 0 to IDCount-1 of the base are shown as IDBase and
	// up. A count of 0 shows them as they are.
	IDBase, IDCount uint32
	// Upper and Work are the instance's own folders, owned by IDBase.
	Upper, Work string
}

// Overlay makes an overlay mount that is attached nowhere yet and returns its
// descriptor, for move_mount. It needs a root that can mount.
func Overlay(o OverlayOptions) (int, error) { return -1, errors.New("not built yet") }
