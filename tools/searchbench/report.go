package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/bench"
)

// report returns the figures in Markdown.
func report(m bench.Machine, r *results) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Sluice %s on %s, %d cores, %.0f GB of memory, %s, ClickHouse %s, %s. Medians in milliseconds, warm, clean · after 1 %% of all rows changed and 1 %% were deleted.\n",
		m.Sluice, m.CPU, m.Cores, float64(m.Memory)/1e9, m.System, m.Engine, m.Date)
	fmt.Fprintf(&b, "The texts are recombined from pieces of %s real texts, the vectors from %s real embeddings.\n\n", count(r.texts), count(r.realVectors))
	row := func(name, targets string, value func(s *result) string) {
		fmt.Fprintf(&b, "| %s | %s |", name, targets)
		for i := range r.sizes {
			fmt.Fprintf(&b, " %s |", value(&r.sizes[i]))
		}
		b.WriteByte('\n')
	}
	row("contents, and events", "target", func(s *result) string { return count(s.size.contents) })
	b.WriteString(strings.Repeat("|---", 2+len(r.sizes)) + "|\n")
	row("vectors", "", func(s *result) string { return count(s.size.vectors) })
	for i, q := range questions() {
		row(q.name, q.targets, func(s *result) string { return millis(s.clean[i]) + " · " + millis(s.changed[i]) })
	}
	row("load average of the machine, before and after the questions", "", func(s *result) string { return s.load[0] + ", " + s.load[1] })
	row("recall of the nearest 10, of recombined embeddings", "0.98", func(s *result) string { return fmt.Sprintf("%.3f", s.recall) })
	row("contents on disk, without the index", "", func(s *result) string { return bytesText(s.contents) })
	row("index of words on disk", "", func(s *result) string {
		return fmt.Sprintf("%s, %s", bytesText(s.index), share(s.index, s.contents))
	})
	row("vectors on disk", "", func(s *result) string { return bytesText(s.vectors) })
	row("signs on disk", "", func(s *result) string {
		return fmt.Sprintf("%s, %s", bytesText(s.signs), share(s.signs, s.vectors))
	})
	row("time to build the index of words", "", func(s *result) string { return seconds(s.words) })
	row("… to merge the contents, without it", "", func(s *result) string { return seconds(s.merged) })
	row("… to store the signs for rows of an older version", "", func(s *result) string { return seconds(s.signsTime) })
	fmt.Fprintf(&b, "\nOf the ten nearest among the %s real embeddings alone, the signs found %.3f.\n", count(r.realVectors), r.realRecall)
	return b.String()
}

func millis(d time.Duration) string  { return fmt.Sprintf("%.0f", float64(d)/float64(time.Millisecond)) }
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// share writes a share. It is not known where small parts keep all columns in one file.
func share(of, whole int64) string {
	if whole == 0 {
		return "not known"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(of)/float64(whole))
}

// count writes a number for people.
func count(n int) string {
	if n >= 1_000_000 {
		return fmt.Sprintf("%.4g M", float64(n)/1e6)
	}
	text := fmt.Sprint(n)
	if len(text) > 3 {
		text = text[:len(text)-3] + "," + text[len(text)-3:]
	}
	return text
}

// bytesText writes bytes for people.
func bytesText(n int64) string {
	for _, unit := range []struct {
		name string
		size float64
	}{{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if float64(n) >= unit.size {
			return fmt.Sprintf("%.3g %s", float64(n)/unit.size, unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
