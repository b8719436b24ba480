package docker

import (
	"context"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/versions"

	"github.com/vendetta-dev/vendetta/providers"
)

// diskUsageAPI is the first version that measures volumes alone; before it the
// engine measures every image as well, which takes seconds.
const diskUsageAPI = "1.42"

// Usage implements providers.Provider. DiskBytes is that of the volumes, -1 for
// an engine before 23.0.
func (p *Provider) Usage(ctx context.Context, workspace string) (providers.Usage, error) {
	c, err := p.runs(ctx, workspace)
	if err != nil {
		return providers.Usage{}, err
	}
	doing := "measure workspace " + workspace
	stats, err := p.stats(ctx, c.ID)
	if err != nil {
		return providers.Usage{}, p.explain(doing, err)
	}
	disk, err := p.diskUsage(ctx, workspace)
	if err != nil {
		return providers.Usage{}, p.explain(doing, err)
	}
	return providers.Usage{
		CPU:         time.Duration(min(stats.CPUStats.CPUUsage.TotalUsage, 1<<62)),
		MemoryBytes: memory(stats.MemoryStats),
		DiskBytes:   disk,
	}, nil
}

// memory is the usage less what the page cache could give back at once, as
// docker stats counts it: total_inactive_file under cgroup v1, inactive_file
// under v2.
func memory(stats container.MemoryStats) int64 {
	cache, v1 := stats.Stats["total_inactive_file"]
	if !v1 {
		cache = stats.Stats["inactive_file"]
	}
	if cache > stats.Usage {
		cache = 0
	}
	return int64(min(stats.Usage-cache, 1<<62))
}

func (p *Provider) diskUsage(ctx context.Context, workspace string) (int64, error) {
	if versions.LessThan(p.engine.ClientVersion(), diskUsageAPI) {
		return -1, nil
	}
	usage, err := p.engine.DiskUsage(ctx, types.DiskUsageOptions{Types: []types.DiskUsageObject{types.VolumeObject}})
	if err != nil {
		return 0, err
	}
	total := int64(0)
	for _, volume := range usage.Volumes {
		if p.owns(volume.Labels, workspace) && volume.UsageData != nil && volume.UsageData.Size > 0 {
			total += volume.UsageData.Size
		}
	}
	return total, nil
}
