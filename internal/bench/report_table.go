package bench

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// table has a column of names on the left, and figures.
type table struct {
	header []string
	rows   [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// drop removes a column.
func (t *table) drop(column int) {
	t.header = slices.Delete(t.header, column, column+1)
	for i, row := range t.rows {
		t.rows[i] = slices.Delete(row, column, column+1)
	}
}

// markdown writes it as a table of Markdown, and an empty line.
func (t *table) markdown(b *bytes.Buffer) {
	line := func(cells []string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.header)
	b.WriteString("|---|" + strings.Repeat("---:|", len(t.header)-1) + "\n")
	for _, row := range t.rows {
		line(row)
	}
	b.WriteByte('\n')
}

// text writes it with spaces, the figures aligned at their right.
func (t *table) text(b *bytes.Buffer) {
	widths := make([]int, len(t.header))
	lines := append([][]string{t.header}, t.rows...)
	for _, row := range lines {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range lines {
		fmt.Fprintf(b, "  %-*s", widths[0], row[0])
		for i, cell := range row[1:] {
			fmt.Fprintf(b, "  %*s", widths[i+1], cell)
		}
		b.WriteByte('\n')
	}
}

const notMeasured = "not measured"

func seconds(s float64) string      { return fmt.Sprintf("%.2f s", s) }
func milliseconds(v float64) string { return millisNumber(v) + " ms" }
func perSecond(v float64) string    { return count(v) + "/s" }
func times(v float64) string        { return fmt.Sprintf("%.2f×", v) }
func mebibytes(v float64) string    { return fmt.Sprintf("%.0f MiB", v) }

// millisNumber has a decimal where it matters.
func millisNumber(v float64) string {
	if v < 100 {
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return count(v)
}

// count is a number without decimals, its thousands separated by commas.
func count(v float64) string {
	digits := strconv.FormatFloat(v, 'f', 0, 64)
	first := 0
	if strings.HasPrefix(digits, "-") {
		first = 1
	}
	for i := len(digits) - 3; i > first; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
