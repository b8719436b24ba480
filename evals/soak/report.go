//go:build linux

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// comparison is one measure of one subject, before and after.
type comparison struct {
	subject, measure string
	before, after    int64
	slack            int64
	grown            bool
}

// compare lists every measure of every subject of both snapshots. A subject that
// is missing in one of them holds nothing there.
func compare(before, after snapshot) []comparison {
	subjects := slices.Sorted(maps.Keys(after))
	for subject := range before {
		if _, both := after[subject]; !both {
			subjects = append(subjects, subject)
		}
	}
	var list []comparison
	for _, subject := range subjects {
		measures := maps.Clone(after[subject])
		if measures == nil {
			measures = usage{}
		}
		maps.Copy(measures, before[subject])
		for _, measure := range slices.Sorted(maps.Keys(measures)) {
			c := comparison{
				subject: subject, measure: measure, slack: slack[measure],
				before: before[subject][measure], after: after[subject][measure],
			}
			c.grown = c.after > c.before+c.slack
			list = append(list, c)
		}
	}
	return list
}

// report prints the comparison and says whether nothing grew too much.
func report(w io.Writer, before, after snapshot) bool {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "WHO\tWHAT\tBEFORE\tAFTER\tGREW BY\tALLOWED\tOK")
	fine := true
	for _, c := range compare(before, after) {
		word := "yes"
		if c.grown {
			word, fine = "NO", false
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%+d\t%d\t%s\n", c.subject, c.measure, c.before, c.after, c.after-c.before, c.slack, word)
	}
	_ = t.Flush()
	return fine
}
