package clickhouse_test

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/sluicehq/sluice/internal/engine/enginetest"
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

// benchSize returns the number in the variable, or the other one where it is not set.
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
