package schema_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/query"
)

// TestSignsOfOlderEmbeddings has embeddings from before the column of signs. They are found at once, and as before when
// their signs are stored, in the background.
func TestSignsOfOlderEmbeddings(t *testing.T) {
	server := enginetest.Server(t)
	database := migratedTo(t, server, 10)
	insert := func(month string, first int) {
		// An id has its time in its first 48 bits, the version 8 after it, and the hash of the conversation further on.
		from := fmt.Sprintf(`FROM (SELECT number AS n, toUnixTimestamp64Milli(toDateTime64('%s-03 00:00:00', 3, 'UTC')) + n AS ms, bitShiftRight(xxHash64('c'), 40) AS hash,
				reinterpret(bitOr(bitShiftLeft(toUInt128(bitOr(bitShiftLeft(toUInt64(2), 62), bitOr(bitShiftLeft(hash, 38), n))), 64), toUInt128(bitOr(bitShiftLeft(toUInt64(ms), 16), 0x8000))), 'UUID') AS id
			FROM numbers(%d, 400))`, month, first)
		server.Query(t, "INSERT INTO "+database+`.events (conversation_hash, timestamp, id, conversation_id, event_name, created, version)
			SELECT hash, fromUnixTimestamp64Milli(toInt64(ms), 'UTC'), id, 'c', 'event_a', n + 1, 0x3FFFFFFFFFFFFFFF - (n + 1) `+from)
		server.Query(t, "INSERT INTO "+database+`.event_embeddings (conversation_hash, timestamp, id, field, vector, version)
			SELECT hash, fromUnixTimestamp64Milli(toInt64(ms), 'UTC'), id, 'input', arrayMap(i -> toFloat32(cityHash64(n, i) % 2001 / 1000 - 1), range(130)), 0x3FFFFFFFFFFFFFFF - (n + 1) `+from)
	}
	insert("2026-01", 0)
	insert("2026-02", 400)
	cfg := clickhousetest.Config(server, database)
	cfg.SimilarExactRows = 1
	store := clickhousetest.Open(t, cfg)
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	vector := make([]float32, 130)
	for i := range vector {
		vector[i] = float32(i%7) - 3
	}
	nearest := func(exact bool) (ids []string) {
		t.Helper()
		hits, err := store.SearchSimilar(t.Context(), query.SimilarSearch{
			Filter: query.Filter{UntilMicros: query.MicrosMax}, Vector: vector, Input: true, LimitEvents: 5, BytesMax: 1 << 20, Exact: exact,
		})
		if err != nil || len(hits.Hits) != 5 {
			t.Fatalf("%d events, %v", len(hits.Hits), err)
		}
		for _, h := range hits.Hits {
			ids = append(ids, h.Event.ID)
		}
		return ids
	}
	const sum = "SELECT count(), sum(cityHash64(id, signs)), sum(length(signs)) FROM "
	signs := func() string { return server.Query(t, sum+database+".event_embeddings") }
	found, want, computed := nearest(false), nearest(true), signs()
	t.Logf("by signs %v, exactly %v", found, want)

	parts, err := store.StoreSigns(t.Context())
	if err != nil || parts != 2 {
		t.Fatalf("%d parts without signs, %v; want 2", parts, err)
	}
	tick, end := time.NewTicker(50*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for parts > 0 {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%d parts are still without signs after a minute", parts)
		}
		if parts, err = store.StoreSigns(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if stored := signs(); stored != computed {
		t.Errorf("the signs that are stored, %q, are not those that were computed, %q", stored, computed)
	}
	if diff := cmp.Diff(found, nearest(false)); diff != "" {
		t.Errorf("other events are found than before the signs were stored (-before +after):\n%s", diff)
	}
	if got := server.Query(t, "SELECT count() FROM system.mutations WHERE database = '"+database+"' AND table = 'event_embeddings'"); got != "1" {
		t.Errorf("the signs were stored %s times", got)
	}
	insert("2026-03", 800)
	if parts, err := store.StoreSigns(t.Context()); parts != 0 || err != nil {
		t.Errorf("%d new parts without signs, %v", parts, err)
	}
	if got := server.Query(t, "SELECT count() FROM "+database+".event_embeddings WHERE signs = unbin(arrayStringConcat(arrayMap(x -> if(x < 0, '1', '0'), vector)))"); got != "1200" {
		t.Errorf("%s rows have the signs of their vectors, want 1200", got)
	}
}
