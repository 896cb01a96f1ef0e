package conn

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// Query runs a query on a connection of the role and measures its time. The error
// carries no values of rows or parameters. It wraps [event.ErrSchemaMissing] or
// [event.ErrSchemaOld] if the schema lacks something, and for a reader
// [event.ErrQueryTooLarge] or [event.ErrQueryTimeout] if the query reached its bound.
func (db *DB) Query(ctx context.Context, r Role, name string, timeout time.Duration, q ch.Query) error {
	start := time.Now()
	q.Settings = slices.Concat(q.Settings, querySettings)
	err := db.pools[r].Do(ctx, timeout, q)
	db.querySeconds.WithLabelValues(name).Observe(time.Since(start).Seconds())
	if err != nil {
		if r == RoleRead || r == RoleAnalytics || r == RoleExport {
			return fmt.Errorf("query %s: %w", name, readError(err))
		}
		return fmt.Errorf("query %s: %w", name, schemaError(err))
	}
	return nil
}

// querySettings are the settings of every query. They have no effect on one machine.
var querySettings = []ch.Setting{ //nolint:gochecknoglobals // a constant list
	// An answer without the rows of a shard that is down would be wrong.
	Setting("skip_unavailable_shards", "0"),
	// A query about one conversation goes only to its shard.
	Setting("optimize_skip_unused_shards", "1"),
}

// LookupSettings are the settings of a query that reads rows by their primary key.
var LookupSettings = []ch.Setting{ //nolint:gochecknoglobals // a constant list
	// The primary index finds every key, so reading skip indexes would be wasted.
	Setting("use_skip_indexes", "0"),
	// A lookup sees every insert that was acknowledged before it.
	Setting("use_query_cache", "0"),
	// A lookup reads a little at many places of files that are mostly in memory.
	Setting("local_filesystem_read_method", "mmap"),
	Setting("min_bytes_to_use_mmap_io", "1"),
}

// Parameters are the values of a query. They never become part of its text.
type Parameters []proto.Parameter

// Text adds a String. The server reads a parameter as a quoted literal whose content
// is a field of the TSV format, so there are two levels of escapes.
func (p Parameters) Text(name, value string) Parameters {
	value = tsvEscaper.Replace(value)
	return append(p, proto.Parameter{Key: name, Value: "'" + quoteEscaper.Replace(value) + "'"})
}

// Int adds an Int64.
func (p Parameters) Int(name string, value int64) Parameters {
	return append(p, proto.Parameter{Key: name, Value: "'" + strconv.FormatInt(value, 10) + "'"})
}

// Uint adds a UInt64.
func (p Parameters) Uint(name string, value uint64) Parameters {
	return append(p, proto.Parameter{Key: name, Value: "'" + strconv.FormatUint(value, 10) + "'"})
}

// Floats adds an Array(Float32).
func (p Parameters) Floats(name string, values []float32) Parameters {
	text := []byte("'[")
	for i, value := range values {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendFloat(text, float64(value), 'g', -1, 32)
	}
	return append(p, proto.Parameter{Key: name, Value: string(append(text, "]'"...))})
}

//nolint:gochecknoglobals // constant tables
var (
	tsvEscaper   = strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`, "\r", `\r`, "\x00", `\0`, "\b", `\b`, "\f", `\f`, "'", `\'`)
	quoteEscaper = strings.NewReplacer(`\`, `\\`, "'", `\'`)
)

// Ints adds an Array(Int64).
func (p Parameters) Ints(name string, values []int64) Parameters {
	text := []byte("'[")
	for i, value := range values {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, value, 10)
	}
	return append(p, proto.Parameter{Key: name, Value: string(append(text, "]'"...))})
}

// Setting returns a setting of a query. The server refuses the query if it does
// not know the setting.
func Setting(key, value string) ch.Setting {
	return ch.Setting{Key: key, Value: value, Important: true}
}
