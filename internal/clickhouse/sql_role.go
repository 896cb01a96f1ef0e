package clickhouse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/query"
)

// LiveViews are the views that the user for SQL may read.
func LiveViews() []string {
	return []string{"live_events", "live_event_contents", "live_event_embeddings"}
}

// Defaults of [SQLLimits].
const (
	DefaultSQLResultRows  = 1_000_000
	DefaultSQLResultBytes = 256 << 20
	DefaultSQLDiskBytes   = 4 << 30
	DefaultSQLQueries     = 16
)

// SQLLimits bound the queries of the user for SQL. A field that is 0 has its default.
type SQLLimits struct {
	// Timeout is the longest that the server works on one query. Default:
	// [conn.DefaultQueryTimeout].
	Timeout time.Duration
	// MemoryBytesMax is the most memory of the server for one query. Default:
	// [conn.DefaultQueryMemoryBytesMax].
	MemoryBytesMax int64
	// ResultRowsMax and ResultBytesMax bound an answer, the bytes as the server has
	// them in memory. Defaults: [DefaultSQLResultRows], [DefaultSQLResultBytes].
	ResultRowsMax, ResultBytesMax int64
	// DiskBytesMax is how much all queries together may spill to the server's disk.
	// Default: [DefaultSQLDiskBytes].
	DiskBytesMax int64
	// QueriesMax is how many queries run at once, those included whose callers have
	// gone. Default: [DefaultSQLQueries].
	QueriesMax int
}

// SQLGrants returns the rights of the user for SQL, without the user: to read the live
// views of the databases, and nothing else. On a cluster the database of the shards is
// one of them.
func SQLGrants(databases ...string) []string {
	var grants []string
	for _, database := range databases {
		for _, view := range LiveViews() {
			grants = append(grants, "GRANT SELECT ON "+database+"."+view)
		}
	}
	return grants
}

// sqlSettings are the settings of the user for SQL that have one right value. A query
// cannot change them, because readonly is one of them.
var sqlSettings = map[string]string{ //nolint:gochecknoglobals // a constant table
	"readonly":                      "1",
	"allow_ddl":                     "0",
	"allow_introspection_functions": "0",
	"use_query_cache":               "0",

	// A query that reaches a bound fails. It is never answered with a part.
	"result_overflow_mode":   "throw",
	"timeout_overflow_mode":  "throw",
	"read_overflow_mode":     "throw",
	"sort_overflow_mode":     "throw",
	"group_by_overflow_mode": "throw",
	"distinct_overflow_mode": "throw",
	"join_overflow_mode":     "throw",
	"set_overflow_mode":      "throw",

	// A query ends when its caller goes.
	"cancel_http_readonly_queries_on_client_close": "1",
	// An error is the whole answer, in plain text.
	"http_write_exception_in_output_format": "0",

	// What the views set for themselves. They could not do it in readonly mode if it were
	// a change.
	"do_not_merge_across_partitions_select_final": "1",
	"optimize_move_to_prewhere_if_final":          "1",
	"use_skip_indexes_if_final_exact_mode":        "0",
	// As for all queries of Sluice; see conn.DB.Query.
	"skip_unavailable_shards":     "0",
	"optimize_skip_unused_shards": "1",
	// A join of two views of a cluster sees all shards on both sides.
	"distributed_product_mode": "global",

	// The form of the answers, which docs/sql.md describes.
	"date_time_output_format":                    "iso",
	"output_format_json_quote_64bit_integers":    "0",
	"output_format_json_quote_64bit_floats":      "0",
	"output_format_json_quote_decimals":          "0",
	"output_format_json_quote_denormals":         "0",
	"output_format_json_named_tuples_as_objects": "1",
	"output_format_json_validate_utf8":           "1",
	"output_format_json_escape_forward_slashes":  "0",
	"output_format_parquet_string_as_string":     "1",
	"output_format_parquet_datetime_as_uint32":   "0",
	"output_format_csv_crlf_end_of_line":         "0",
}

// sqlBounds are the settings of the user for SQL that must be above 0.
var sqlBounds = []string{ //nolint:gochecknoglobals // a constant list
	"max_execution_time", "max_memory_usage", "max_result_rows", "max_result_bytes",
	"max_temporary_data_on_disk_size_for_user", "max_concurrent_queries_for_user",
}

// SQLSettings returns the settings of the user for SQL. Nothing but these settings bounds
// what a query costs.
func SQLSettings(l SQLLimits) map[string]string {
	settings := maps.Clone(sqlSettings)
	bound := func(name string, value, absent int64) {
		if value == 0 {
			value = absent
		}
		settings[name] = strconv.FormatInt(value, 10)
	}
	bound("max_execution_time", int64(l.Timeout/time.Second), int64(conn.DefaultQueryTimeout/time.Second))
	bound("max_memory_usage", l.MemoryBytesMax, conn.DefaultQueryMemoryBytesMax)
	bound("max_result_rows", l.ResultRowsMax, DefaultSQLResultRows)
	bound("max_result_bytes", l.ResultBytesMax, DefaultSQLResultBytes)
	bound("max_temporary_data_on_disk_size_for_user", l.DiskBytesMax, DefaultSQLDiskBytes)
	bound("max_concurrent_queries_for_user", int64(l.QueriesMax), DefaultSQLQueries)
	return settings
}

// roleTrusted is how long the rights of the user are trusted to be those that were
// checked. They only change if an operator changes them.
const roleTrusted = time.Minute

// checkRole checks that the user may do nothing but read the live views within bounds. An
// operator may have given the URL of another user. The error wraps [query.ErrSQLRole] if
// the user may do more.
func (s *SQL) checkRole(ctx context.Context) error {
	s.mu.Lock()
	checked := s.roleChecked
	s.mu.Unlock()
	if !checked.IsZero() && time.Since(checked) < roleTrusted {
		return nil
	}
	grants, err := s.column(ctx, "SHOW GRANTS FINAL")
	if err != nil {
		return err
	}
	if err := checkGrants(grants); err != nil {
		return err
	}
	names := slices.Concat(slices.Sorted(maps.Keys(sqlSettings)), sqlBounds)
	values, err := s.column(ctx, "SELECT arrayJoin(["+settingTexts(names)+"])")
	if err != nil {
		return err
	}
	if err := checkSettings(names, values); err != nil {
		return err
	}
	// Everybody may read such tables where the server does not ask for a right, and the
	// queries of others are in this one.
	var refused *query.SQLError
	_, err = s.column(ctx, "SELECT toString(count()) FROM system.processes")
	switch {
	case err == nil:
		return fmt.Errorf("%w: it may read system.processes; the server needs access_control_improvements.select_from_system_db_requires_grant", query.ErrSQLRole)
	case !errors.As(err, &refused) || !refused.NotAllowed:
		return err
	}
	s.mu.Lock()
	s.roleChecked = time.Now()
	s.mu.Unlock()
	return nil
}

func settingTexts(names []string) string {
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "toString(getSetting('%s'))", name)
	}
	return b.String()
}

// viewGrant matches a right to read a live view, or some of its columns.
var viewGrant = regexp.MustCompile("^GRANT SELECT(\\([^()]*\\))? ON [A-Za-z0-9_`]+\\.(live_events|live_event_contents|live_event_embeddings) TO ")

func checkGrants(grants []string) error {
	if len(grants) == 0 {
		return fmt.Errorf("%w: it may read none of the live views", query.ErrSQLRole)
	}
	for _, grant := range grants {
		if strings.Contains(grant, "WITH GRANT OPTION") || !viewGrant.MatchString(grant) {
			return fmt.Errorf("%w: it may do more than select from the live views: %.200s", query.ErrSQLRole, grant)
		}
	}
	return nil
}

func checkSettings(names, values []string) error {
	if len(names) != len(values) {
		return fmt.Errorf("%d settings were asked for, and %d told", len(names), len(values))
	}
	var errs []error
	for i, name := range names {
		value := values[i]
		switch value { // as a Bool is written
		case "true":
			value = "1"
		case "false":
			value = "0"
		}
		want, exact := sqlSettings[name]
		number, err := strconv.ParseFloat(value, 64)
		switch {
		case exact && value != want:
			errs = append(errs, fmt.Errorf("%w: its setting %s is %s and not %s", query.ErrSQLRole, name, value, want))
		case !exact && (err != nil || number <= 0):
			errs = append(errs, fmt.Errorf("%w: its setting %s is %s, which is no bound", query.ErrSQLRole, name, value))
		}
	}
	return errors.Join(errs...)
}

// columnBytesMax is more than the rights and settings of the user take.
const columnBytesMax = 1 << 20

// column runs a query of Sluice's own and returns its one column.
func (s *SQL) column(ctx context.Context, text string) ([]string, error) {
	answer, err := s.ask(ctx, query.SQL{Text: text, Format: query.SQLJSONLines})
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Close() }() // it is only read
	lines, err := io.ReadAll(io.LimitReader(answer, columnBytesMax))
	if err != nil {
		return nil, fmt.Errorf("read the rights of the user for SQL: %w", err)
	}
	var values []string
	for i, line := range bytes.Split(bytes.TrimSuffix(lines, []byte("\n")), []byte("\n")) {
		if i < 2 { // the names and the types
			continue
		}
		var row []string
		if err := json.Unmarshal(line, &row); err != nil || len(row) != 1 {
			return nil, fmt.Errorf("read the rights of the user for SQL: the answer is not one column: %w", err)
		}
		values = append(values, row[0])
	}
	return values, nil
}
