package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/tools/internal/enginedb"
)

const (
	// insertRows is how many rows one statement inserts.
	insertRows = 5_000_000
	// rareEvents is how many events have the rare word.
	rareEvents = 5
	rareWord   = "zebra"
	// firstMicros is the time of the first event, and spanMicros that from the first to the last.
	firstMicros = 1_769_904_000_000_000 // 2026-02-01
	spanMicros  = 28 * 24 * 3600 * 1_000_000
)

// tables are those that are filled.
var tables = []string{"events", "event_contents", "event_embeddings"}

// database is a database that is filled and measured.
type database struct {
	*enginedb.DB
	size   size
	corpus *corpus
}

// load copies the corpus into tables beside Sluice's.
func (d *database) load(ctx context.Context) error {
	for _, t := range []struct {
		create string
		insert string
		row    func(i int) (any, bool)
	}{
		{
			"CREATE TABLE corpus_chunks (i UInt32, text String) ENGINE = MergeTree ORDER BY i", "INSERT INTO corpus_chunks FORMAT JSONEachRow\n",
			func(i int) (any, bool) {
				if i == len(d.corpus.chunks) {
					return nil, false
				}
				return map[string]any{"i": i, "text": d.corpus.chunks[i]}, true
			},
		},
		{
			"CREATE TABLE corpus_lengths (i UInt32, chunks UInt16) ENGINE = MergeTree ORDER BY i", "INSERT INTO corpus_lengths FORMAT JSONEachRow\n",
			func(i int) (any, bool) {
				if i == len(d.corpus.lengths) {
					return nil, false
				}
				return map[string]any{"i": i, "chunks": d.corpus.lengths[i]}, true
			},
		},
		{
			"CREATE TABLE corpus_vectors (i UInt32, vector Array(Float32)) ENGINE = MergeTree ORDER BY i", "INSERT INTO corpus_vectors FORMAT JSONEachRow\n",
			func(i int) (any, bool) {
				if i == len(d.corpus.vectors) {
					return nil, false
				}
				return map[string]any{"i": i, "vector": d.corpus.vectors[i]}, true
			},
		},
	} {
		if _, err := d.Query(ctx, t.create); err != nil {
			return err
		}
		var body strings.Builder
		body.WriteString(t.insert)
		encoder := json.NewEncoder(&body)
		for i := 0; ; i++ {
			row, ok := t.row(i)
			if !ok {
				break
			}
			if err := encoder.Encode(row); err != nil {
				return err
			}
		}
		if _, err := d.Query(ctx, body.String()); err != nil {
			return err
		}
	}
	return nil
}

// rows is a subquery of the columns that the rows of all tables are made of: n, the key, the
// version of a create, and what mixedVector needs. An id is minted: it has the time, the hash of
// the conversation, and n.
func (d *database) rows(first, count int, n string) string {
	return fmt.Sprintf(`(SELECT toUInt64(%s) AS n, toUInt64(%d + intDiv(n * %d, %d)) AS micros, 'c' || toString(intHash32(n) %% %d) AS conversation,
		toUInt32(bitShiftRight(xxHash64(conversation), 40)) AS hash,
		bitOr(bitShiftLeft(intDiv(micros, 1000), 16), bitOr(0x8000, micros %% 1000)) AS high,
		bitOr(bitShiftLeft(toUInt64(2), 62), bitOr(bitShiftLeft(toUInt64(hash), 38), n)) AS low,
		reinterpret(bitOr(bitShiftLeft(toUInt128(low), 64), toUInt128(high)), 'UUID') AS id,
		fromUnixTimestamp64Micro(toInt64(micros), 'UTC') AS timestamp, 0x3FFFFFFFFFFFFFFF - (n + 1) AS version,
		cityHash64(n, 4) %% 100 / 100 AS second_share, cityHash64(n, 5) %% 100 / 100 AS third_share, n * 4096 AS noise FROM numbers(%d, %d))`,
		n, firstMicros, spanMicros, d.size.contents, max(d.size.contents/10, 1), first, count)
}

// fill fills the tables, and merges each into one part. The contents have no index of words
// yet. merged is how long the contents took to merge.
func (d *database) fill(ctx context.Context) (merged time.Duration, err error) {
	if err := d.load(ctx); err != nil {
		return 0, err
	}
	if _, err := d.Query(ctx, "ALTER TABLE event_contents MODIFY SETTING materialize_skip_indexes_on_merge = 0"); err != nil {
		return 0, err
	}
	err = d.insert(ctx, d.size.contents, "number", func(rows string) []string {
		return []string{
			`INSERT INTO events (conversation_hash, timestamp, id, conversation_id, event_name, error, latency, metadata, created, version)
				SELECT hash, timestamp, id, conversation, ['event_a', 'event_b', 'event_c'][cityHash64(n, 7) % 3 + 1], if(cityHash64(n, 8) % 97 = 0, 'timeout', NULL), cityHash64(n, 9) % 1000,
					'{"plan":"' || ['free', 'pro'][cityHash64(n, 6) % 2 + 1] || '"}', n + 1, version FROM ` + rows,
			// A seventh is JSON, and an eighth has a word that no other text has, such as the number of a booking.
			`INSERT INTO event_contents (conversation_hash, timestamp, id, field, kind, content, version)
				WITH (SELECT groupArray(text) FROM (SELECT text FROM corpus_chunks ORDER BY i)) AS chunks, (SELECT groupArray(chunks) FROM (SELECT chunks FROM corpus_lengths ORDER BY i)) AS lengths,
					arrayStringConcat(arrayMap(i -> chunks[1 + cityHash64(n, i) % length(chunks)], range(lengths[1 + cityHash64(n) % length(lengths)])), ' ')
						|| if(n % 8 = 3, ' B' || hex(intHash32(n)), '') || if(n % ` + strconv.Itoa(d.size.contents/rareEvents) + ` = 7, ' ` + rareWord + `', '') AS text
				SELECT hash, timestamp, id, if(cityHash64(n, 10) % 2 = 0, 'input', 'output'), if(n % 7 = 0, 2, 1), if(n % 7 = 0, '{"text":' || toJSONString(text) || '}', text), version FROM ` + rows,
		}
	})
	if err != nil {
		return 0, err
	}
	err = d.insert(ctx, d.size.vectors, "number * "+strconv.Itoa(d.size.contents/d.size.vectors), func(rows string) []string {
		return []string{`INSERT INTO event_embeddings (conversation_hash, timestamp, id, field, vector, version) SELECT hash, timestamp, id, if(cityHash64(n, 10) % 2 = 0, 'input', 'output'), ` + mixedVector + `, version FROM ` + rows}
	})
	if err != nil {
		return 0, err
	}
	for _, table := range tables {
		start := time.Now()
		if _, err := d.Query(ctx, "OPTIMIZE TABLE "+table+" FINAL"); err != nil {
			return 0, err
		}
		if table == "event_contents" {
			merged = time.Since(start)
		}
	}
	return merged, nil
}

// mixedVector is an embedding made of three real ones, with shares that follow from n, and of some noise.
const mixedVector = `arrayMap((a, b, c, i) -> toFloat32(a + b * second_share + c * third_share + (intHash64(noise + i) % 2001) * 0.00001 - 0.01),
	vectors[1 + cityHash64(n, 1) % length(vectors)] AS first, vectors[1 + cityHash64(n, 2) % length(vectors)], vectors[1 + cityHash64(n, 3) % length(vectors)], range(length(first)))`

// insert runs the statements for so many rows, some at a time, with the settings of the consumer.
func (d *database) insert(ctx context.Context, count int, n string, statements func(rows string) []string) error {
	for first := 0; first < count; first += insertRows {
		for _, statement := range statements(d.rows(first, min(insertRows, count-first), n)) {
			if strings.Contains(statement, "vectors[") {
				statement = strings.Replace(statement, " SELECT ", " WITH (SELECT groupArray(vector) FROM (SELECT vector FROM corpus_vectors ORDER BY i)) AS vectors SELECT ", 1)
			}
			if _, err := d.Query(ctx, statement, "exclude_materialize_skip_indexes_on_insert", "content_words", "optimize_on_insert", "0", "max_insert_threads", "2"); err != nil {
				return err
			}
		}
	}
	return nil
}

// build builds the index of words, and stores the signs once more, as the background
// task does for rows of an older version. It returns how long each took.
func (d *database) build(ctx context.Context) (words, signs time.Duration, err error) {
	if _, err := d.Query(ctx, "ALTER TABLE event_contents RESET SETTING materialize_skip_indexes_on_merge"); err != nil {
		return 0, 0, err
	}
	timed := func(statement string) time.Duration {
		start := time.Now()
		_, failed := d.Query(ctx, statement, "mutations_sync", "1")
		err = errors.Join(err, failed)
		return time.Since(start)
	}
	words = timed("ALTER TABLE event_contents MATERIALIZE INDEX content_words")
	signs = timed("ALTER TABLE event_embeddings MATERIALIZE COLUMN signs")
	return words, signs, err
}

// change updates 1 % of the rows and deletes 1 %, and keeps merges from folding them.
func (d *database) change(ctx context.Context) error {
	for _, c := range []struct{ table, columns, values string }{
		{
			"events", "conversation_hash, timestamp, id, conversation_id, event_name, error, latency, metadata, created, version, deleted",
			"conversation_hash, timestamp, id, if(gone, '', conversation_id), event_name, error, latency, metadata, created, if(gone, 0x8000000000000001, 0x4000000000000001), gone",
		},
		{
			"event_contents", "conversation_hash, timestamp, id, field, kind, content, version, deleted",
			"conversation_hash, timestamp, id, field, if(gone, 0, kind), if(gone, '', replaceOne(content, ' ', ' changed ')), if(gone, 0x8000000000000001, 0x4000000000000001), gone",
		},
		{
			"event_embeddings", "conversation_hash, timestamp, id, field, vector, version, deleted",
			"conversation_hash, timestamp, id, field, if(gone, [], arrayReverse(vector)), if(gone, 0x8000000000000001, 0x4000000000000001), gone",
		},
	} {
		if _, err := d.Query(ctx, "SYSTEM STOP MERGES "+c.table); err != nil {
			return err
		}
		_, err := d.Query(ctx, "INSERT INTO "+c.table+" ("+c.columns+") SELECT "+c.values+" FROM (SELECT *, toUInt8(cityHash64(id) % 100 = 1) AS gone FROM "+c.table+
			" WHERE cityHash64(id) % 100 IN (0, 1))", "exclude_materialize_skip_indexes_on_insert", "content_words", "optimize_on_insert", "0")
		if err != nil {
			return err
		}
	}
	return nil
}
