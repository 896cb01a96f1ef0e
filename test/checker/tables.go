package checker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
)

// Database is a ClickHouse database, by its HTTP interface.
type Database struct {
	Addr, Name, User, Password string
}

// Query returns the lines of the answer to a statement, each a row of strings.
func (d Database) Query(ctx context.Context, sql string) ([][]string, error) {
	u := url.URL{Scheme: "http", Host: d.Addr, Path: "/", RawQuery: url.Values{
		"database": {d.Name}, "default_format": {"JSONCompactStringsEachRow"},
	}.Encode()}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader([]byte(sql)))
	if err != nil {
		return nil, err
	}
	q.SetBasicAuth(d.User, d.Password)
	q.Close = true // a kept connection holds up the server's stop
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
		return nil, fmt.Errorf("ClickHouse answers %s: %s", answer.Status, text)
	}
	var rows [][]string
	in := bufio.NewReader(answer.Body)
	for decoder := json.NewDecoder(in); ; {
		var row []string
		if err := decoder.Decode(&row); err == io.EOF {
			return rows, nil
		} else if err != nil {
			return nil, fmt.Errorf("read rows: %w", err)
		}
		rows = append(rows, row)
	}
}

// ReadTables reads every row of the tables as a reader would find it: the one
// with the highest version of each key, by a FINAL that takes no shortcut.
func (d Database) ReadTables(ctx context.Context) (*Tables, error) {
	t := newTables()
	for _, table := range []struct {
		sql  string
		take func(*row)
	}{
		{
			`SELECT toString(id), conversation_id, event_name, ifNull(error, ''), isNotNull(latency),
				toString(reinterpretAsUInt64(ifNull(latency, 0))), metadata, alias, toString(created), toString(version), deleted
				FROM events FINAL`,
			func(r *row) {
				c := event.Core{
					ID: r.id(), ConversationID: r.text(), EventName: r.text(), Error: r.text(), HasLatency: r.number() == 1,
					Latency: math.Float64frombits(r.number()), Metadata: r.text(), Alias: r.text(),
					Created: event.Position(r.number()), Version: event.Version(r.number()), Deleted: r.number() == 1,
				}
				put(r, t.Cores, c.ID, c)
			},
		},
		{
			"SELECT toString(id), toUInt8(field), kind, base64Encode(content), toString(version), deleted FROM event_contents FINAL",
			func(r *row) {
				c := event.ContentRow{
					ID: r.id(), Field: event.FieldInput + event.Field(r.number()-1),
					Content: event.Content{Kind: event.Kind(r.number()), Data: r.base64()},
					Version: event.Version(r.number()), Deleted: r.number() == 1,
				}
				put(r, t.Contents, wideKey{c.ID, c.Field}, c)
			},
		},
		{
			`SELECT toString(id), toUInt8(field), arrayStringConcat(arrayMap(x -> hex(reinterpretAsFixedString(x)), vector)),
				toString(version), deleted FROM event_embeddings FINAL`,
			func(r *row) {
				e := event.EmbeddingRow{
					ID: r.id(), Field: event.FieldInputEmbeddings + event.Field(r.number()-1), Vector: r.hex(),
					Version: event.Version(r.number()), Deleted: r.number() == 1,
				}
				put(r, t.Embeddings, wideKey{e.ID, e.Field}, e)
			},
		},
		{
			"SELECT alias, toString(id), toString(version), deleted FROM event_aliases FINAL",
			func(r *row) {
				a := event.AliasRow{Alias: r.text(), ID: r.id(), Version: event.Version(r.number())}
				state := r.number()
				a.Deleted, a.Refused = state == 1, state == 2
				put(r, t.Aliases, a.Alias, a)
			},
		},
	} {
		rows, err := d.Query(ctx, table.sql)
		if err != nil {
			return nil, err
		}
		for _, cells := range rows {
			r := &row{cells: cells}
			table.take(r)
			if r.err != nil {
				return nil, fmt.Errorf("row %q: %w", cells, r.err)
			}
		}
	}
	return t, nil
}

// row reads the cells of a row one after the other, up to the first error.
type row struct {
	cells []string
	err   error
}

func (r *row) text() string {
	text := r.cells[0]
	r.cells = r.cells[1:]
	return text
}

func (r *row) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *row) number() uint64 {
	text := r.text()
	if text == "true" || text == "false" {
		return map[string]uint64{"true": 1}[text]
	}
	n, err := strconv.ParseUint(text, 10, 64)
	r.fail(err)
	return n
}

func (r *row) id() event.ID {
	text := r.text()
	var id event.ID
	// Not ParseID: an internal id and that of an alias tombstone are none.
	b, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(text), []byte("-"), nil)))
	r.fail(err)
	copy(id[:], b)
	return id
}

func (r *row) base64() []byte {
	b, err := base64.StdEncoding.DecodeString(r.text())
	r.fail(err)
	return b
}

func (r *row) hex() []byte {
	b, err := hex.DecodeString(r.text())
	r.fail(err)
	return b
}

// put takes a row in, and fails where its key is there already.
func put[K comparable, R any](r *row, rows map[K]R, key K, value R) {
	if _, ok := rows[key]; ok {
		r.fail(errors.New("FINAL shows its key twice"))
	}
	rows[key] = value
}

// counting leaves out what no reader counts: rows of creates that lost, which
// may be there or not, by how the log was cut into batches.
func (t *Tables) counting() *Tables {
	c := newTables()
	c.Cores, c.Aliases = t.Cores, t.Aliases
	for k, row := range t.Contents {
		if row.Version.Counts(t.Cores[k.id].Created) {
			c.Contents[k] = row
		}
	}
	for k, row := range t.Embeddings {
		if row.Version.Counts(t.Cores[k.id].Created) {
			c.Embeddings[k] = row
		}
	}
	return c
}

// errorsMax is how many differences of one kind are told.
const errorsMax = 5

// Differences tells where two sets of tables differ in what readers count.
func Differences(want, got *Tables) []error {
	want, got = want.counting(), got.counting()
	var errs []error
	errs = append(errs, differences("events", want.Cores, got.Cores)...)
	errs = append(errs, differences("event_contents", want.Contents, got.Contents)...)
	errs = append(errs, differences("event_embeddings", want.Embeddings, got.Embeddings)...)
	return append(errs, differences("event_aliases", want.Aliases, got.Aliases)...)
}

func differences[K comparable, R any](table string, want, got map[K]R) []error {
	var errs []error
	n := 0
	tell := func(format string, args ...any) {
		if n++; n <= errorsMax {
			errs = append(errs, fmt.Errorf("table %s: "+format, append([]any{table}, args...)...))
		}
	}
	for k, w := range want {
		g, ok := got[k]
		switch {
		case !ok:
			tell("a row is missing: %+v", w)
		case !equal(w, g):
			tell("a row is\n\t%+v, want\n\t%+v", g, w)
		}
	}
	for k, g := range got {
		if _, ok := want[k]; !ok {
			tell("a row too many: %+v", g)
		}
	}
	if n > errorsMax {
		errs = append(errs, fmt.Errorf("table %s: %d differences in all", table, n))
	}
	return errs
}

// equal takes nil and empty bytes for the same.
func equal(a, b any) bool { return cmp.Equal(a, b, cmp.Comparer(bytes.Equal)) }

// String says how many rows there are.
func (t *Tables) String() string {
	deleted := 0
	for _, c := range t.Cores {
		if c.Deleted {
			deleted++
		}
	}
	return fmt.Sprintf("%d events, %d of them deleted, %d contents, %d embeddings, %d aliases",
		len(t.Cores), deleted, len(t.Contents), len(t.Embeddings), len(t.Aliases))
}
