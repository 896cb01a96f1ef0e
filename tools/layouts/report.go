package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// markdown writes the figures as tables: one of costs, and three of each
// operation, clean / with fresh updates and deletes where both were measured:
// the medians of time, of the server's CPU time and of the rows read.
func (r *report) markdown(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString("| layout | M rows | M rows/s in | CPU µs/row in | merge s | merge CPU s | bytes/row | index KB | parts clean / fresh | 1 % updates in s | 1 % deletes in s |\n" +
		"|" + strings.Repeat("---|", 11) + "\n")
	for _, l := range r.Layouts {
		fmt.Fprintf(&b, "| %s | %.3g | %.2f | %.2f | %.1f | %.1f | %.1f | %d | %d / %d | %.2f | %.2f |\n",
			l.Name, float64(l.Rows)/1e6, l.InsertRowsPerSecond/1e6, l.InsertCPUMicrosPerRow, l.MergeSeconds, l.MergeCPUSeconds,
			l.BytesPerRow, l.PrimaryIndexBytes/1000, l.Parts, l.PartsFresh, l.Update.Median*freshInserts, l.Delete.Median*freshInserts)
	}
	for _, table := range []struct {
		title string
		value func(spread) string
	}{
		{"Seconds", func(s spread) string { return seconds(s.Median) }},
		{"CPU seconds", func(s spread) string { return seconds(s.CPU) }},
		{"Rows read, thousands", func(s spread) string { return fmt.Sprintf("%.4g", float64(s.Rows)/1000) }},
	} {
		b.WriteString("\n| " + table.title + " |")
		for _, op := range operations() {
			b.WriteString(" " + op.name + " |")
		}
		b.WriteString("\n|" + strings.Repeat("---|", len(operations())+1) + "\n")
		for _, l := range r.Layouts {
			fmt.Fprintf(&b, "| %s |", l.Name)
			for _, op := range operations() {
				clean, isClean := l.Clean[op.name]
				fresh, isFresh := l.Fresh[op.name]
				switch {
				case isClean && isFresh:
					fmt.Fprintf(&b, " %s / %s |", table.value(clean), table.value(fresh))
				case isClean:
					fmt.Fprintf(&b, " %s |", table.value(clean))
				case isFresh:
					fmt.Fprintf(&b, " %s |", table.value(fresh))
				default:
					b.WriteString(" |")
				}
			}
			b.WriteString("\n")
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// seconds writes a time with three digits at most.
func seconds(s float64) string {
	switch {
	case s >= 1:
		return fmt.Sprintf("%.2f", s)
	case s >= 0.1:
		return fmt.Sprintf("%.3f", s)
	}
	return fmt.Sprintf("%.4f", s)
}
