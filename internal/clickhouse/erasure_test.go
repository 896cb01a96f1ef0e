package clickhouse_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// A deleted event's content leaves the disk by merges alone, which
// min_age_to_force_merge_seconds brings about, and its tombstone stays.
func TestErasure(t *testing.T) {
	store, server, database := migrated(t)
	tables := []string{"events", "event_contents", "event_embeddings"}
	for _, table := range tables {
		if !strings.Contains(server.Query(t, "SHOW CREATE TABLE "+database+"."+table), "min_age_to_force_merge_seconds = 86400") {
			t.Errorf("%s sets no bound on the age of unmerged parts", table)
		}
		// Without them nothing but the age brings these parts together.
		server.Query(t, "ALTER TABLE "+database+"."+table+" MODIFY SETTING min_age_to_force_merge_seconds = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 0, max_cleanup_delay_period = 1, merge_selecting_sleep_ms = 100, max_merge_selecting_sleep_ms = 200, old_parts_lifetime = 1, min_parts_to_merge_at_once = 1000, merge_selector_base = 1000000")
		// Its tasks were put off by the old settings.
		server.Query(t, "DETACH TABLE "+database+"."+table+" SYNC")
		server.Query(t, "ATTACH TABLE "+database+"."+table)
	}
	const secret = "the-secret-that-must-go"
	kept := event.NewID(at(t, "2026-03-01T00:00:00Z"), "c")
	gone := event.NewID(at(t, "2026-03-01T00:00:01Z"), "c")
	var rows event.Rows
	vector := event.VectorOf(1.2345678, 8.7654321, 3.1415927)
	for i, id := range []event.ID{kept, gone} {
		position, version := created(int64(i))
		content := "public"
		if id == gone {
			content = secret
		}
		rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: content, EventName: "event_a", Error: content, Metadata: `{"k":"` + content + `"}`, Created: position, Version: version})
		rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte(content)}, Version: version})
		rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: id, Field: event.FieldInputEmbeddings, Vector: vector, Version: version})
	}
	insert(t, store, rows)
	found := func() bool {
		// What any part says, whether it is the newest or not.
		count := server.Query(t, "SELECT (SELECT count() FROM "+database+".events WHERE conversation_id = '"+secret+"') + (SELECT count() FROM "+database+".event_contents WHERE content = '"+secret+"') + (SELECT countIf(id = '"+gone.String()+"' AND notEmpty(vector)) FROM "+database+".event_embeddings)")
		return count != "0"
	}
	if !found() {
		t.Fatal("the content was never there, so this test shows nothing")
	}
	version := deleted(10)
	tombstones := event.Rows{
		Cores:      []event.Core{{ID: gone, Version: version, Deleted: true}},
		Contents:   []event.ContentRow{{ID: gone, Field: event.FieldInput, Version: version, Deleted: true}, {ID: gone, Field: event.FieldOutput, Version: version, Deleted: true}},
		Embeddings: []event.EmbeddingRow{{ID: gone, Field: event.FieldInputEmbeddings, Version: version, Deleted: true}, {ID: gone, Field: event.FieldOutputEmbeddings, Version: version, Deleted: true}},
	}
	insert(t, store, tombstones)
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
