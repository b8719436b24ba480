package transport

import (
	"errors"
	"io"
	"testing"
)

func TestError(t *testing.T) {
	t.Parallel()
	bare := &Error{Kind: ErrLogin, Message: "log in to x: refused"}
	if bare.Error() != "log in to x: refused" || !errors.Is(bare, ErrLogin) || errors.Is(bare, io.EOF) {
		t.Errorf("%v is not what it says", bare)
	}
	caused := &Error{Kind: ErrHostKey, Message: "m", Cause: io.EOF}
	if !errors.Is(caused, ErrHostKey) || !errors.Is(caused, io.EOF) {
		t.Errorf("%v lost its cause", caused)
	}
}
