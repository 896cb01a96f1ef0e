package app

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/term"
)

// The formats of [SQLClient.Run].
const (
	SQLTable   = "table"
	SQLJSON    = "json"
	SQLCSV     = "csv"
	SQLParquet = "parquet"
)

// problemBytesMax is how much is read of an error.
const problemBytesMax = 64 << 10

// SQLClient sends queries in SQL to the API of a running Sluice.
type SQLClient struct{ Client }

// Run sends one query, and writes its answer in the format. It is an error if the answer
// is not whole, of which a part may be written then.
func (c SQLClient) Run(ctx context.Context, text, format string, out io.Writer) error {
	sent := format
	if format == SQLTable {
		sent = SQLJSON
	}
	resp, err := c.do(ctx, http.MethodPost, "sql", url.Values{"format": {sent}}, http.Header{"Content-Type": {"text/plain; charset=utf-8"}}, []byte(text))
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it is only read
	if format == SQLTable {
		buffered := bufio.NewWriter(out)
		if err := printTable(buffered, resp.Body); err != nil {
			return errors.Join(err, buffered.Flush())
		}
		return buffered.Flush()
	}
	if _, err := io.Copy(out, resp.Body); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// Prompt reads queries, each up to a line that ends in a semicolon, and prints their
// answers as tables, until the input ends or says exit. An error of a query is printed
// too, and ends nothing.
//
// console is a terminal in raw mode: lines can be edited, and the arrows bring earlier
// ones back. pause leaves raw mode while a query runs, so that Ctrl-C ends it, and
// returns what enters raw mode again. width is that of the terminal, 0 if it is not known.
func (c SQLClient) Prompt(ctx context.Context, console io.ReadWriter, pause func() (resume func()), width int) error {
	const first, more = "sluice> ", "     -> "
	t := term.NewTerminal(console, first)
	if width > 0 {
		_ = t.SetSize(width, 1) // never fails without a prompt on the screen
	}
	var lines []string
	for {
		line, err := t.ReadLine()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, term.ErrPasteIndicator):
			return fmt.Errorf("read the prompt: %w", err)
		}
		word := strings.ToLower(strings.TrimRight(strings.TrimSpace(line), ";"))
		if len(lines) == 0 && (word == "exit" || word == "quit" || word == `\q`) {
			return nil
		}
		if len(lines) == 0 && word == "" {
			continue
		}
		lines = append(lines, line)
		if !strings.HasSuffix(strings.TrimSpace(line), ";") {
			t.SetPrompt(more)
			continue
		}
		resume := pause()
		// Through the terminal, which knows how lines end in its mode.
		if err := c.Run(ctx, strings.Join(lines, "\n"), SQLTable, t); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			_, _ = fmt.Fprintln(t, err) // the next read fails too if the terminal is gone
		}
		resume()
		lines = nil
		t.SetPrompt(first)
	}
}

const (
	// tableRowsMax is how many rows are read before the widths of the columns are decided.
	tableRowsMax = 1000
	// cellCharsMax is how much of a value is shown.
	cellCharsMax = 120
)

// table prints rows in columns.
type table struct {
	out     *bufio.Writer
	names   []string
	numbers []bool // columns that are aligned at the right
	widths  []int
	waiting [][]string // rows before the widths are decided
	decided bool
	rows    int
}

// printTable prints the JSON of an answer as a table.
func printTable(out *bufio.Writer, answer io.Reader) error {
	in := json.NewDecoder(answer)
	t := &table{out: out}
	for {
		token, err := in.Token()
		if err != nil {
			return tableError(err)
		}
		switch token {
		case "columns":
			var columns []struct{ Name, Type string }
			if err := in.Decode(&columns); err != nil {
				return tableError(err)
			}
			for _, c := range columns {
				t.names = append(t.names, cell(printable(c.Name)))
				t.numbers = append(t.numbers, isNumber(c.Type))
			}
		case "rows":
			if _, err := in.Token(); err != nil { // the bracket
				return tableError(err)
			}
			for in.More() {
				var row []json.RawMessage
				if err := in.Decode(&row); err != nil {
					return tableError(err)
				}
				t.add(row)
			}
			for range 2 { // the end of the rows, and of all
				if _, err := in.Token(); err != nil {
					return tableError(err)
				}
			}
			return t.end()
		}
	}
}

func tableError(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read the answer: %w", err)
}

// isNumber reports whether values of the type are numbers.
func isNumber(kind string) bool {
	kind = strings.TrimPrefix(strings.TrimPrefix(kind, "LowCardinality("), "Nullable(")
	for _, prefix := range []string{"Int", "UInt", "Float", "BFloat", "Decimal"} {
		if rest, ok := strings.CutPrefix(kind, prefix); ok && !strings.HasPrefix(rest, "erval") {
			return true
		}
	}
	return false
}

func (t *table) add(row []json.RawMessage) {
	t.rows++
	cells := make([]string, len(row))
	for i, value := range row {
		cells[i] = cellOf(value)
	}
	if t.decided {
		t.line(cells)
		return
	}
	if t.waiting = append(t.waiting, cells); len(t.waiting) == tableRowsMax {
		t.decide()
	}
}

// decide decides the widths of the columns, and prints what has waited for that.
func (t *table) decide() {
	t.decided = true
	t.widths = make([]int, len(t.names))
	for i, name := range t.names {
		t.widths[i] = len([]rune(name))
		for _, row := range t.waiting {
			if i < len(row) {
				t.widths[i] = max(t.widths[i], len([]rune(row[i])))
			}
		}
	}
	t.line(t.names)
	for i, width := range t.widths {
		if i > 0 {
			_ = t.out.WriteByte('+') // the error comes back from Flush
		}
		_, _ = t.out.WriteString(strings.Repeat("-", width+2))
	}
	_ = t.out.WriteByte('\n')
	for _, row := range t.waiting {
		t.line(row)
	}
	t.waiting = nil
}

func (t *table) line(cells []string) {
	var b strings.Builder
	for i, text := range cells {
		if i > 0 {
			b.WriteString(" |")
		}
		fill := ""
		if i < len(t.widths) {
			fill = strings.Repeat(" ", max(0, t.widths[i]-len([]rune(text))))
		}
		b.WriteByte(' ')
		if i < len(t.numbers) && t.numbers[i] {
			b.WriteString(fill + text)
		} else {
			b.WriteString(text + fill)
		}
	}
	_, _ = t.out.WriteString(strings.TrimRight(b.String(), " ") + "\n") // the error comes back from Flush
}

func (t *table) end() error {
	if !t.decided {
		t.decide()
	}
	rows := "rows"
	if t.rows == 1 {
		rows = "row"
	}
	_, err := fmt.Fprintf(t.out, "(%d %s)\n", t.rows, rows)
	return err
}

// cellOf is a value as it is shown.
func cellOf(value json.RawMessage) string {
	var text string
	switch {
	case string(value) == "null":
		return "NULL"
	case len(value) > 0 && value[0] == '"' && json.Unmarshal(value, &text) == nil:
		return cell(printable(text))
	}
	return cell(printable(string(value)))
}

// cell is what is shown of a text.
func cell(text string) string {
	runes := []rune(text)
	if len(runes) <= cellCharsMax {
		return text
	}
	return string(runes[:cellCharsMax-1]) + "…"
}

// printable makes a text safe for a terminal: what moves the cursor, changes colours or
// the direction of writing, or is not seen, becomes an escape as in Go.
func printable(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}
