package docker

import (
	"bytes"
	"context"
	"io"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// Console implements providers.Consoler: the end of the container's log.
func (p *Provider) Console(ctx context.Context, workspace string) string {
	c, err := p.find(ctx, workspace)
	if err != nil {
		return ""
	}
	return p.lastWords(ctx, c.ID, consoleTail, consoleQuote)
}

// lastWords are the last lines that the guest program itself wrote, at most limit
// bytes of them. Trouble in reading them is not worth an error beside the one
// they are meant for.
func (p *Provider) lastWords(ctx context.Context, id, lines string, limit int) string {
	stream, err := p.engine.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: lines})
	if err != nil {
		return ""
	}
	defer func() { _ = stream.Close() }()
	var words bytes.Buffer
	if _, err := stdcopy.StdCopy(&words, &words, io.LimitReader(stream, logLimit)); err != nil && words.Len() == 0 {
		return ""
	}
	said := bytes.TrimSpace(words.Bytes())
	if len(said) > limit {
		said = said[len(said)-limit:]
		// Begin with a whole line, or a whole character where there is one line.
		if _, rest, cut := bytes.Cut(said, []byte("\n")); cut {
			said = rest
		}
	}
	// A byte that was cut off, or is no text, must not make it longer.
	return strings.ToValidUTF8(string(said), "?")
}
