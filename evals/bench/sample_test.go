//go:build linux

package main

import (
	"testing"
	"time"
)

func TestPercentileIsByNearestRank(t *testing.T) {
	hundred := make(sample, 0, 100)
	for i := 100; i > 0; i-- {
		hundred = append(hundred, time.Duration(i))
	}
	for _, c := range []struct {
		s    sample
		p    float64
		want time.Duration
	}{
		{nil, 50, 0},
		{sample{7}, 50, 7},
		{sample{7}, 99, 7},
		{sample{3, 1, 2}, 50, 2},
		{sample{4, 1, 3, 2}, 50, 2},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
		{hundred, 0, 1},
	} {
		if got := c.s.percentile(c.p); got != c.want {
			t.Errorf("%v at %v percent: %d, want %d", c.s, c.p, got, c.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("the sample itself was sorted")
	}
}

func TestRateIsTheMedianOfTheRounds(t *testing.T) {
	r := newRecord()
	if r.rate("none") != 0 {
		t.Error("a rate of nothing")
	}
	for _, v := range []float64{9, 1, 5} {
		r.addRate("r", v)
	}
	if got := r.rate("r"); got != 5 {
		t.Errorf("rate %v", got)
	}
}

func TestPerUnitOfNothing(t *testing.T) {
	if got := perUnit(time.Second, 0); got != 0 {
		t.Errorf("%s", got)
	}
	if got := perUnit(time.Second, 4); got != 250*time.Millisecond {
		t.Errorf("%s", got)
	}
}
