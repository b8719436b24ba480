package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

type kind int

const (
	kindRegistry kind = iota
	// kindPath is an OCI layout or an archive on this machine.
	kindPath
	kindDisk
)

// reference is what a user calls an image by.
type reference struct {
	kind kind
	// text is what the user wrote; a password in an address is left out.
	text string
	// canonical is one spelling for all that mean the same.
	canonical string
	// named is set for kindRegistry.
	named name.Reference
	// path of kindPath, and of a kindDisk on this machine.
	path string
	// address of a kindDisk elsewhere.
	address *url.URL
}

const maxReference = 4096

// parse reads a reference; the error is ErrInvalid.
func parse(text string) (reference, error) {
	switch {
	case text == "":
		return reference{}, invalid("image: no reference", "name an image, e.g. debian:12")
	case len(text) > maxReference, strings.ContainsAny(text, "\x00\n\r"):
		return reference{}, invalid("image: that is not a reference", "name an image, e.g. debian:12")
	case IsDisk(text):
		return parseDisk(text)
	}
	path, isOCI := strings.CutPrefix(text, "oci:")
	if isOCI && !filepath.IsAbs(path) {
		return reference{}, invalid(fmt.Sprintf("image %q: the path is not absolute", text), "give the absolute path of the OCI layout on the node, e.g. oci:/srv/images/debian")
	}
	if filepath.IsAbs(path) {
		path = filepath.Clean(path)
		return reference{kind: kindPath, text: text, canonical: path, path: path}, nil
	}
	named, err := name.ParseReference(text)
	if err == nil && strings.HasPrefix(text, "-") {
		err = errors.New("a name begins with a letter or a digit")
	}
	if err != nil {
		return reference{}, invalid(
			fmt.Sprintf("image %q: %v", text, err),
			"name it as docker pull does, e.g. debian:12 or ghcr.io/owner/name:tag, or give the absolute path of an OCI layout or a docker save archive on the node",
		)
	}
	return reference{kind: kindRegistry, text: text, canonical: named.Name(), named: named}, nil
}

// IsDisk tells a disk image's reference from a container image's: an https
// address, or the absolute path of a file that ends in .qcow2, .img or .raw.
func IsDisk(ref string) bool {
	if strings.HasPrefix(ref, "https://") || strings.HasPrefix(ref, "http://") {
		return true
	}
	if !filepath.IsAbs(ref) {
		return false
	}
	switch strings.ToLower(filepath.Ext(ref)) {
	case ".qcow2", ".img", ".raw":
		return true
	}
	return false
}

func parseDisk(text string) (reference, error) {
	if filepath.IsAbs(text) {
		path := filepath.Clean(text)
		return reference{kind: kindDisk, text: text, canonical: path, path: path}, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Opaque != "" {
		return reference{}, invalid("disk image: that is not an address", "give it as https://HOST/PATH.qcow2")
	}
	if u.Scheme != "https" && !isLoopback(u.Hostname()) {
		return reference{}, invalid(fmt.Sprintf("disk image %s: %v", u.Redacted(), errPlain), "use an address that serves https")
	}
	u.Fragment = ""
	return reference{kind: kindDisk, text: u.Redacted(), canonical: u.String(), address: u}, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// local: it lies on this machine.
func (r reference) local() bool { return r.path != "" }

// from names where the image comes from.
func (r reference) from() string {
	switch {
	case r.named != nil:
		if host := r.named.Context().RegistryStr(); host != name.DefaultRegistry {
			return host
		}
		return "docker.io"
	case r.address != nil:
		return r.address.Host
	}
	return r.path
}

// key is a file name for the reference on a platform.
func (r reference) key(platform string) string {
	sum := sha256.Sum256([]byte(platform + "\n" + r.canonical))
	return hex.EncodeToString(sum[:])
}

// digestName checks a digest and turns it into a file name.
func digestName(digest string) (string, error) {
	sum, ok := strings.CutPrefix(digest, "sha256:")
	if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != sha256.Size || sum != strings.ToLower(sum) {
		return "", invalid(fmt.Sprintf("image digest %.100q is not sha256:HEX", digest), "give the digest as vendetta image list shows it")
	}
	return "sha256-" + sum, nil
}
