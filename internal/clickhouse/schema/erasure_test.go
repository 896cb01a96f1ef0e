package schema_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
)

// contentTables are those that a delete writes tombstones to.
var contentTables = []string{"events", "event_contents", "event_embeddings"}

const secret = "the-secret-that-must-go"

// unmerging keeps the tables' parts apart, but for merges by settings.
func unmerging(t *testing.T, server *enginetest.Instance, database, settings string) {
	t.Helper()
	for _, table := range contentTables {
		server.Query(t, "ALTER TABLE "+database+"."+table+" MODIFY SETTING cleanup_delay_period = 1, cleanup_delay_period_random_add = 0, max_cleanup_delay_period = 1, merge_selecting_sleep_ms = 100, max_merge_selecting_sleep_ms = 200, old_parts_lifetime = 1, min_parts_to_merge_at_once = 1000, merge_selector_base = 1000000, "+settings)
		// Its tasks were put off by the old settings.
		server.Query(t, "DETACH TABLE "+database+"."+table+" SYNC")
		server.Query(t, "ATTACH TABLE "+database+"."+table)
	}
}

// secretRows are those of an event's create, with the content in every column
// that a delete empties.
func secretRows(id event.ID, offset int64, content string) (rows event.Rows) {
	position, version := clickhousetest.Created(offset)
	rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: content, EventName: "event_a", Error: content, Metadata: `{"k":"` + content + `"}`, Created: position, Version: version})
	rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte(content)}, Version: version})
	rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: id, Field: event.FieldInputEmbeddings, Vector: event.VectorOf(1.2345678, 8.7654321, 3.1415927), Version: version})
	return rows
}

// together makes one insert of several.
func together(all ...event.Rows) (rows event.Rows) {
	for _, r := range all {
		rows.Cores = append(rows.Cores, r.Cores...)
		rows.Contents = append(rows.Contents, r.Contents...)
		rows.Embeddings = append(rows.Embeddings, r.Embeddings...)
	}
	return rows
}

// tombstones are the rows of an event's delete.
func tombstones(id event.ID, offset int64) event.Rows {
	version := clickhousetest.Deleted(offset)
	return event.Rows{
		Cores:      []event.Core{{ID: id, Version: version, Deleted: true}},
		Contents:   []event.ContentRow{{ID: id, Field: event.FieldInput, Version: version, Deleted: true}, {ID: id, Field: event.FieldOutput, Version: version, Deleted: true}},
		Embeddings: []event.EmbeddingRow{{ID: id, Field: event.FieldInputEmbeddings, Version: version, Deleted: true}, {ID: id, Field: event.FieldOutputEmbeddings, Version: version, Deleted: true}},
	}
}

// secretsIn counts the rows of any part that have the content of the event,
// whether they are the newest or not.
func secretsIn(t *testing.T, server *enginetest.Instance, database string, id event.ID) string {
	t.Helper()
	return server.Query(t, "SELECT (SELECT count() FROM "+database+".events WHERE conversation_id = '"+secret+"') + (SELECT count() FROM "+database+".event_contents WHERE content = '"+secret+"') + (SELECT countIf(id = '"+id.String()+"' AND notEmpty(vector)) FROM "+database+".event_embeddings)")
}

// A deleted event's content leaves the disk by merges alone, which
// min_age_to_force_merge_seconds brings about, and its tombstone stays.
func TestErasure(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	for _, table := range contentTables {
		if !strings.Contains(server.Query(t, "SHOW CREATE TABLE "+database+"."+table), "min_age_to_force_merge_seconds = 86400") {
			t.Errorf("%s sets no bound on the age of unmerged parts", table)
		}
	}
	// Nothing but the age brings these parts together.
	unmerging(t, server, database, "min_age_to_force_merge_seconds = 1")
	kept := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "c")
	gone := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:01Z"), "c")
	rows := together(secretRows(kept, 0, "public"), secretRows(gone, 1, secret))
	clickhousetest.Insert(t, store, rows)
	found := func() bool { return secretsIn(t, server, database, gone) != "0" }
	if !found() {
		t.Fatal("the content was never there, so this test shows nothing")
	}
	clickhousetest.Insert(t, store, tombstones(gone, 10))
	if e, err := store.Event(t.Context(), event.Ref{ID: gone}, 0); err != nil || e != nil {
		t.Fatalf("got %v, %v right after the delete", e, err)
	}
	deadline := time.Now().Add(60 * time.Second)
	for found() {
		if time.Now().After(deadline) {
			t.Fatal("the content is still in a part: " + server.Query(t, "SELECT table, name, active, level FROM system.parts WHERE database = '"+database+"' FORMAT TSV"))
		}
		<-time.After(100 * time.Millisecond)
	}
	// The parts that were merged leave the disk too.
	inactive := "SELECT count() FROM system.parts WHERE NOT active AND database = '" + database + "' AND table != 'schema_migrations'"
	for server.Query(t, inactive) != "0" {
		if time.Now().After(deadline) {
			t.Fatal("merged parts are still on the disk")
		}
		<-time.After(100 * time.Millisecond)
	}
	for _, path := range strings.Split(server.Query(t, "SELECT path FROM system.parts WHERE active AND database = '"+database+"' AND table IN ('events', 'event_contents', 'event_embeddings')"), "\n") {
		files, err := os.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(filepath.Join(path, file.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%s still has the content", file.Name())
			}
		}
	}
	cores, err := store.Cores(t.Context(), []event.ID{gone, kept})
	if err != nil {
		t.Fatal(err)
	}
	if !cores[gone].Deleted || cores[kept].Deleted {
		t.Errorf("the tombstone is lost: %+v", cores)
	}
	// Nothing of the log can bring it back.
	clickhousetest.Insert(t, store, rows)
	if e, err := store.Event(t.Context(), event.Ref{ID: gone}, 0); err != nil || e != nil {
		t.Fatalf("got %v, %v after a replay", e, err)
	}
	if e, err := store.Event(t.Context(), event.Ref{ID: kept}, 0); err != nil || e == nil || e.InputEmbeddings.Dimensions() != 3 {
		t.Fatalf("the other event: got %v, %v", e, err)
	}
}

// unerased are the tables, months and hosts in which something waits.
func unerased(t *testing.T, erasures *schema.Erasures) ([]schema.Unerased, string) {
	t.Helper()
	found, err := erasures.Unerased(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, u := range found {
		names = append(names, strings.TrimSpace(u.Table+" "+u.Partition+" "+u.Host))
	}
	slices.Sort(names)
	return found, strings.Join(names, ", ")
}

// expectUnerased fails unless exactly the named tables, months and hosts wait.
func expectUnerased(t *testing.T, erasures *schema.Erasures, when, want string) []schema.Unerased {
	t.Helper()
	found, names := unerased(t, erasures)
	if names != want {
		t.Fatalf("%s %q wait, want %q", when, names, want)
	}
	return found
}

// eraseAll merges what was found.
func eraseAll(t *testing.T, erasures *schema.Erasures, found []schema.Unerased) {
	t.Helper()
	for _, u := range found {
		if err := erasures.Erase(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
}

// apart keeps ClickHouse from merging any parts by itself. Syncs are left out,
// because there are many parts.
const apart = "min_age_to_force_merge_seconds = 0, max_bytes_to_merge_at_max_space_in_pool = 1, fsync_after_insert = 0, fsync_part_directory = 0"

const march = "event_contents 202603, event_embeddings 202603, events 202603"

// Where no merge of ClickHouse's own takes a tombstone and the row under it in,
// because of their ages or of how large they are, a month is merged whole.
func TestErase(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	unmerging(t, server, database, apart)
	kept := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "c")
	gone := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:01Z"), "c")
	elsewhere := event.NewID(clickhousetest.At(t, "2026-04-01T00:00:00Z"), "c")
	erasures := store.Erasures(0)

	clickhousetest.Insert(t, store, secretRows(kept, 0, "public"))
	clickhousetest.Insert(t, store, secretRows(elsewhere, 1, "public"))
	clickhousetest.Insert(t, store, secretRows(elsewhere, 1, "public"))
	expectUnerased(t, erasures, "before any delete", "")
	// It may be late: a replay brings the row after its tombstone.
	clickhousetest.Insert(t, store, tombstones(gone, 10))
	expectUnerased(t, erasures, "after the delete of nothing", "")
	clickhousetest.Insert(t, store, secretRows(gone, 2, secret))
	if n := secretsIn(t, server, database, gone); n != "3" {
		t.Fatalf("%s rows have the content, want that of 3 tables", n)
	}
	first := expectUnerased(t, erasures, "after the row", march)
	second := expectUnerased(t, erasures, "still", march)
	for i, u := range second {
		if u.Waited <= first[i].Waited || u.Parts != 3 {
			t.Errorf("%+v, and before %+v: the wait is to go on, with three parts", u, first[i])
		}
	}
	eraseAll(t, erasures, second)
	expectUnerased(t, erasures, "after the merge", "")
	if n := secretsIn(t, server, database, gone); n != "0" {
		t.Errorf("%s rows still have the content", n)
	}
	// What was there stays, and what was deleted stays so.
	state, err := store.CoreStates(t.Context(), []event.ID{kept, gone, elsewhere})
	if err != nil {
		t.Fatal(err)
	}
	if state[kept].Deleted || !state[gone].Deleted || state[elsewhere].Deleted || len(state) != 3 {
		t.Errorf("after the merge: %+v", state)
	}
	// A create of an event that was deleted long ago has no effect but its rows.
	clickhousetest.Insert(t, store, secretRows(gone, 20, secret))
	for _, u := range expectUnerased(t, erasures, "after a late create", march) {
		if u.Waited >= second[0].Waited {
			t.Errorf("%+v: the wait did not begin anew", u)
		}
	}
	// ClickHouse's own merges may come first.
	for _, table := range contentTables {
		server.Query(t, "OPTIMIZE TABLE "+database+"."+table+" FINAL")
	}
	expectUnerased(t, erasures, "after somebody else's merge", "")
	if n := server.Query(t, "SELECT count() FROM "+database+".erasures FINAL WHERE waiting_since > 0"); n != "0" {
		t.Errorf("%s months are recorded as waiting", n)
	}
}

// activeParts are the names of all active parts, by which a merge shows.
func activeParts(t *testing.T, server *enginetest.Instance, database string) string {
	t.Helper()
	return server.Query(t, "SELECT arrayStringConcat(groupArray(p), ' ') FROM (SELECT table || ':' || name AS p FROM system.parts WHERE active AND database = '"+database+"' AND table IN ('events', 'event_contents', 'event_embeddings') ORDER BY p)")
}

// Deletes of ids that never were, in every month that there can be, have nothing
// merged; and a delete of an event has merged what the event has rows in alone.
func TestEraseOnlyWhatIsCovered(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	unmerging(t, server, database, apart)
	values := make(map[string][]string)
	months := 0
	for day := time.Date(2000, 1, 15, 0, 0, 0, 0, time.UTC); day.Year() < 2026; day = day.AddDate(0, 1, 0) {
		for deleted, conversation := range []string{"kept", "never"} {
			if deleted == 0 && day.Month() != time.June {
				continue // a part takes its time
			}
			id := event.NewID(day.UnixMicro(), conversation)
			row := fmt.Sprintf("%d, fromUnixTimestamp64Micro(%d), '%s', %d, %d", id.ConversationHash(), id.Micros(), id, 1+deleted, deleted)
			values["events"] = append(values["events"], "("+row+")")
			for _, table := range contentTables[1:] {
				values[table] = append(values[table], "("+row+", 1)", "("+row+", 2)")
			}
		}
		months++
	}
	if months != 312 {
		t.Fatalf("%d months, want those of 26 years", months)
	}
	for _, table := range contentTables {
		columns := "conversation_hash, timestamp, id, version, deleted"
		if table != "events" {
			columns += ", field"
		}
		for deleted := range 2 {
			server.Query(t, fmt.Sprintf("INSERT INTO %s.%s (%[3]s) SETTINGS max_partitions_per_insert_block = 0 SELECT * FROM (SELECT * FROM VALUES('%s', %s)) WHERE deleted = %d",
				database, table, columns, strings.NewReplacer("conversation_hash", "conversation_hash UInt32", "timestamp", "timestamp DateTime64(6, \\'UTC\\')", "id,", "id UUID,", "version", "version UInt64", "deleted", "deleted UInt8", "field", "field Int8").Replace(columns), strings.Join(values[table], ", "), deleted))
		}
	}
	before := activeParts(t, server, database)
	if n := len(strings.Fields(before)); n != 3*(312+26) {
		t.Fatalf("%d parts, want one of each month and table, and another one of each year", n)
	}
	erasures := store.Erasures(time.Hour)
	expectUnerased(t, erasures, "over nothing", "")
	if after := activeParts(t, server, database); after != before {
		t.Error("something was merged for tombstones that cover nothing")
	}
	if n := server.Query(t, "SELECT count() FROM "+database+".erasures FINAL WHERE waiting_since > 0"); n != "0" {
		t.Errorf("%s months are recorded as waiting", n)
	}

	// Each covered event is found in the tables that it has rows in, and no other.
	core := event.NewID(clickhousetest.At(t, "2011-05-01T00:00:00Z"), "c")
	clickhousetest.Insert(t, store, event.Rows{Cores: secretRows(core, 5000, secret).Cores})
	clickhousetest.Insert(t, store, tombstones(core, 5001))
	content := event.NewID(clickhousetest.At(t, "2012-06-01T00:00:00Z"), "c")
	clickhousetest.Insert(t, store, event.Rows{Contents: secretRows(content, 5002, secret).Contents})
	clickhousetest.Insert(t, store, tombstones(content, 5003))
	vector := event.NewID(clickhousetest.At(t, "2013-07-01T00:00:00Z"), "c")
	clickhousetest.Insert(t, store, event.Rows{Embeddings: secretRows(vector, 5004, secret).Embeddings})
	clickhousetest.Insert(t, store, tombstones(vector, 5005))
	// A tombstone over another field covers nothing.
	field := event.NewID(clickhousetest.At(t, "2014-08-01T00:00:00Z"), "c")
	other := tombstones(field, 5007)
	other.Contents, other.Embeddings = other.Contents[1:], other.Embeddings[1:]
	clickhousetest.Insert(t, store, event.Rows{Contents: secretRows(field, 5006, "public").Contents})
	clickhousetest.Insert(t, store, other)
	const want = "event_contents 201206, event_embeddings 201307, events 201105"
	expectUnerased(t, store.Erasures(0), "to whoever begins to search,", want)
	found := expectUnerased(t, erasures, "to whoever goes on,", want)
	before = activeParts(t, server, database)
	eraseAll(t, erasures, found)
	expectUnerased(t, erasures, "after the merges", "")
	after := strings.Fields(activeParts(t, server, database))
	// Of events and embeddings three parts became one, of contents, whose month is a June, four.
	if n := len(strings.Fields(before)) - len(after); n != 2+2+3 {
		t.Errorf("%d parts less than before, want 7", n)
	}
}

// A row and its tombstone can be in one part, as no merge has seen it yet.
func TestEraseWithinAPart(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	unmerging(t, server, database, apart)
	gone := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "c")
	clickhousetest.Insert(t, store, together(secretRows(gone, 0, secret), tombstones(gone, 1)))
	if n := secretsIn(t, server, database, gone); n != "3" {
		t.Fatalf("%s rows have the content, want that of 3 tables", n)
	}
	erasures := store.Erasures(time.Hour)
	eraseAll(t, erasures, expectUnerased(t, erasures, "in one part each,", march))
	if n := secretsIn(t, server, database, gone); n != "0" {
		t.Errorf("%s rows still have the content", n)
	}
	expectUnerased(t, erasures, "in one part that was merged,", "")
	expectUnerased(t, store.Erasures(0), "to whoever begins to search,", "")
}

// Content that comes under an older tombstone waits no longer than any other.
func TestEraseContentUnderAnOlderTombstone(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	unmerging(t, server, database, apart)
	gone := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "c")
	clickhousetest.Insert(t, store, secretRows(event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "kept"), 0, "public"))
	clickhousetest.Insert(t, store, tombstones(gone, 10))
	goesOn := store.Erasures(time.Second)
	expectUnerased(t, goesOn, "over nothing", "")
	clickhousetest.Insert(t, store, secretRows(gone, 1, secret))
	// Who has searched already finds it within the time that is set.
	deadline := time.Now().Add(time.Minute)
	for {
		found, names := unerased(t, goesOn)
		if names == march {
			for _, u := range found {
				if u.Waited <= 0 {
					t.Errorf("%+v: it has waited since the last search", u)
				}
			}
			break
		}
		if names != "" || time.Now().After(deadline) {
			t.Fatalf("%q wait, want %q", names, march)
		}
		<-time.After(10 * time.Millisecond)
	}

	// Who begins to search knows from the record when the last search was, by
	// whomever it was.
	for _, c := range []struct {
		ago, atLeast, atMost time.Duration
	}{
		{30 * time.Minute, 30 * time.Minute, time.Hour - time.Second},
		{90 * time.Minute, time.Hour, time.Hour}, // it is due
		{0, 0, 0},                                // nobody has searched, and it begins now
	} {
		server.Query(t, "TRUNCATE TABLE "+database+".erasures")
		if c.ago > 0 {
			for _, table := range contentTables {
				server.Query(t, fmt.Sprintf("INSERT INTO %s.erasures VALUES ('%s', '202603', 0, now64(6) - %d)", database, table, int(c.ago.Seconds())))
			}
		}
		for _, u := range expectUnerased(t, store.Erasures(time.Hour), "to whoever begins to search,", march) {
			if u.Waited < c.atLeast || u.Waited > c.atMost {
				t.Errorf("%+v: the last search was %s ago, so it is to have waited %s to %s", u, c.ago, c.atLeast, c.atMost)
			}
		}
	}
	eraseAll(t, goesOn, expectUnerased(t, goesOn, "still", march))
	if n := secretsIn(t, server, database, gone); n != "0" {
		t.Errorf("%s rows still have the content", n)
	}
}

// A search finds exactly the months in which SQL that reads everything finds
// something, in whatever parts it is, and over any number of batches.
func TestEraseFindsWhatIsThere(t *testing.T) {
	server := enginetest.Server(t)
	database := server.Database(t)
	cfg := clickhousetest.Config(server, database)
	cfg.LookupKeysMax = 7
	store := clickhousetest.Open(t, cfg)
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	unmerging(t, server, database, apart)
	seed := rand.Uint64()
	if text := os.Getenv("SLUICE_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SLUICE_SEED: %v", err)
		}
	}
	r := rand.New(rand.NewPCG(seed, 0))
	ids := make([]event.ID, 60)
	for i := range ids {
		month := clickhousetest.At(t, fmt.Sprintf("2026-%02d-01T00:00:00Z", 3+r.IntN(2)))
		ids[i] = event.NewID(month+int64(r.IntN(3))*86_400_000_000+int64(r.IntN(3)), fmt.Sprint(r.IntN(3)))
	}
	covered := func() string {
		var found []string
		for _, table := range contentTables {
			field := "1"
			if table != "events" {
				field = "field"
			}
			months := server.Query(t, "SELECT DISTINCT '"+table+" ' || p FROM (SELECT _partition_id AS p, id, "+field+" AS f FROM "+database+"."+table+" GROUP BY p, id, f HAVING min(deleted) != max(deleted))")
			found = append(found, strings.Fields(strings.ReplaceAll(months, table+" ", table+":"))...)
		}
		slices.Sort(found)
		return strings.ReplaceAll(strings.Join(found, ", "), ":", " ")
	}
	begun, waited, merged := 0, 0, 0
	goesOn, later := store.Erasures(0), store.Erasures(time.Hour)
	for step := range 15 {
		var rows []event.Rows
		for range 1 + r.IntN(20) {
			id := ids[r.IntN(len(ids))]
			made, dead := secretRows(id, int64(step), secret), tombstones(id, int64(step))
			if r.IntN(2) == 0 {
				made.Contents, dead.Contents = made.Contents[:0], dead.Contents[1:]
			}
			if r.IntN(4) < 3 {
				rows = append(rows, dead)
			} else {
				rows = append(rows, made)
			}
		}
		clickhousetest.Insert(t, store, together(rows...))
		if r.IntN(4) == 0 {
			server.Query(t, "OPTIMIZE TABLE "+database+"."+contentTables[r.IntN(3)]+" FINAL")
		}
		want := covered()
		if _, names := unerased(t, store.Erasures(0)); names != want {
			t.Fatalf("seed %d, step %d: a new search finds %q, want %q", seed, step, names, want)
		}
		found, names := unerased(t, goesOn)
		if names != want {
			t.Fatalf("seed %d, step %d: a search that goes on finds %q, want %q", seed, step, names, want)
		}
		// Where rows come under old tombstones it need not know yet.
		_, names = unerased(t, later)
		for _, name := range strings.Split(names, ", ") {
			if !strings.Contains(want, name) {
				t.Fatalf("seed %d, step %d: %q is found, and only %q is there", seed, step, name, want)
			}
		}
		begun, waited = begun+1, waited+len(found)
		if len(found) > 0 && step%3 == 0 {
			u := found[r.IntN(len(found))]
			eraseAll(t, goesOn, []schema.Unerased{u})
			merged++
			if now := covered(); strings.Contains(now, u.Table+" "+u.Partition) {
				t.Fatalf("seed %d, step %d: %s is merged, and %q still has something", seed, step, u.Table+" "+u.Partition, now)
			}
		}
	}
	if waited < begun || waited > 5*begun || merged < 3 {
		t.Errorf("%d searches found %d months, and %d were merged: the test shows little", begun, waited, merged)
	}
}

// What a retention takes off the disk does not wait for anything.
func TestEraseAndRetention(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	unmerging(t, server, database, "min_age_to_force_merge_seconds = 0, merge_with_ttl_timeout = 0")
	old := event.NewID(clickhousetest.At(t, "2020-03-01T00:00:00Z"), "c")
	recent := event.NewID(time.Now().UnixMicro(), "c")
	for i, id := range []event.ID{old, recent} {
		clickhousetest.Insert(t, store, secretRows(id, int64(i), secret))
		clickhousetest.Insert(t, store, tombstones(id, int64(10+i)))
	}
	erasures := store.Erasures(0)
	if found, names := unerased(t, erasures); len(found) != 6 {
		t.Fatalf("%q wait, want two months of three tables", names)
	}
	if _, err := store.SetRetention(t.Context(), 30*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for server.Query(t, "SELECT count() FROM system.parts WHERE active AND rows > 0 AND partition_id = '202003' AND database = '"+database+"'") != "0" {
		if time.Now().After(deadline) {
			t.Fatal("the old month is not dropped")
		}
		<-time.After(100 * time.Millisecond)
	}
	found, names := unerased(t, erasures)
	if len(found) != 3 || strings.Contains(names, "202003") {
		t.Fatalf("%q wait, want the recent month alone", names)
	}
	if n := server.Query(t, "SELECT count() FROM "+database+".erasures FINAL WHERE waiting_since > 0 AND partition_id = '202003'"); n != "0" {
		t.Errorf("%s tables of the old month are recorded as waiting", n)
	}
	eraseAll(t, erasures, found)
	if n := secretsIn(t, server, database, recent); n != "0" {
		t.Errorf("%s rows still have the content", n)
	}
}

// A month that is written to all the time is merged all the same.
func TestEraseUnderInserts(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	ctx, cancel := context.WithCancel(t.Context())
	inserted := make(chan error, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			creates := make([]event.Rows, 1000)
			for i := range creates {
				n++
				creates[i] = secretRows(event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z")+int64(n), "public"), int64(n), "public")
			}
			rows := together(creates...)
			if err := store.Insert(ctx, &rows); err != nil && ctx.Err() == nil {
				inserted <- err
				return
			}
		}
		inserted <- nil
	}()
	gone := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "gone")
	clickhousetest.Insert(t, store, secretRows(gone, 0, secret))
	clickhousetest.Insert(t, store, tombstones(gone, 1<<40))
	erasures := store.Erasures(0)
	found := expectUnerased(t, erasures, "under inserts", march)
	eraseAll(t, erasures, found)
	if n := secretsIn(t, server, database, gone); n != "0" {
		t.Errorf("%s rows have the content, after %+v were merged", n, found)
	}
	cancel()
	if err := <-inserted; err != nil {
		t.Error(err)
	}
}

// A month that cannot be merged is an error, and waits on.
func TestEraseFails(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	unmerging(t, server, database, "min_age_to_force_merge_seconds = 0")
	id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "c")
	clickhousetest.Insert(t, store, secretRows(id, 0, secret))
	clickhousetest.Insert(t, store, tombstones(id, 1))
	erasures := store.Erasures(0)
	before, names := unerased(t, erasures)
	for _, u := range before {
		server.Query(t, "SYSTEM STOP MERGES "+database+"."+u.Table)
		if err := erasures.Erase(t.Context(), u); err == nil || !strings.Contains(err.Error(), u.Table+", partition 202603") {
			t.Errorf("error %v, want one that names the month", err)
		}
		server.Query(t, "SYSTEM START MERGES "+database+"."+u.Table)
	}
	after, still := unerased(t, erasures)
	if still != names || len(before) != 3 {
		t.Fatalf("%q wait, and before %q", still, names)
	}
	for i, u := range after {
		if u.Waited <= before[i].Waited {
			t.Errorf("%+v, and before %+v: the wait is to go on", u, before[i])
		}
	}
}

// On a cluster each shard's months are merged where they are, and where a
// tombstone covers something.
func TestClusterErase(t *testing.T) {
	stores, c, database := clickhousetest.Spread(t)
	clickhousetest.Everywhere(t, c, "ALTER TABLE "+database+"_shard.events MODIFY SETTING merge_selector_base = 1000000, min_parts_to_merge_at_once = 1000")
	var want []string
	for shard, server := range c.Servers {
		id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), clickhousetest.ConversationsOf(uint32(shard), 1)[0])
		clickhousetest.Insert(t, stores[0], secretRows(id, int64(shard), secret))
		clickhousetest.Insert(t, stores[0], tombstones(id, 10))
		// In other months there is something under a tombstone on one shard alone.
		once := event.NewID(clickhousetest.At(t, fmt.Sprintf("2026-%02d-01T00:00:00Z", 4+shard)), clickhousetest.ConversationsOf(uint32(shard), 1)[0])
		clickhousetest.Insert(t, stores[0], secretRows(once, 20, secret))
		clickhousetest.Insert(t, stores[0], tombstones(once, 21))
		never := event.NewID(once.Micros(), clickhousetest.ConversationsOf(uint32(1-shard), 1)[0])
		clickhousetest.Insert(t, stores[0], secretRows(never, 22, "public"))
		clickhousetest.Insert(t, stores[0], tombstones(event.NewID(never.Micros()+1, clickhousetest.ConversationsOf(uint32(1-shard), 1)[0]), 23))
		for _, table := range contentTables {
			want = append(want, fmt.Sprint(table, " 202603 ", server.Addr), fmt.Sprintf("%s 2026%02d %s", table, 4+shard, server.Addr))
		}
	}
	slices.Sort(want)
	erasures := stores[1].Erasures(0)
	eraseAll(t, erasures, expectUnerased(t, erasures, "before", strings.Join(want, ", ")))
	expectUnerased(t, stores[0].Erasures(0), "after the merges", "")
	for _, server := range c.Servers {
		if n := server.Query(t, "SELECT count() FROM "+database+"_shard.event_contents WHERE content = '"+secret+"'"); n != "0" {
			t.Errorf("%s: the content is still there", server.Addr)
		}
	}
}
