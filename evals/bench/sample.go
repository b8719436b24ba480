//go:build linux

package main

import (
	"math"
	"slices"
	"time"
)

// sample is what was measured of one thing, over all rounds.
type sample []time.Duration

// percentile by nearest rank: the smallest value that is not below p percent of
// the values. 0 of an empty sample.
func (s sample) percentile(p float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

func (s sample) p50() time.Duration { return s.percentile(50) }
func (s sample) p99() time.Duration { return s.percentile(99) }

// record keeps the samples by name, and rates (per second) in the same way.
type record struct {
	samples map[string]sample
	rates   map[string][]float64
	counts  map[string]int
}

func newRecord() *record {
	return &record{samples: map[string]sample{}, rates: map[string][]float64{}, counts: map[string]int{}}
}

func (r *record) add(name string, d time.Duration) { r.samples[name] = append(r.samples[name], d) }

func (r *record) addRate(name string, perSecond float64) {
	r.rates[name] = append(r.rates[name], perSecond)
}

// rate is the median of the rounds.
func (r *record) rate(name string) float64 {
	all := slices.Sorted(slices.Values(r.rates[name]))
	if len(all) == 0 {
		return 0
	}
	return all[(len(all)-1)/2]
}

// perUnit is a total divided by the number of things that caused it.
func perUnit(total time.Duration, n int) time.Duration {
	if n == 0 {
		return 0
	}
	return total / time.Duration(n)
}
