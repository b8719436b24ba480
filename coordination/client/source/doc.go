// Package source brings a git repository of the user's machine into a workspace:
// Pack makes a self-contained clone of it together with the files that are not
// committed yet, and Send streams both into the guest.
//
// The repository is read by the git program of the user. No hook, filter of ours
// or submodule command runs for it, nothing of the repository's own
// configuration is copied but the address of its origin without credentials, and
// no symlink is followed.
//
// Not brought: what git ignores, the contents of submodules and of nested
// repositories (Archive.Notes names them), stashes, the reflog, and what was
// staged as such: it arrives as an uncommitted change. Files of Git LFS arrive as
// they stand in the work tree, or as pointers where only HEAD is asked for.
package source
