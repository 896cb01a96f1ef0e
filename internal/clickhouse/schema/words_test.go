package schema_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
)

// TestIndexOfOlderContents has contents from before the index of words. Their index is built in the background; contents
// that came after the migration are left to the merges.
func TestIndexOfOlderContents(t *testing.T) {
	server := enginetest.Server(t)
	database := migratedTo(t, server, 9)
	insert := func(month string, rows int) {
		server.Query(t, fmt.Sprintf(`INSERT INTO %s.event_contents (conversation_hash, timestamp, id, field, kind, content, version)
			SELECT number, toDateTime64('%s-03 00:00:00', 6, 'UTC'), generateUUIDv4(), 'input', 1, 'a word w' || toString(number), 1 FROM numbers(%d)
			SETTINGS exclude_materialize_skip_indexes_on_insert = 'content_words'`, database, month, rows))
	}
	insert("2026-01", 2000)
	insert("2026-02", 3000)
	store := clickhousetest.Open(t, clickhousetest.Config(server, database))
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Query(t, "SELECT sleep(1.1)") // by the server's clock: parts are dated by seconds
	indexBytes := func() string {
		return server.Query(t, "SELECT partition_id, sum(secondary_indices_compressed_bytes) FROM system.parts WHERE active AND database = '"+database+"' AND table = 'event_contents' AND partition_id < '202603' GROUP BY partition_id ORDER BY partition_id")
	}
	before := indexBytes()
	parts, err := store.IndexWords(t.Context())
	if err != nil || parts != 2 {
		t.Fatalf("%d parts without the index, %v; want 2", parts, err)
	}
	tick, end := time.NewTicker(50*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for parts > 0 {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%d parts are still without the index after a minute", parts)
		}
		if parts, err = store.IndexWords(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := indexBytes(); after == before {
		t.Errorf("the indexes of the months take %q bytes, as before", after)
	}
	if got := server.Query(t, "SELECT count() FROM system.mutations WHERE database = '"+database+"' AND table = 'event_contents'"); got != "1" {
		t.Errorf("the index was built %s times", got)
	}
	insert("2026-03", 500)
	if parts, err := store.IndexWords(t.Context()); parts != 0 || err != nil {
		t.Errorf("%d new parts without the index, %v", parts, err)
	}
	if got := server.Query(t, "SELECT count() FROM "+database+".event_contents WHERE hasAllTokens(words, ['w444', 'word'])"); got != "3" {
		t.Errorf("%s rows have the word, want 3", got)
	}
}
