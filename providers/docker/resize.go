package docker

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/docker/docker/api/types/container"

	"github.com/vendetta-dev/vendetta/providers"
)

// Resize implements providers.Resizer. All of it is in effect at once, in an
// instance that runs, is paused or is stopped.
func (p *Provider) Resize(ctx context.Context, workspace string, r providers.Resources) (string, error) {
	doing := "resize docker instance of workspace " + workspace
	m, err := p.grouped(ctx, doing)
	if err != nil {
		return "", err
	}
	if err := checkResources(r); err != nil {
		return "", err
	}
	if err := m.check(r); err != nil {
		return "", err
	}
	c, err := p.find(ctx, workspace)
	if err != nil {
		return "", err
	}
	if r == (providers.Resources{}) {
		return "", nil
	}
	// A limit below what is used would end in processes being killed.
	if r.MemoryBytes > 0 && c.State.Running {
		if err := p.checkMemory(ctx, c.ID, workspace, r.MemoryBytes); err != nil {
			return "", p.explain(doing, err)
		}
	}
	limits := container.Resources{NanoCPUs: int64(r.CPUs * 1e9), Memory: r.MemoryBytes}
	if m.limits.swap {
		limits.MemorySwap = limits.Memory
	}
	if r.PIDs > 0 {
		limits.PidsLimit = &r.PIDs
	}
	// The engine puts the former limits back when it cannot set all of these.
	answer, err := p.engine.ContainerUpdate(ctx, c.ID, container.UpdateConfig{Resources: limits})
	for _, warning := range answer.Warnings {
		p.options.Logger.Warn("docker warns", "workspace", workspace, "warning", warning)
	}
	return "", p.explain(doing, err)
}

func (p *Provider) checkMemory(ctx context.Context, id, workspace string, limit int64) error {
	stats, err := p.stats(ctx, id)
	if err != nil {
		return err
	}
	if used := memory(stats.MemoryStats); used > limit {
		return invalid("end processes in it first, or ask for more",
			"workspace %s uses %d MiB of memory, more than the %d MiB asked for", workspace, used>>20, limit>>20)
	}
	return nil
}

func (p *Provider) stats(ctx context.Context, id string) (container.StatsResponse, error) {
	var stats container.StatsResponse
	answer, err := p.engine.ContainerStatsOneShot(ctx, id)
	if err != nil {
		return stats, err
	}
	defer func() { _ = answer.Body.Close() }()
	if err := json.NewDecoder(answer.Body).Decode(&stats); err != nil {
		return stats, fmt.Errorf("read its figures: %w", err)
	}
	return stats, nil
}
