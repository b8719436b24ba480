package fake

import (
	"cmp"
	"context"
	"fmt"

	"github.com/vendetta-dev/vendetta/providers"
)

// Resize implements providers.Resizer. The limits are kept and hold nobody.
func (p *Provider) Resize(ctx context.Context, workspace string, r providers.Resources) (string, error) {
	m := p.machine
	if err := m.enter(ctx, Resize, workspace); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.can(providers.CapabilityResize, Resize, workspace); err != nil {
		return "", err
	}
	i, err := p.find(workspace)
	if err != nil {
		return "", err
	}
	if r.CPUs < 0 || r.MemoryBytes < 0 || r.PIDs < 0 || r.DiskBytes < 0 {
		return "", &providers.Error{Kind: providers.ErrInvalid, Message: fmt.Sprintf("resize workspace %s: a limit is negative", workspace)}
	}
	now := i.spec.Resources
	if i.next != nil {
		now = *i.next
	}
	if r.DiskBytes > 0 {
		if err := m.can(providers.CapabilityLimitDisk, Resize, workspace); err != nil {
			return "", err
		}
		if r.DiskBytes < now.DiskBytes {
			return "", &providers.Error{
				Kind:    providers.ErrInvalid,
				Message: fmt.Sprintf("resize workspace %s: a disk of %d bytes cannot shrink to %d", workspace, now.DiskBytes, r.DiskBytes),
			}
		}
	}
	limits := merge(r, now)
	if m.resizeNote != "" && i.run != nil {
		i.next = &limits
		return m.resizeNote, nil
	}
	i.spec.Resources, i.next = limits, nil
	return "", nil
}

// merge is r with what it leaves open taken from base.
func merge(r, base providers.Resources) providers.Resources {
	return providers.Resources{
		CPUs:        cmp.Or(r.CPUs, base.CPUs),
		MemoryBytes: cmp.Or(r.MemoryBytes, base.MemoryBytes),
		PIDs:        cmp.Or(r.PIDs, base.PIDs),
		DiskBytes:   cmp.Or(r.DiskBytes, base.DiskBytes),
	}
}

// Console implements providers.Consoler.
func (p *Provider) Console(_ context.Context, workspace string) string {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	if _, err := p.find(workspace); err != nil {
		return ""
	}
	return p.machine.consoles[workspace]
}
