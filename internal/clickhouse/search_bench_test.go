package clickhouse_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/fulltext"
	"github.com/sluicehq/sluice/internal/query"
)

const benchDimensions = 384

// fillSearch writes events in a month, one content each, of words that are as frequent as Zipf's law says, and a
// vector for some. All is made inside ClickHouse.
func fillSearch(b *testing.B, server *enginetest.Instance, database string, events, vectors int) {
	b.Helper()
	const start, month = 1_769_904_000_000_000, 28 * 24 * 3600 * 1_000_000
	// The id is minted: its time, the hash of its conversation, and n.
	of := fmt.Sprintf(`(SELECT number AS n, toUInt64(%d + intDiv(number * %d, %d)) AS micros, toUInt32(bitShiftRight(xxHash64('c' || toString(n %% 100000)), 40)) AS hash,
        bitOr(bitShiftLeft(intDiv(micros, 1000), 16), bitOr(0x8000, micros %% 1000)) AS hi,
        bitOr(bitShiftLeft(toUInt64(2), 62), bitOr(bitShiftLeft(toUInt64(hash), 38), n)) AS lo,
        reinterpret(bitOr(bitShiftLeft(toUInt128(lo), 64), toUInt128(hi)), 'UUID') AS id,
        fromUnixTimestamp64Micro(toInt64(micros), 'UTC') AS timestamp, 0x3FFFFFFFFFFFFFFF - (n + 1) AS create_version FROM numbers(%d))`, start, month, events, events)
	server.Query(b, "INSERT INTO "+database+`.events (conversation_hash, timestamp, id, conversation_id, event_name, error, latency, metadata, created, version)
SELECT hash, timestamp, id, 'c' || toString(n % 100000), ['event_a', 'event_b', 'event_c'][n % 3 + 1], if(n % 97 = 0, 'timeout', NULL), n % 1000, '{"plan":"' || ['free', 'pro'][n % 2 + 1] || '"}', n + 1, create_version FROM `+of)
	// 40 words each: of rank r with a frequency of about 1/r, from a vocabulary of 50,000; and one word that 5 events have.
	server.Query(b, "INSERT INTO "+database+`.event_contents (conversation_hash, timestamp, id, field, kind, content, version)
SELECT hash, timestamp, id, 'input', 1, arrayStringConcat(arrayMap(i -> 'w' || toString(toUInt32(exp(log(50000) * (cityHash64(n, i) % 1000003 / 1000003)))), range(40)), ' ')
    || if(n % `+strconv.Itoa(events/5)+` = 7, ' zebra', ''), create_version FROM `+of)
	server.Query(b, "INSERT INTO "+database+`.event_embeddings (conversation_hash, timestamp, id, field, vector, version)
SELECT hash, timestamp, id, 'input', arrayMap(i -> toFloat32(cityHash64(n, i) % 2001 / 1000 - 1), range(`+strconv.Itoa(benchDimensions)+`)), create_version FROM `+of+
		` WHERE n < `+strconv.Itoa(vectors))
}

// BenchmarkSearch searches a month of contents (SLUICE_BENCH_EVENTS, by default 1 million) and of vectors
// (SLUICE_BENCH_VECTORS, by default 200,000): clean, and after 1 % of the events changed and 1 % were deleted.
func BenchmarkSearch(b *testing.B) {
	events, vectors := benchSize(b, "SLUICE_BENCH_EVENTS", 1_000_000), benchSize(b, "SLUICE_BENCH_VECTORS", 200_000)
	store, server, database := clickhousetest.Migrated(b)
	fillSearch(b, server, database, events, vectors)
	for _, table := range eventTables {
		server.Query(b, "OPTIMIZE TABLE "+database+"."+table+" FINAL")
	}
	b.Logf("event_contents, bytes of contents and of the index: %s", server.Query(b, "SELECT sum(data_compressed_bytes), sum(secondary_indices_compressed_bytes) FROM system.parts WHERE active AND database = '"+database+"' AND table = 'event_contents'"))
	benchSearch(b, "clean", store)
	for _, change := range []struct{ table, columns, values string }{
		{"events", "conversation_hash, timestamp, id, conversation_id, event_name, error, latency, metadata, created, version, deleted", "conversation_hash, timestamp, id, if(gone, '', conversation_id), event_name, error, latency, metadata, created, if(gone, 0x8000000000000001, 0x4000000000000001), gone"},
		{"event_contents", "conversation_hash, timestamp, id, field, kind, content, version, deleted", "conversation_hash, timestamp, id, field, if(gone, 0, kind), if(gone, '', content || ' changed'), if(gone, 0x8000000000000001, 0x4000000000000001), gone"},
		{"event_embeddings", "conversation_hash, timestamp, id, field, vector, version, deleted", "conversation_hash, timestamp, id, field, if(gone, [], arrayReverse(vector)), if(gone, 0x8000000000000001, 0x4000000000000001), gone"},
	} {
		server.Query(b, "SYSTEM STOP MERGES "+database+"."+change.table)
		server.Query(b, "INSERT INTO "+database+"."+change.table+" ("+change.columns+") SELECT "+change.values+" FROM (SELECT *, toUInt8(cityHash64(id) % 100 = 1) AS gone FROM "+database+"."+change.table+
			" WHERE cityHash64(id) % 100 IN (0, 1)) SETTINGS exclude_materialize_skip_indexes_on_insert = 'content_words'")
	}
	benchSearch(b, "after changes", store)
}

func benchSize(b *testing.B, name string, absent int) int {
	b.Helper()
	text := os.Getenv(name)
	if text == "" {
		return absent
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		b.Fatalf("%s: %v", name, err)
	}
	return n
}

func benchSearch(b *testing.B, state string, store *clickhouse.Store) {
	b.Helper()
	all := query.Filter{UntilMicros: query.MicrosMax}
	r := rand.New(rand.NewPCG(1, 2))
	vector := make([]float32, benchDimensions)
	for i := range vector {
		vector[i] = r.Float32()*2 - 1
	}
	latency := 999.0
	text := func(words string) func() (int, error) {
		parsed, err := fulltext.Parse(words)
		if err != nil {
			b.Fatal(err)
		}
		return func() (int, error) {
			hits, err := store.SearchText(b.Context(), query.TextSearch{Filter: all, Text: parsed, Fields: query.SearchFields{Input: true, Output: true, Error: true}, LimitEvents: 50, BytesMax: 8 << 20})
			return len(hits.Hits), err
		}
	}
	list := func(f query.Filter) func() (int, error) {
		return func() (int, error) {
			page, err := store.List(b.Context(), query.List{Filter: f, Newest: true, LimitEvents: 50})
			return len(page.Events), err
		}
	}
	for _, question := range []struct {
		name string
		ask  func() (int, error)
	}{
		{"rare word", text("zebra")},
		{"two words", text("w1234 w777")},
		{"newest 50 with a common word", text("w2")},
		{"nearest 10", func() (int, error) {
			hits, err := store.SearchSimilar(b.Context(), query.SimilarSearch{Filter: all, Vector: vector, Input: true, LimitEvents: 10, BytesMax: 1 << 20})
			return len(hits.Hits), err
		}},
		{"newest 50 events", list(all)},
		{"newest 50 errors", list(query.Filter{UntilMicros: query.MicrosMax, Errors: query.WithError})},
		{"newest 50 of a plan", list(query.Filter{UntilMicros: query.MicrosMax, Metadata: []query.MetadataFilter{{Key: "plan", Value: "pro"}}})},
		{"newest 50 slow ones", list(query.Filter{UntilMicros: query.MicrosMax, LatencyMin: &latency})},
		{"newest 50 conversations", func() (int, error) {
			rows, err := store.ConversationList(b.Context(), query.ConversationList{Filter: all, LimitRows: 50, PreviewChars: 200})
			return len(rows), err
		}},
	} {
		b.Run(state+"/"+question.name, func(b *testing.B) {
			for b.Loop() {
				if n, err := question.ask(); err != nil || n == 0 {
					b.Fatalf("%d found, error %v", n, err)
				}
			}
		})
	}
}
