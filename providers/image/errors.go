package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/vendetta-dev/vendetta/providers"
)

// Failures that are told apart on the way and get their words in explain.
var (
	errStalled = errors.New("no byte came for too long")
	errPlain   = errors.New("plain http is for loopback only")
)

// mismatch: bytes came whole and are not the ones that were asked for.
type mismatch struct{ what, want, got string }

func (e *mismatch) Error() string {
	return fmt.Sprintf("%s has the digest %s, expected %s", e.what, e.got, e.want)
}

// truncated: bytes ended before their time.
type truncated struct {
	what      string
	got, want int64
	cause     error
}

func (e *truncated) Error() string {
	if e.want < 0 {
		return fmt.Sprintf("%s ended after %d bytes", e.what, e.got)
	}
	return fmt.Sprintf("%s ended after %d of %d bytes", e.what, e.got, e.want)
}

func (e *truncated) Unwrap() error { return e.cause }

// refused: what an image or a disk says is not taken.
type refused struct{ why, next string }

func (e *refused) Error() string { return e.why }

func refuse(format string, args ...any) error { return &refused{why: fmt.Sprintf(format, args...)} }

func invalid(message, next string) error {
	return &providers.Error{Kind: providers.ErrInvalid, Message: message, Next: next}
}

// explain turns what went wrong with ref into an error of the contract. doing is
// the operation and what it was done to.
func explain(ctx context.Context, doing string, ref reference, err error) error {
	var own *providers.Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	e := &providers.Error{Kind: providers.ErrImage, Message: fmt.Sprintf("%s: %v", doing, err), Cause: err}
	var (
		wrong  *mismatch
		short  *truncated
		no     *refused
		answer *transport.Error
		path   *fs.PathError
	)
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	switch {
	case full:
		e.Kind = providers.ErrExhausted
		e.Message = doing + ": the disk of the node is full"
		e.Next = "free space on the node: vendetta image prune removes the images that nothing uses"
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Message = nil, doing+": cancelled"
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		e.Kind, e.Message = nil, doing+": it took too long"
		e.Next = "try again; vendetta image pull fetches an image ahead of time"
	case errors.Is(err, errStalled):
		e.Message = fmt.Sprintf("%s: %s sends nothing any more", doing, ref.from())
		e.Next = "try again, or bring the image by hand: " + byHand(ref)
	case errors.As(err, &wrong):
		e.Message = fmt.Sprintf("%s: %v", doing, wrong)
		e.Next = "try again; if it stays, what " + ref.from() + " serves is damaged or was exchanged: do not use it"
		if ref.kind == kindDisk {
			e.Next = "compare the checksum with what the publisher says; the file was not kept"
		}
	case errors.As(err, &short):
		e.Message = fmt.Sprintf("%s: %v", doing, short)
		e.Next = "try again, or bring the image by hand: " + byHand(ref)
		if ref.local() {
			e.Next = "copy the file to the node again"
		}
	case errors.As(err, &no):
		e.Message = fmt.Sprintf("%s: %s", doing, no.why)
		e.Next = "use another image; vendetta takes OCI and Docker images for Linux"
		if ref.kind == kindDisk {
			e.Next = "use a disk image that stands alone, in the format qcow2 or raw (qemu-img convert -O qcow2 IN OUT makes one)"
		}
		e.Next = cmp.Or(no.next, e.Next)
	case errors.As(err, &answer):
		explainAnswer(e, doing, ref, answer)
	case errors.Is(err, errPlain):
		e.Message = fmt.Sprintf("%s: %v", doing, errPlain)
		e.Next = "use an address that serves https"
	case isNet(err):
		e.Message = fmt.Sprintf("%s: %s cannot be reached from the node: %v", doing, ref.from(), lastError(err))
		e.Next = "check the node's network and its HTTPS_PROXY, or bring the image by hand: " + byHand(ref)
	case ref.local() && errors.As(err, &path) && errors.Is(err, fs.ErrNotExist):
		e.Message = fmt.Sprintf("%s: there is no such file on the node", doing)
		e.Next = "check the path; it is one of the node, not of the machine you type on"
	case ref.local() && errors.Is(err, fs.ErrPermission):
		e.Next = "let the user of the node agent read it"
	case errors.As(err, &path) && ref.local():
		e.Next = "check that it is an OCI layout, what docker save wrote, or a disk image"
	case errors.As(err, &path):
		e.Kind = nil // the store's own folder
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		e.Message = fmt.Sprintf("%s: %s stops in the middle", doing, ref.from())
		e.Next = "try again, or bring the image by hand: " + byHand(ref)
	}
	return e
}

// explainAnswer words what a server answered.
func explainAnswer(e *providers.Error, doing string, ref reference, answer *transport.Error) {
	login := fmt.Sprintf("docker login %s on the node as %s", ref.from(), userName())
	switch code := answer.StatusCode; {
	case ref.kind == kindDisk && (code == http.StatusUnauthorized || code == http.StatusForbidden):
		e.Message = fmt.Sprintf("%s: %s refuses it (%d)", doing, ref.from(), code)
		e.Next = "use an address that needs no login"
	case code == http.StatusUnauthorized:
		e.Message = fmt.Sprintf("%s: %s refuses it without a login (401); the image is private or does not exist", doing, ref.from())
		e.Next = "check the name, or " + login
	case code == http.StatusForbidden:
		e.Message = fmt.Sprintf("%s: %s denies it to this login (403)", doing, ref.from())
		e.Next = login + ", with an account that may pull it"
	case code == http.StatusNotFound:
		e.Message = fmt.Sprintf("%s: %s does not have it (404)", doing, ref.from())
		e.Next = "check the name and the tag"
		if ref.kind == kindDisk {
			e.Next = "check the address"
		}
	case code == http.StatusTooManyRequests:
		e.Message = fmt.Sprintf("%s: %s was asked too often (429)", doing, ref.from())
		e.Next = "wait and try again; " + login + " often raises the limit"
	case code >= 500:
		e.Message = fmt.Sprintf("%s: %s is in trouble (%d)", doing, ref.from(), code)
		e.Next = "try again later, or bring the image by hand: " + byHand(ref)
	default:
		e.Message = fmt.Sprintf("%s: %s answers %d %s", doing, ref.from(), code, http.StatusText(code))
		e.Next = "check the reference, or bring the image by hand: " + byHand(ref)
	}
}

func byHand(ref reference) string {
	if ref.kind == kindDisk {
		return "copy the disk image to the node and name it by its absolute path"
	}
	return fmt.Sprintf("docker save %s -o image.tar elsewhere, then vendetta image import image.tar", ref.text)
}

// isNet says whether err came from the network and not from a server's answer. A
// net.Error says nothing here: file systems' errors have its methods too.
func isNet(err error) bool {
	var (
		op      *net.OpError
		lookUp  *net.DNSError
		request *url.Error
	)
	return errors.As(err, &op) || errors.As(err, &lookUp) || errors.As(err, &request)
}

// lastError is the innermost sentence; the outer ones repeat addresses.
func lastError(err error) string {
	text := err.Error()
	var op *net.OpError
	if errors.As(err, &op) {
		text = op.Error()
	}
	const most = 200
	if text = strings.TrimSpace(text); len(text) > most {
		text = text[:most] + "..."
	}
	return text
}

func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Geteuid())
}

// errAbsent is the cause of absent.
var errAbsent = errors.New("not in the store")

func absent(digest string) error {
	return &providers.Error{
		Kind:    providers.ErrImage,
		Message: fmt.Sprintf("image %s is not on this node any more", digest),
		Next:    "fetch it again: vendetta image pull",
		Cause:   errAbsent,
	}
}

func isAbsent(err error) bool { return errors.Is(err, errAbsent) }
