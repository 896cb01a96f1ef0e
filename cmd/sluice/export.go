package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sluicehq/sluice/internal/app"
)

// partSuffix ends the name of a file that is not whole yet.
const partSuffix = ".part"

type exportCmd struct {
	clientFlags
	Output     string   `short:"o" help:"File for the events, which gets its name when it is whole. NDJSON is called FILE.part until then; a Parquet file that is full is followed by FILE-2 and so on. Without it: standard output." placeholder:"FILE" type:"path"`
	Format     string   `help:"ndjson or parquet. auto: what the name of --output ends in; otherwise ndjson." enum:"auto,ndjson,parquet" default:"auto"`
	Since      string   `help:"Earliest timestamp, RFC 3339." placeholder:"TIME"`
	Until      string   `help:"End of the timestamps, RFC 3339; it is not included." placeholder:"TIME"`
	Filter     []string `short:"f" sep:"none" help:"A filter as in the query string of GET /events, such as event_name=event_a or metadata.tokens>=100. Can be repeated." placeholder:"FILTER"`
	Embeddings bool     `help:"Leave the embeddings out with --no-embeddings." default:"true" negatable:""`
	Limit      int      `help:"The most events. 0: all." default:"0"`
	Cursor     string   `help:"The id of the last event of an export before; this one begins after it." placeholder:"ID"`
	left       int      // of Limit, when a file goes on
	Resume     bool     `help:"Go on with FILE.part of an export of NDJSON that broke off, which must have had the same filters."`
}

// Run exports events.
func (c *exportCmd) Run(ctx context.Context, e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	query, err := c.query()
	if err != nil {
		return err
	}
	export := app.ExportClient{Client: client, Query: query, Log: e.log}
	parquet := c.Format == "parquet" || c.Format == "auto" && strings.EqualFold(filepath.Ext(c.Output), ".parquet")
	if c.Output == "" {
		if c.Resume {
			return errors.New("--resume: needs --output")
		}
		return c.run(ctx, e, export, parquet, e.stdout)
	}
	if parquet {
		return c.parquetFiles(ctx, e, export)
	}
	c.left = c.Limit
	file, err := c.open(&export)
	if err != nil {
		return err
	}
	if c.Limit > 0 && c.left <= 0 { // it is whole
		if err := file.Close(); err != nil {
			return err
		}
		return os.Rename(file.Name(), c.Output)
	}
	if err := errors.Join(c.run(ctx, e, export, parquet, file), file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("%w; --resume goes on with %s", err, file.Name())
	}
	return os.Rename(file.Name(), c.Output)
}

// parquetFiles writes Parquet files until there is no next one: events.parquet,
// events-2.parquet and so on.
func (c *exportCmd) parquetFiles(ctx context.Context, e *env, export app.ExportClient) error {
	if c.Resume {
		return errors.New("--resume: a Parquet file cannot go on; --cursor begins another one")
	}
	left := c.Limit
	for n := 1; ; n++ {
		name := c.Output
		if ending := filepath.Ext(name); n > 1 {
			name = fmt.Sprintf("%s-%d%s", strings.TrimSuffix(name, ending), n, ending)
		}
		err := writeWhole(name, func(out io.Writer) error {
			_, err := export.Parquet(ctx, out)
			return err
		})
		var (
			events int64
			next   string
		)
		if err == nil {
			events, next, err = app.ParquetFile(name)
		}
		if c.Limit > 0 {
			left -= int(events)
			export.Query.Set("limit", strconv.Itoa(left))
		}
		switch {
		case err != nil && n > 1:
			return fmt.Errorf("%s: %w; the files before it are whole, and --cursor %s goes on after them", name, err, export.Query.Get("cursor"))
		case err != nil:
			return err
		case next == "" || c.Limit > 0 && left <= 0:
			return nil
		}
		e.log.LogAttrs(ctx, slog.LevelInfo, "a file is full; the events after it go into the next one", slog.String("file", name))
		export.Query.Set("cursor", next)
	}
}

// open opens the file that is not whole yet.
func (c *exportCmd) open(export *app.ExportClient) (*os.File, error) {
	name := c.Output + partSuffix
	if !c.Resume {
		file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the caller's own file
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("%s is there, of an export that broke off or that runs: --resume goes on with it; or remove it", name)
		}
		if err != nil {
			return nil, fmt.Errorf("--output: %w", err)
		}
		return file, nil
	}
	file, err := os.OpenFile(name, os.O_RDWR, 0) //nolint:gosec // the caller's own file
	if err != nil {
		return nil, fmt.Errorf("--resume: %w", err)
	}
	cursor, err := app.Resume(file)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--resume: %s: %w", name, err), file.Close())
	}
	if cursor != "" {
		export.Query.Set("cursor", cursor)
	}
	if c.Limit > 0 {
		there, err := app.Lines(file)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("--resume: %s: %w", name, err), file.Close())
		}
		c.left = c.Limit - there
		export.Query.Set("limit", strconv.Itoa(c.left))
	}
	return file, nil
}

func (c *exportCmd) run(ctx context.Context, e *env, export app.ExportClient, parquet bool, out io.Writer) error {
	if parquet {
		next, err := export.Parquet(ctx, out)
		if err == nil && next != "" {
			e.log.LogAttrs(ctx, slog.LevelWarn, "the file ends before the last event; --cursor goes on in another file", slog.String("cursor", next))
		}
		return err
	}
	events, err := export.NDJSON(ctx, out)
	if err == nil {
		e.log.LogAttrs(ctx, slog.LevelInfo, "events exported", slog.Int("events", events))
	}
	return err
}

// query returns the parameters of the export.
func (c *exportCmd) query() (url.Values, error) {
	query := make(url.Values)
	for _, filter := range c.Filter {
		// As a query string is split. So the "=" of an operator belongs to it or not, as there.
		name, value, _ := strings.Cut(filter, "=")
		switch name {
		case "", "format", "cursor", "limit", "embeddings", "after":
			return nil, fmt.Errorf("--filter: %q is no filter", filter)
		}
		query.Add(name, value)
	}
	for name, value := range map[string]string{"since": c.Since, "until": c.Until, "cursor": c.Cursor} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if c.Embeddings {
		query.Set("embeddings", "true")
	}
	if c.Limit < 0 {
		return nil, errors.New("--limit: must not be negative")
	}
	if c.Limit > 0 {
		query.Set("limit", strconv.Itoa(c.Limit))
	}
	return query, nil
}
