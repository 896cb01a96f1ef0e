package clickhouse_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse"
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
	position, version := created(offset)
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
	version := deleted(offset)
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
	store, server, database := migrated(t)
	for _, table := range contentTables {
		if !strings.Contains(server.Query(t, "SHOW CREATE TABLE "+database+"."+table), "min_age_to_force_merge_seconds = 86400") {
			t.Errorf("%s sets no bound on the age of unmerged parts", table)
		}
	}
	// Nothing but the age brings these parts together.
	unmerging(t, server, database, "min_age_to_force_merge_seconds = 1")
	kept := event.NewID(at(t, "2026-03-01T00:00:00Z"), "c")
	gone := event.NewID(at(t, "2026-03-01T00:00:01Z"), "c")
	rows := together(secretRows(kept, 0, "public"), secretRows(gone, 1, secret))
	insert(t, store, rows)
	found := func() bool { return secretsIn(t, server, database, gone) != "0" }
	if !found() {
		t.Fatal("the content was never there, so this test shows nothing")
	}
	insert(t, store, tombstones(gone, 10))
	if e, err := store.Event(t.Context(), event.Ref{ID: gone}); err != nil || e != nil {
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
	insert(t, store, rows)
	if e, err := store.Event(t.Context(), event.Ref{ID: gone}); err != nil || e != nil {
		t.Fatalf("got %v, %v after a replay", e, err)
	}
	if e, err := store.Event(t.Context(), event.Ref{ID: kept}); err != nil || e == nil || e.InputEmbeddings.Dimensions() != 3 {
		t.Fatalf("the other event: got %v, %v", e, err)
	}
}

// unerased are the tables, months and hosts in which something waits.
func unerased(t *testing.T, store *clickhouse.Store) ([]clickhouse.Unerased, string) {
	t.Helper()
	found, err := store.Unerased(t.Context())
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

// Where no merge of ClickHouse's own takes a tombstone and the row under it in,
// because of their ages or of how large they are, a month is merged whole.
func TestErase(t *testing.T) {
	store, server, database := migrated(t)
	unmerging(t, server, database, "min_age_to_force_merge_seconds = 0, max_bytes_to_merge_at_max_space_in_pool = 1")
	kept := event.NewID(at(t, "2026-03-01T00:00:00Z"), "c")
	gone := event.NewID(at(t, "2026-03-01T00:00:01Z"), "c")
	elsewhere := event.NewID(at(t, "2026-04-01T00:00:00Z"), "c")
	expect := func(when, want string) []clickhouse.Unerased {
		t.Helper()
		found, names := unerased(t, store)
		if names != want {
			t.Fatalf("%s %q wait, want %q", when, names, want)
		}
		return found
	}
	const all = "event_contents 202603, event_embeddings 202603, events 202603"

	insert(t, store, secretRows(kept, 0, "public"))
	insert(t, store, secretRows(elsewhere, 1, "public"))
	insert(t, store, secretRows(elsewhere, 1, "public"))
	expect("before any delete", "")
	// It may be late: a replay brings the row after its tombstone.
	insert(t, store, tombstones(gone, 10))
	first := expect("after the delete", all)
	insert(t, store, secretRows(gone, 2, secret))
	if n := secretsIn(t, server, database, gone); n != "3" {
		t.Fatalf("%s rows have the content, want that of 3 tables", n)
	}
	second := expect("after the row", all)
	for i, u := range second {
		if u.Waited <= first[i].Waited || u.Parts != 3 {
			t.Errorf("%+v, and before %+v: the wait is to go on, with three parts", u, first[i])
		}
	}
	for _, u := range second {
		if err := store.Erase(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	expect("after the merge", "")
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
	insert(t, store, secretRows(gone, 20, secret))
	for _, u := range expect("after a late create", all) {
		if u.Waited > 0 {
			t.Errorf("%+v: the wait did not begin anew", u)
		}
	}
	// ClickHouse's own merges may come first.
	for _, table := range contentTables {
		server.Query(t, "OPTIMIZE TABLE "+database+"."+table+" FINAL")
	}
	expect("after somebody else's merge", "")
	if n := server.Query(t, "SELECT count() FROM "+database+".erasures FINAL WHERE waiting_since > 0"); n != "0" {
		t.Errorf("%s months are recorded as waiting", n)
	}
}

// A month that is written to all the time is merged all the same.
func TestEraseUnderInserts(t *testing.T) {
	store, server, database := migrated(t)
	ctx, cancel := context.WithCancel(t.Context())
	inserted := make(chan error, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			creates := make([]event.Rows, 1000)
			for i := range creates {
				n++
				creates[i] = secretRows(event.NewID(at(t, "2026-03-01T00:00:00Z")+int64(n), "public"), int64(n), "public")
			}
			rows := together(creates...)
			if err := store.Insert(ctx, &rows); err != nil && ctx.Err() == nil {
				inserted <- err
				return
			}
		}
		inserted <- nil
	}()
	gone := event.NewID(at(t, "2026-03-01T00:00:00Z"), "gone")
	insert(t, store, secretRows(gone, 0, secret))
	insert(t, store, tombstones(gone, 1<<40))
	found, _ := unerased(t, store)
	for _, u := range found {
		if err := store.Erase(t.Context(), u); err != nil {
			t.Error(err)
		}
	}
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
	store, server, database := migrated(t)
	unmerging(t, server, database, "min_age_to_force_merge_seconds = 0")
	id := event.NewID(at(t, "2026-03-01T00:00:00Z"), "c")
	insert(t, store, secretRows(id, 0, secret))
	insert(t, store, tombstones(id, 1))
	before, names := unerased(t, store)
	for _, u := range before {
		server.Query(t, "SYSTEM STOP MERGES "+database+"."+u.Table)
		if err := store.Erase(t.Context(), u); err == nil || !strings.Contains(err.Error(), u.Table+", partition 202603") {
			t.Errorf("error %v, want one that names the month", err)
		}
		server.Query(t, "SYSTEM START MERGES "+database+"."+u.Table)
	}
	after, still := unerased(t, store)
	if still != names || len(before) != 3 {
		t.Fatalf("%q wait, and before %q", still, names)
	}
	for i, u := range after {
		if u.Waited <= before[i].Waited {
			t.Errorf("%+v, and before %+v: the wait is to go on", u, before[i])
		}
	}
}

// On a cluster each shard's months are merged where they are.
func TestClusterErase(t *testing.T) {
	stores, c, database := spread(t)
	everywhere(t, c, "ALTER TABLE "+database+"_shard.events MODIFY SETTING merge_selector_base = 1000000, min_parts_to_merge_at_once = 1000")
	var want []string
	for shard, server := range c.Servers {
		id := event.NewID(at(t, "2026-03-01T00:00:00Z"), conversationsOf(uint32(shard), 1)[0])
		insert(t, stores[0], secretRows(id, int64(shard), secret))
		insert(t, stores[0], tombstones(id, 10))
		for _, table := range contentTables {
			want = append(want, fmt.Sprint(table, " 202603 ", server.Addr))
		}
	}
	slices.Sort(want)
	found, names := unerased(t, stores[1])
	if names != strings.Join(want, ", ") {
		t.Fatalf("%q wait, want %q", names, want)
	}
	for _, u := range found {
		if err := stores[1].Erase(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	if _, names := unerased(t, stores[0]); names != "" {
		t.Errorf("%q wait after the merges", names)
	}
	for _, server := range c.Servers {
		if n := server.Query(t, "SELECT count() FROM "+database+"_shard.event_contents WHERE content = '"+secret+"'"); n != "0" {
			t.Errorf("%s: the content is still there", server.Addr)
		}
	}
}
