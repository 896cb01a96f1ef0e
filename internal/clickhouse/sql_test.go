package clickhouse_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// What no answer to a query in SQL may have: a file of the machine, another database,
// and what was deleted, is older than the retention, or was superseded.
const (
	fileCanary   = "canary-of-a-file"
	otherCanary  = "canary-of-another-database"
	goneCanary   = "canary-of-a-deleted-event"
	hiddenCanary = "canary-of-an-expired-event"
	oldCanary    = "canary-of-a-superseded-version"
	liveText     = "what everybody may see"
)

// sqlWorld is an engine with a user for SQL, and a database with events.
type sqlWorld struct {
	sql    *clickhouse.SQL
	server *enginetest.Instance // as the user who may do everything
	file   string               // that has fileCanary
}

var sqlLimits = clickhouse.SQLLimits{
	Timeout: 2 * time.Second, MemoryBytesMax: 256 << 20, ResultRowsMax: 20_000, ResultBytesMax: 8 << 20, QueriesMax: 8,
}

// startEngine starts an engine of the test's own.
func startEngine(t *testing.T, user *engine.SQLUserConfig, more string) (*engine.Engine, *enginetest.Instance) {
	t.Helper()
	library, err := engine.Find("")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if more != "" {
		if err := os.MkdirAll(filepath.Join(dir, "config.d"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.d", "more.xml"), []byte(more), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e, err := engine.New(engine.Config{Library: library, Dir: dir, SQLUser: user}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	if err := e.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return e, &enginetest.Instance{Addr: e.Addr(), HTTPAddr: e.HTTPAddr(), User: engine.User, Password: e.Password()}
}

func openSQL(t *testing.T, cfg clickhouse.SQLConfig) *clickhouse.SQL {
	t.Helper()
	sql, err := clickhouse.OpenSQL(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sql.Close)
	return sql
}

func newSQLWorld(t *testing.T) *sqlWorld {
	t.Helper()
	e, server := startEngine(t, &engine.SQLUserConfig{
		Grants: clickhouse.SQLGrants(engine.Database), Settings: clickhouse.SQLSettings(sqlLimits),
	}, "")
	w := &sqlWorld{server: server, file: filepath.Join(t.TempDir(), "x.csv")}
	if err := os.WriteFile(w.file, []byte(fileCanary+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fillWorld(t, server, engine.Database)
	w.sql = openSQL(t, clickhouse.SQLConfig{Addr: e.HTTPAddr(), Database: engine.Database, User: engine.SQLUser, Password: e.SQLPassword(), AnswerTimeout: 20 * time.Second})
	return w
}

// fillWorld makes a database with one event to be seen, and several that are not, and
// another database.
func fillWorld(t *testing.T, server *enginetest.Instance, database string) *clickhouse.Store {
	t.Helper()
	store := clickhousetest.Open(t, clickhousetest.Config(server, database))
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	row := func(name string, age time.Duration, offset int64, text string) (event.Core, event.ContentRow) {
		position, version := clickhousetest.Created(offset)
		id := event.NewID(now.Add(-age).UnixMicro(), name)
		core := event.Core{ID: id, ConversationID: name, EventName: "event_a", Error: text, Created: position, Version: version}
		content := event.ContentRow{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte(text)}, Version: version}
		return core, content
	}
	var rows event.Rows
	for i, e := range []struct {
		name string
		age  time.Duration
		text string
	}{
		{"live", time.Hour, liveText},
		{"gone", time.Hour, goneCanary},
		{"expired", 40 * 24 * time.Hour, hiddenCanary},
		{"changed", time.Hour, oldCanary},
	} {
		core, content := row(e.name, e.age, int64(i+1), e.text)
		rows.Cores, rows.Contents = append(rows.Cores, core), append(rows.Contents, content)
	}
	clickhousetest.Insert(t, store, rows)
	gone, changed := rows.Cores[1], rows.Cores[3]
	var later event.Rows
	gone.ConversationID, gone.Error, gone.Deleted, gone.Version = "", "", true, clickhousetest.Deleted(10)
	changed.Error, changed.Version = "new", clickhousetest.Updated(11)
	later.Cores = []event.Core{gone, changed}
	// A create that came later, and so lost, has an output that no reader sees. Its vector
	// and that of the expired event are not seen either.
	_, lost := clickhousetest.Created(20)
	later.Embeddings = []event.EmbeddingRow{
		{ID: rows.Cores[0].ID, Field: event.FieldOutputEmbeddings, Vector: event.VectorOf(7), Version: lost},
		{ID: rows.Cores[2].ID, Field: event.FieldInputEmbeddings, Vector: event.VectorOf(7), Version: rows.Cores[2].Version},
	}
	later.Contents = []event.ContentRow{
		{ID: rows.Cores[0].ID, Field: event.FieldOutput, Content: event.Content{Kind: event.KindString, Data: []byte(oldCanary)}, Version: lost},
		{ID: gone.ID, Field: event.FieldInput, Version: gone.Version, Deleted: true},
		{ID: changed.ID, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte("new")}, Version: changed.Version},
	}
	clickhousetest.Insert(t, store, later)
	if _, err := store.SetRetention(t.Context(), 30*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"CREATE DATABASE other",
		"CREATE TABLE other.things (id UInt64, name String) ENGINE = MergeTree ORDER BY id",
		"INSERT INTO other.things VALUES (1, '" + otherCanary + "')",
		"CREATE TABLE other.joined (id UInt64, name String) ENGINE = Join(ANY, LEFT, id)",
		"INSERT INTO other.joined VALUES (1, '" + otherCanary + "')",
		"CREATE DICTIONARY other.words (id UInt64, name String) PRIMARY KEY id SOURCE(CLICKHOUSE(DB 'other' TABLE 'things' USER '" + server.User + "' PASSWORD '" + server.Password + "')) LAYOUT(FLAT()) LIFETIME(0)",
	} {
		server.Query(t, statement)
	}
	return store
}

// run returns the answer to a query as text.
func (w *sqlWorld) run(t *testing.T, text string, format query.SQLFormat) (string, error) {
	t.Helper()
	return runSQL(t, w.sql, text, format)
}

func runSQL(t *testing.T, sql *clickhouse.SQL, text string, format query.SQLFormat) (string, error) {
	t.Helper()
	answer, err := sql.Query(t.Context(), query.SQL{Text: text, Format: format})
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Close() }()
	all, err := io.ReadAll(answer)
	if err != nil {
		t.Errorf("%.80q: the answer broke off: %v", text, err)
	}
	return string(all), nil
}

// outcome is what became of a query, in a word.
func outcome(err error) string {
	var own *query.SQLError
	switch {
	case err == nil:
		return "answered"
	case errors.As(err, &own) && own.NotAllowed:
		return "not allowed"
	case errors.As(err, &own):
		return "wrong"
	case errors.Is(err, event.ErrQueryTooLarge):
		return "too large"
	case errors.Is(err, event.ErrQueryTimeout):
		return "timeout"
	case errors.Is(err, query.ErrSQLBusy):
		return "busy"
	}
	return err.Error()
}

// Nothing that a query can say shows more than the views, changes anything, or takes
// more than its bounds.
func TestSQLAttacks(t *testing.T) {
	w := newSQLWorld(t)
	password := w.server.Password
	const refused, wrong, large = "not allowed", "wrong", "too large"
	for _, tt := range []struct{ sql, want string }{
		// The tables, other databases, and what is not there, are one to the caller.
		{"SELECT * FROM events", refused},
		{"SELECT * FROM event_contents", refused},
		{"SELECT * FROM sluice.event_embeddings", refused},
		{"SELECT * FROM event_aliases", refused},
		{"SELECT * FROM schema_migrations", refused},
		{"SELECT * FROM other.things", refused},
		{"SELECT * FROM other.nothing", refused},
		{"SELECT * FROM nowhere.nothing", refused},
		{"SELECT 1 FROM live_events WHERE id IN (SELECT toString(id) FROM events)", refused},
		{"SELECT 1 FROM live_events AS a JOIN events AS b ON a.id = toString(b.id)", refused},
		{"WITH x AS (SELECT * FROM other.things) SELECT * FROM x", refused},
		{"SELECT (SELECT name FROM other.things LIMIT 1)", refused},
		{"SELECT id IN other.things FROM live_events", refused},
		{"SELECT 1 UNION ALL SELECT id FROM other.things", refused},
		{"SELECT * FROM /* sluice.live_events */ events -- live_events", refused},
		{"SELECT * FROM live_events, events", refused},
		{"SELECT deleted FROM live_events", wrong},
		{"SELECT version FROM live_events", wrong},
		{"SELECT events.version FROM live_events", wrong},
		{"SELECT _part FROM live_events", wrong},
		{"SELECT _table FROM live_events", "answered"},

		// System tables. Those that are answered tell each user what it may know.
		{"SELECT * FROM system.users", refused},
		{"SELECT * FROM system.processes", refused},
		{"SELECT * FROM system.query_log", refused},
		{"SELECT * FROM system.parts", refused},
		{"SELECT * FROM system.server_settings", refused},
		{"SELECT * FROM system.grants", refused},
		{"SELECT * FROM system.numbers LIMIT 1", refused},
		{"SELECT * FROM system.clusters", refused},
		{"SELECT * FROM system.macros", refused},
		{"SELECT * FROM system.metrics", refused},
		{"SELECT * FROM system.dictionaries", refused},
		{"SELECT * FROM system.zookeeper WHERE path = '/'", refused},
		{"SELECT * FROM information_schema.tables", refused},
		{"SELECT * FROM INFORMATION_SCHEMA.COLUMNS", refused},
		{"SELECT count() FROM system.tables WHERE database != 'sluice' OR name NOT LIKE 'live%'", "answered"},
		{"SELECT * FROM system.databases", "answered"},
		{"SELECT * FROM system.one", "answered"},
		{"SHOW TABLES FROM other", "answered"},
		{"SHOW DATABASES", "answered"},
		{"SHOW PROCESSLIST", refused},
		{"SHOW USERS", refused},
		{"SHOW ACCESS", refused},
		{"SHOW CREATE TABLE events", refused},
		{"SHOW CREATE USER sluice", refused},
		{"SHOW GRANTS", "answered"},
		{"SHOW GRANTS FOR sluice", refused},
		{"DESCRIBE TABLE events", refused},
		{"DESCRIBE TABLE live_events", "answered"},
		{"EXISTS TABLE other.things", refused},

		// Table functions.
		{"SELECT * FROM file('" + w.file + "', 'CSV', 'a String')", refused},
		{"DESCRIBE TABLE file('" + w.file + "')", refused},
		{"SELECT * FROM default.`" + w.file + "`", refused},
		{"SELECT * FROM `" + w.file + "`", refused},
		{"SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')", refused},
		{"DESCRIBE TABLE url('http://127.0.0.1:1/')", refused},
		{"SELECT * FROM s3('http://127.0.0.1:1/bucket/x', 'CSV', 'a String')", refused},
		{"SELECT * FROM remote('" + w.server.Addr + "', 'other', 'things', '" + w.server.User + "', '" + password + "')", refused},
		{"SELECT * FROM remoteSecure('127.0.0.1:1', 'other', 'things')", refused},
		{"SELECT * FROM cluster('default', other.things)", refused},
		{"SELECT * FROM clusterAllReplicas('default', system.one)", refused},
		{"SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')", refused},
		{"SELECT * FROM postgresql('127.0.0.1:1', 'a', 'b', 'c', 'd')", refused},
		{"SELECT * FROM mongodb('127.0.0.1:1', 'a', 'b', 'c', 'd', 'x String')", refused},
		{"SELECT * FROM redis('127.0.0.1:1', 'a', 'a String')", refused},
		{"SELECT * FROM sqlite('/tmp/x', 'y')", refused},
		{"SELECT * FROM executable('id', 'TSV', 'a String')", refused},
		{"SELECT * FROM input('a String')", refused},
		{"SELECT * FROM dictionary('other.words')", refused},
		{"SELECT * FROM merge('sluice', '.*')", "answered"}, // it finds the views alone, as the next queries show
		{"SELECT version FROM merge('sluice', '.*')", wrong},
		{"SELECT * FROM merge('sluice', '^event.*')", refused},
		{"SELECT * FROM merge('other', '.*')", refused},
		{"SELECT name FROM merge(REGEXP('.*'), '.*')", wrong},
		{"SELECT * FROM merge('sluice', '^live_events$')", "answered"},
		{"SELECT * FROM loop(other.things) LIMIT 1", refused},
		{"SELECT * FROM mergeTreeIndex(sluice, events)", refused},
		{"SELECT * FROM view(SELECT * FROM other.things)", refused},
		{"SELECT * FROM viewIfPermitted(SELECT name FROM other.things ELSE null('name String'))", "answered"},
		{"SELECT * FROM format(CSV, '1')", refused},
		{"SELECT * FROM zeros(10)", refused},
		{"SELECT * FROM (EXPLAIN SELECT 1)", refused},
		{"SELECT sum(number) FROM numbers(1000)", "answered"},
		{"SELECT * FROM generateRandom('a String') LIMIT 10", "answered"},
		{"SELECT * FROM values('a String', 'x')", "answered"},

		// Functions that look outside of the query.
		{"SELECT dictGet('other.words', 'name', toUInt64(1))", refused},
		{"SELECT dictGetAll('other.words', 'name', toUInt64(1))", refused},
		{"SELECT joinGet('other.joined', 'name', toUInt64(1))", refused},
		{"SELECT joinGetOrNull('other.joined', 'name', toUInt64(1))", refused},
		{"SELECT hasColumnInTable('other', 'things', 'name')", refused},
		{"SELECT addressToLine(0)", refused},
		{"SELECT demangle('x')", refused},
		{"SELECT catboostEvaluate('" + w.file + "', 1)", wrong},
		{"SELECT aiGenerate('x')", refused},
		{"SELECT getMacro('shard')", wrong},
		{"SELECT currentUser(), currentRoles(), getSetting('readonly')", "answered"},

		// The one function that has no right of its own, however it is spelled.
		{"SELECT file('" + w.file + "')", refused},
		{"SELECT file/**/('" + w.file + "')", refused},
		{"SELECT `file`('" + w.file + "')", refused},
		{"SELECT \"file\"('" + w.file + "')", refused},
		{`SELECT "fi\x6ce"('` + w.file + `')`, refused},
		{"SELECT `\\x66\\x69\\x6C\\x65`('" + w.file + "')", refused},
		{"SELECT `\\Nfile`('" + w.file + "')", refused},
		{"SELECT `fi\\N\\Nle`('" + w.file + "')", refused},
		{"SELECT `file\\N`('" + w.file + "')", refused},
		{"SELECT “file”('" + w.file + "')", refused},
		{"SELECT arrayMap(file, ['" + w.file + "'])", refused},
		{"SELECT arrayMap(x -> file(x), ['" + w.file + "'])", refused},
		{"SELECT * APPLY(file) FROM (SELECT '" + w.file + "')", refused},
		{"SELECT * APPLY file FROM (SELECT '" + w.file + "')", refused},
		{"SELECT '" + w.file + "' AS x, file\n(x)", refused},
		{"SELECT FILE('" + w.file + "')", wrong},
		{"SELECT fıle('" + w.file + "')", wrong},
		{"SELECT 'a profile', JSONExtractString('{}', 'filename')", "answered"},

		// Settings, statements that change something, and several at once.
		{"SELECT 1 SETTINGS readonly = 0", refused},
		{"SELECT 1 SETTINGS readonly = 2", refused},
		{"SELECT 1 SETTINGS max_execution_time = 0", refused},
		{"SELECT 1 SETTINGS max_memory_usage = 0", refused},
		{"SELECT * FROM (SELECT 1 SETTINGS max_result_rows = 0)", refused},
		{"SELECT 1 SETTINGS output_format_json_quote_64bit_integers = 1", refused},
		{"SELECT 1 SETTINGS allow_experimental_ai_functions = 1", refused},
		{"SELECT 1 SETTINGS additional_table_filters = {'sluice.events': '1'}", refused},
		{"SELECT 1 SETTINGS no_such_setting = 1", refused},
		// ClickHouse does not hold those of a subquery against the user's constraints.
		{"SELECT * FROM (SELECT getSetting('readonly') SETTINGS readonly = 0)", refused},
		{"SELECT (SELECT 1\nsettings max_execution_time = 0)", refused},
		{"SELECT 1 UNION ALL SELECT 2/**/SeTtInGs/**/max_threads = 8", refused},
		{"(SELECT 1 SETTINGS max_memory_usage = 0) UNION ALL (SELECT 2)", refused},
		{"SELECT * FROM (SELECT * FROM live_events SETTINGS short_circuit_function_evaluation = 'disable')", refused},
		{"SELECT * FROM (SELECT * FROM live_events SETTINGS additional_table_filters = {'sluice.events': 'throwIf(deleted)'})", refused},
		{"SELECT JSONExtractString('{}', 'my_settings')", "answered"},
		{"SET readonly = 0", refused},
		{"SET ROLE ALL", refused},
		{"SELECT 1; SELECT 2", wrong},
		{"SELECT 1; DROP TABLE events", wrong},
		{"SELECT 1;", "answered"},
		{"INSERT INTO events SELECT * FROM events", refused},
		{"INSERT INTO live_events (id) VALUES ('x')", refused},
		{"INSERT INTO FUNCTION url('http://127.0.0.1:1/', 'CSV', 'a String') SELECT 'x'", refused},
		{"CREATE TEMPORARY TABLE t (a UInt8)", refused},
		{"CREATE TABLE t (a UInt8) ENGINE = Memory", refused},
		{"CREATE VIEW v AS SELECT 1", refused},
		{"CREATE FUNCTION f AS x -> x", refused},
		{"CREATE USER u", refused},
		{"DROP TABLE events", refused},
		{"DROP VIEW live_events", refused},
		{"TRUNCATE TABLE events", refused},
		{"ALTER TABLE events DELETE WHERE 1", refused},
		{"DELETE FROM events WHERE 1", refused},
		{"OPTIMIZE TABLE events FINAL", refused},
		{"RENAME TABLE live_events TO x", refused},
		{"GRANT ALL ON *.* TO sluice_sql", refused},
		{"REVOKE ALL ON *.* FROM sluice_sql", refused},
		{"KILL QUERY WHERE 1", refused},
		{"SYSTEM SHUTDOWN", refused},
		{"SYSTEM FLUSH LOGS", refused},
		{"BACKUP TABLE sluice.live_events TO Disk('backups', 'x')", refused},
		{"USE other", refused},
		{"EXECUTE AS sluice SELECT 1", refused},
		{"ATTACH TABLE x", refused},
		{"BEGIN TRANSACTION", wrong},
		{"SELECT 1 INTO OUTFILE '/tmp/sluice-outfile'", refused},
		{"SELECT 1 FORMAT Native", wrong},
		{"SELECT 1 FORMAT Null", wrong},
		{"EXPLAIN SELECT * FROM events", refused},
		{"EXPLAIN AST SELECT * FROM live_events", "answered"},
		{"EXPLAIN SELECT * FROM live_events", "answered"},
		{"", wrong},
		{"-- nothing", wrong},
		{"SELECT", wrong},
		{"SELECT \x00", wrong},
		{"SELECT * FROM {x:Identifier}", wrong},

		// What takes much.
		{"SELECT number FROM numbers(1000000000)", large},
		{"SELECT repeat('x', 1000000) FROM numbers(100)", large},
		{"SELECT groupArray(number) FROM numbers(1000000000)", large},
		{"SELECT length(range(400000000))", large},
		{"SELECT repeat('x', 10000000000)", large},
		{"SELECT count() FROM numbers(1000000000) AS a CROSS JOIN numbers(1000000000) AS b", large},
		{"SELECT count() FROM numbers(1000000000) AS a CROSS JOIN numbers(1000) AS b", "timeout"},
		{"SELECT sum(sipHash64(number)) FROM numbers(1000000000000)", "timeout"},
		{"SELECT sleepEachRow(1) FROM numbers(100)", "timeout"},
		{"SELECT sleep(3), sleep(3), sleep(3)", "timeout"},
		{"WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count() FROM t", large},
		{"SELECT " + strings.Repeat("(", 5000) + "1" + strings.Repeat(")", 5000), large},
		{"SELECT " + strings.Repeat("-", 20000) + "1", wrong}, // a comment
		{"SELECT " + strings.Repeat("- ", 20000) + "1", large},
		{"SELECT " + strings.Repeat("1+", 30000) + "1", large},
		{"SELECT * FROM " + strings.Repeat("(SELECT * FROM ", 500) + "(SELECT 1" + strings.Repeat(")", 501), large},
		{"SELECT '" + strings.Repeat("x", 300000) + "'", wrong},

		// What is meant to be.
		{"SELECT count() FROM live_events", "answered"},
		{"SELECT a.id, b.content FROM live_events AS a JOIN live_event_contents AS b USING (id) WHERE a.timestamp > now() - INTERVAL 1 DAY", "answered"},
	} {
		begun := time.Now()
		answer, err := w.run(t, tt.sql, query.SQLJSONLines)
		took := time.Since(begun)
		name := fmt.Sprintf("%.120q", tt.sql)
		if got := outcome(err); got != tt.want {
			t.Errorf("%s: %s, want %s: %v, %.200s", name, got, tt.want, err, answer)
		}
		if took > sqlLimits.Timeout+8*time.Second {
			t.Errorf("%s took %s", name, took)
		}
		said := answer
		if err != nil {
			said = err.Error()
		}
		for _, secret := range []string{fileCanary, otherCanary, goneCanary, hiddenCanary, oldCanary, password, "127.0.0.1", "(version"} {
			// What the caller wrote, the answer may say.
			if strings.Contains(said, secret) && !strings.Contains(tt.sql, secret) {
				t.Errorf("%s says %s: %.300s", name, secret, said)
			}
		}
	}
	if _, err := os.Stat("/tmp/sluice-outfile"); err == nil {
		t.Error("a query wrote a file")
	}
	if got := w.server.Query(t, "SELECT count() FROM sluice.events FINAL WHERE NOT deleted"); got != "3" {
		t.Errorf("the tables have %s events, want 3", got)
	}
}

// No function of ClickHouse reads a file, however many there will be.
func TestSQLFunctions(t *testing.T) {
	w := newSQLWorld(t)
	names := strings.Split(w.server.Query(t, "SELECT name FROM system.functions WHERE NOT is_aggregate AND name NOT LIKE 'sleep%' ORDER BY name FORMAT TSVRaw"), "\n")
	if len(names) < 1000 {
		t.Fatalf("there are %d functions", len(names))
	}
	answered := 0
	for _, name := range names {
		for _, arguments := range []string{"'%s'", "'%s', 'x'", "'x', '%s'", "'%s', 1.5"} {
			text := "SELECT `" + name + "`(" + fmt.Sprintf(arguments, w.file) + ")"
			answer, err := w.run(t, text, query.SQLCSV)
			if err == nil {
				answered++
			}
			if strings.Contains(answer, fileCanary) || err != nil && strings.Contains(err.Error(), fileCanary) {
				t.Errorf("%s reads the file", text)
			}
		}
	}
	t.Logf("%d functions, of which calls %d were answered", len(names), answered)
	if answered < 500 {
		t.Errorf("%d calls were answered, so this test shows little", answered)
	}
}

// What the views hide is in no answer and in no error, also where a filter could run
// before the views' own, and count as little.
func TestSQLHides(t *testing.T) {
	w := newSQLWorld(t)
	for _, tt := range []struct{ sql, want string }{
		{"SELECT arraySort(groupArray(conversation_id)) FROM live_events", `[["changed","live"]]`},
		{"SELECT arraySort(groupArray(error)) FROM live_events", `[["new","` + liveText + `"]]`},
		{"SELECT arraySort(groupArray((conversation_id, content))) FROM live_event_contents", `[[["changed","new"],["live","` + liveText + `"]]]`},
		{"SELECT count() FROM live_events WHERE error LIKE 'canary%' OR conversation_id IN ('gone', 'expired') OR timestamp < now() - INTERVAL 30 DAY", `[0]`},
		{"SELECT count() FROM live_event_contents WHERE content LIKE 'canary%'", `[0]`},
		{"SELECT count() FROM live_event_embeddings", `[0]`},
		// A condition that fails on a value shows whether the value was met.
		{"SELECT count() FROM live_events WHERE NOT throwIf(error LIKE 'canary%')", `[2]`},
		{"SELECT count() FROM live_event_contents WHERE NOT throwIf(content LIKE 'canary%')", `[2]`},
		{"SELECT count() FROM live_event_contents WHERE NOT throwIf(id != '' AND content LIKE 'canary%')", `[2]`},
		{"SELECT count() FROM live_event_embeddings WHERE NOT throwIf(vector[1] = 7)", `[0]`},
		{"SELECT count() FROM live_events WHERE NOT throwIf(conversation_id = 'expired')", `[2]`},
		{"SELECT sum(throwIf(assumeNotNull(error) LIKE 'canary%')) FROM live_events", `[0]`},
		{"SELECT count() FROM live_event_contents AS a JOIN live_events AS b ON a.id = b.id AND NOT throwIf(a.content LIKE 'canary%')", `[2]`},
	} {
		answer, err := w.run(t, tt.sql, query.SQLJSONLines)
		lines := strings.Split(strings.TrimSpace(answer), "\n")
		if err != nil || lines[len(lines)-1] != tt.want {
			t.Errorf("%s: %v, %q, want %s", tt.sql, err, answer, tt.want)
		}
	}
	for _, sql := range []string{
		"SELECT toUInt8(assumeNotNull(error)) FROM live_events",
		"SELECT count() FROM live_events WHERE toUInt8(assumeNotNull(error)) = 1",
		"SELECT count() FROM live_event_contents WHERE toUInt8(content) = 1",
		"SELECT count() FROM live_event_contents WHERE toDateTime(content) > now()",
		"SELECT CAST(content AS Enum8('a' = 1)) FROM live_event_contents",
	} {
		_, err := w.run(t, sql, query.SQLJSONLines)
		if outcome(err) != "wrong" || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), liveText) || strings.Contains(err.Error(), "new") {
			t.Errorf("%s: %v, want an error without a value", sql, err)
		}
	}
}

// Answers have every type exactly.
func TestSQLAnswers(t *testing.T) {
	w := newSQLWorld(t)
	for _, tt := range []struct {
		sql    string
		format query.SQLFormat
		want   string
	}{
		{
			"SELECT 18446744073709551615 AS a, -9223372036854775808 AS b, nan AS c, -inf AS d, CAST(1.5 AS Decimal(18, 4)) AS e, NULL AS f, true AS g", query.SQLJSONLines,
			`["a", "b", "c", "d", "e", "f", "g"]` + "\n" + `["UInt64", "Int64", "Float64", "Float64", "Decimal(18, 4)", "Nullable(Nothing)", "Bool"]` + "\n" +
				`[18446744073709551615, -9223372036854775808, null, null, 1.5, null, true]` + "\n",
		},
		{
			"SELECT toDateTime64('2026-03-01 12:30:00.123456', 6, 'UTC') AS a, toDateTime('2026-03-01 12:30:00', 'Asia/Tokyo') AS b, toDate('2026-03-01') AS c", query.SQLJSONLines,
			`["a", "b", "c"]` + "\n" + `["DateTime64(6, 'UTC')", "DateTime('Asia/Tokyo')", "Date"]` + "\n" + `["2026-03-01T12:30:00.123456Z", "2026-03-01T03:30:00Z", "2026-03-01"]` + "\n",
		},
		{
			"SELECT [1, 2] AS a, map('k', 'v') AS b, CAST((1, 'x') AS Tuple(n UInt8, s String)) AS c, (1, 'x') AS d, unhex('ff') AS e, 'a/\"\n' AS f", query.SQLJSONLines,
			`["a", "b", "c", "d", "e", "f"]` + "\n" + `["Array(UInt8)", "Map(String, String)", "Tuple(n UInt8, s String)", "Tuple(UInt8, String)", "String", "String"]` + "\n" +
				`[[1,2], {"k":"v"}, {"n":1,"s":"x"}, [1,"x"], "` + "\ufffd" + `", "a/\"\n"]` + "\n",
		},
		{"SELECT 1 AS a WHERE 0", query.SQLJSONLines, "[\"a\"]\n[\"UInt8\"]\n"},
		{"SELECT 1 AS a, 'x,\"y' AS b, NULL AS c", query.SQLCSV, "\"a\",\"b\",\"c\"\n1,\"x,\"\"y\",\\N\n"},
	} {
		got, err := w.run(t, tt.sql, tt.format)
		if err != nil || got != tt.want {
			t.Errorf("%s: error %v\ngot  %s\nwant %s", tt.sql, err, got, tt.want)
		}
	}
	parquet, err := w.run(t, "SELECT * FROM live_events", query.SQLParquet)
	if err != nil || !strings.HasPrefix(parquet, "PAR1") || !strings.HasSuffix(parquet, "PAR1") || !strings.Contains(parquet, "conversation_id") {
		t.Errorf("Parquet: %v, %d bytes", err, len(parquet))
	}
	// What is wrong with a query, its error says.
	for sql, want := range map[string]string{
		"SELEC 1":                         "Syntax error: failed at position 7",
		"SELECT nothing FROM live_events": "Unknown expression identifier `nothing`",
		"SELECT nofunction(1)":            "Function with name `nofunction` does not exist",
		"SELECT 1 + 'a'":                  "Illegal types",
		"SELECT 1; SELECT 2":              "Multi-statements are not allowed",
		"SELECT * FROM nothing":           "live_event_contents",
		"SELECT 1 FORMAT TSV":             "the parameter format",
		"SELECT toUInt8('x')":             "CANNOT_PARSE_TEXT",
	} {
		_, err := w.run(t, sql, query.SQLJSONLines)
		var own *query.SQLError
		if !errors.As(err, &own) || !strings.Contains(own.Message, want) || strings.Contains(own.Message, "DB::") || strings.Contains(own.Message, "version") {
			t.Errorf("%s: %v, want an error that says %q", sql, err, want)
		}
	}
}

// A query ends with its caller, and with its time.
func TestSQLEnds(t *testing.T) {
	w := newSQLWorld(t)
	const slow = "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)"
	running := func() string {
		return w.server.Query(t, "SELECT count() FROM system.processes WHERE user = '"+engine.SQLUser+"'")
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	begun := time.Now()
	if _, err := w.sql.Query(ctx, query.SQL{Text: slow}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	for tick := time.NewTicker(10 * time.Millisecond); running() != "0"; <-tick.C {
		if time.Since(begun) > sqlLimits.Timeout-500*time.Millisecond {
			t.Fatal("the query goes on without its caller")
		}
	}
	proxy := clickhousetest.NewProxy(t, w.server.HTTPAddr)
	proxy.Answers.Store(0)
	silent := openSQL(t, clickhouse.SQLConfig{Addr: proxy.Addr().String(), User: "x", AnswerTimeout: 200 * time.Millisecond})
	if _, err := silent.Query(t.Context(), query.SQL{Text: "SELECT 1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
	// As many at once as there may be.
	var wg sync.WaitGroup
	outcomes := make(chan string, 2*sqlLimits.QueriesMax)
	for range cap(outcomes) {
		wg.Go(func() {
			_, err := w.sql.Query(t.Context(), query.SQL{Text: slow})
			outcomes <- outcome(err)
		})
	}
	wg.Wait()
	close(outcomes)
	count := map[string]int{}
	for o := range outcomes {
		count[o]++
	}
	if count["busy"] == 0 || count["timeout"] == 0 || count["busy"]+count["timeout"] != cap(outcomes) {
		t.Errorf("%v, want some that are busy and some that take too long", count)
	}
}

// A user that may do more than it should is not used.
func TestSQLRole(t *testing.T) {
	good := engine.SQLUserConfig{Grants: clickhouse.SQLGrants(engine.Database), Settings: clickhouse.SQLSettings(sqlLimits)}
	const systemOpen = "system tables without a right"
	with := func(name, value string) engine.SQLUserConfig {
		settings := clickhouse.SQLSettings(sqlLimits)
		settings[name] = value
		return engine.SQLUserConfig{Grants: good.Grants, Settings: settings}
	}
	granted := func(grants ...string) engine.SQLUserConfig {
		return engine.SQLUserConfig{Grants: append(clickhouse.SQLGrants(engine.Database), grants...), Settings: good.Settings}
	}
	for _, tt := range []struct {
		name string
		user engine.SQLUserConfig
		want string
	}{
		{"as it should be", good, ""},
		{systemOpen, good, "system.processes"},
		{"the tables", granted("GRANT SELECT ON sluice.events"), "sluice.events"},
		{"the database", granted("GRANT SELECT ON sluice.*"), "sluice.*"},
		{"everything", granted("GRANT SELECT ON *.*"), "*.*"},
		{"an insert", granted("GRANT INSERT ON sluice.live_events"), "INSERT"},
		{"to grant", granted("GRANT SELECT ON sluice.live_events WITH GRANT OPTION"), "GRANT OPTION"},
		{"a source", granted("GRANT URL ON *.*"), "URL"},
		{"nothing", engine.SQLUserConfig{Grants: []string{"REVOKE ALL ON *.*"}, Settings: good.Settings}, "none of the live views"},
		{"settings", with("readonly", "2"), "readonly is 2"},
		{"no time", with("max_execution_time", "0"), "max_execution_time"},
		{"a part of an answer", with("result_overflow_mode", "break"), "result_overflow_mode"},
		{"another form", with("output_format_json_quote_64bit_integers", "1"), "quote_64bit_integers"},
	} {
		more := ""
		if tt.name == systemOpen {
			more = "<clickhouse><access_control_improvements><select_from_system_db_requires_grant>false</select_from_system_db_requires_grant></access_control_improvements></clickhouse>"
		}
		e, server := startEngine(t, &tt.user, more)
		store := clickhousetest.Open(t, clickhousetest.Config(server, engine.Database))
		if _, err := store.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		sql := openSQL(t, clickhouse.SQLConfig{Addr: e.HTTPAddr(), User: engine.SQLUser, Password: e.SQLPassword()})
		_, err := runSQL(t, sql, "SELECT 1", query.SQLJSONLines)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.want != "" && (!errors.Is(err, query.ErrSQLRole) || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want an error with %q", tt.name, err, tt.want)
		}
		if tt.want == "" {
			all := openSQL(t, clickhouse.SQLConfig{Addr: e.HTTPAddr(), User: engine.User, Password: e.Password()})
			if _, err := runSQL(t, all, "SELECT 1", query.SQLJSONLines); !errors.Is(err, query.ErrSQLRole) {
				t.Errorf("the user who may do everything: got %v, want %v", err, query.ErrSQLRole)
			}
			other := openSQL(t, clickhouse.SQLConfig{Addr: e.HTTPAddr(), User: engine.SQLUser, Password: "wrong"})
			if _, err := runSQL(t, other, "SELECT 1", query.SQLJSONLines); err == nil || errors.Is(err, query.ErrSQLRole) || !strings.Contains(err.Error(), "AUTHENTICATION_FAILED") {
				t.Errorf("a wrong password: got %v", err)
			}
		}
	}
}

func TestParseSQLURL(t *testing.T) {
	for url, want := range map[string]clickhouse.SQLConfig{
		"http://u:p%40s@host:81/db": {Addr: "host:81", User: "u", Password: "p@s", Database: "db"},
		"http://u@host":             {Addr: "host:8123", User: "u"},
	} {
		if got, err := clickhouse.ParseSQLURL(url); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", url, got, err, want)
		}
	}
	got, err := clickhouse.ParseSQLURL("https://u:p@host/db?ca_file=/ca.pem&server_name=ch")
	if err != nil || got.Addr != "host:8443" || !got.TLS.Enabled || got.TLS.CAFile != "/ca.pem" || got.TLS.ServerName != "ch" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, url := range []string{
		"http://host/db", "clickhouse://u:hunter2@host/db", "http://u:hunter2@host/a%20b", "http://u:hunter2@host/db?nope=1",
		"http://u:hunter2/x@host/db", "http://u:hunter2@host/db?ca_file=x", "http://u:hunter2@:81/db",
	} {
		if _, err := clickhouse.ParseSQLURL(url); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want an error without the password", url, err)
		}
	}
}

// The statements of docs/sql.md make the user that the embedded engine has.
func TestSQLDocumentedRole(t *testing.T) {
	text, err := os.ReadFile("../../docs/sql.md")
	if err != nil {
		t.Fatal(err)
	}
	_, setUp, _ := strings.Cut(string(text), "## Set up")
	settings := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^    (\w+) = '?(\w+)'?[,;]$`).FindAllStringSubmatch(setUp, -1) {
		settings[m[1]] = m[2]
	}
	if diff := gocmp.Diff(clickhouse.SQLSettings(clickhouse.SQLLimits{}), settings); diff != "" {
		t.Error("settings (-embedded +docs/sql.md):\n" + diff)
	}
	var grants []string
	for _, m := range regexp.MustCompile(`(?m)^(GRANT .*) TO sluice_sql;$`).FindAllStringSubmatch(setUp, -1) {
		grants = append(grants, m[1])
	}
	if diff := gocmp.Diff(clickhouse.SQLGrants("sluice", "sluice_shard"), grants); diff != "" {
		t.Error("rights (-embedded +docs/sql.md):\n" + diff)
	}
}

// The user of deploy/clickhouse/sql-user.xml, which the compose files use, is accepted.
func TestSQLDeployedRole(t *testing.T) {
	e, server := startEngine(t, nil, deployedUser(t))
	fillWorld(t, server, engine.Database)
	sql := openSQL(t, clickhouse.SQLConfig{Addr: e.HTTPAddr(), User: "sluice_sql", Password: "change-me"})
	for text, want := range map[string]string{
		"SELECT count() FROM live_events":         "answered",
		"SELECT count() FROM events":              "not allowed",
		"SELECT * FROM other.things":              "not allowed",
		"SELECT * FROM system.users":              "not allowed",
		"SELECT * FROM system.processes":          "not allowed",
		"SELECT 1 FORMAT Native":                  "wrong",
		"CREATE TEMPORARY TABLE t (a UInt8)":      "not allowed",
		"SELECT * FROM url('http://127.0.0.1:1')": "not allowed",
		"SET max_execution_time = 1000":           "not allowed",
	} {
		if _, err := runSQL(t, sql, text, query.SQLJSONLines); outcome(err) != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// deployedUser is deploy/clickhouse/sql-user.xml with a password.
func deployedUser(t *testing.T) string {
	t.Helper()
	file, err := os.ReadFile("../../deploy/clickhouse/sql-user.xml")
	if err != nil {
		t.Fatal(err)
	}
	// The embedded engine has no environment.
	return strings.Replace(string(file), `<password from_env="SLUICE_SQL_PASSWORD"/>`, `<password>change-me</password>`, 1)
}

// On a cluster the user reads the events of all shards by any server, and is kept in by
// each of them.
func TestClusterSQL(t *testing.T) {
	c := enginetest.StartCluster(t, enginetest.ClusterOptions{Config: deployedUser(t)})
	if _, err := clickhousetest.MigrateCluster(t, clickhousetest.OnCluster(c.Servers[0], enginetest.Shards, engine.Database)); err != nil {
		t.Fatal(err)
	}
	store := clickhousetest.Open(t, clickhousetest.Config(c.Servers[0], engine.Database))
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var rows event.Rows
	for shard := range uint32(2) {
		for i, name := range clickhousetest.ConversationsOf(shard, 3) {
			position, version := clickhousetest.Created(int64(10*shard) + int64(i))
			id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), name)
			rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: name, EventName: "event_a", Created: position, Version: version})
			rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte(liveText)}, Version: version})
		}
	}
	gone := rows.Cores[0]
	clickhousetest.Insert(t, store, rows)
	clickhousetest.Insert(t, store, event.Rows{
		Cores:    []event.Core{{ID: gone.ID, Version: clickhousetest.Deleted(100), Deleted: true}},
		Contents: []event.ContentRow{{ID: gone.ID, Field: event.FieldInput, Version: clickhousetest.Deleted(100), Deleted: true}},
	})
	for i, server := range c.Servers {
		sql := openSQL(t, clickhouse.SQLConfig{Addr: server.HTTPAddr, User: "sluice_sql", Password: "change-me"})
		for _, tt := range []struct{ sql, want string }{
			{"SELECT count() FROM live_events", "[5]"},
			{"SELECT count() FROM live_event_contents WHERE content = '" + liveText + "'", "[5]"},
			{"SELECT count() FROM live_event_embeddings", "[0]"},
			{"SELECT count() FROM live_events AS a GLOBAL JOIN live_event_contents AS b USING (id)", "[5]"},
			{"SELECT count() FROM live_events AS a JOIN live_event_contents AS b USING (id)", "[5]"},
			{"SELECT count() FROM live_events AS a JOIN live_events AS b ON a.event_name = b.event_name", "[25]"},
			{"SELECT count() FROM live_events WHERE event_name IN (SELECT event_name FROM live_events WHERE conversation_id = '" + rows.Cores[5].ConversationID + "')", "[5]"},
			{"SELECT count() FROM sluice_shard.live_events", []string{"[2]", "[3]"}[i]},
			{"SELECT count() FROM events", "not allowed"},
			{"SELECT count() FROM sluice_shard.events", "not allowed"},
			{"SELECT count() FROM sluice_shard.event_contents", "not allowed"},
			{"SELECT * FROM cluster('shards', sluice_shard.events)", "not allowed"},
			{"SELECT * FROM clusterAllReplicas('shards', system.one)", "not allowed"},
			{"SELECT * FROM remote('" + c.Servers[1-i].Addr + "', sluice_shard.events)", "not allowed"},
			{"SELECT * FROM system.clusters", "not allowed"},
			{"SELECT count() FROM live_events WHERE toUInt8(conversation_id) = 1", "wrong"},
		} {
			answer, err := runSQL(t, sql, tt.sql, query.SQLJSONLines)
			got := outcome(err)
			if lines := strings.Split(strings.TrimSpace(answer), "\n"); err == nil && tt.want != got {
				got = lines[len(lines)-1]
			}
			if got != tt.want {
				t.Errorf("server %d: %s: %s, want %s: %v", i, tt.sql, got, tt.want, err)
			}
			if err != nil && strings.Contains(err.Error(), "127.0.0.1") {
				t.Errorf("server %d: %s: the error names a server: %v", i, tt.sql, err)
			}
		}
	}
}
