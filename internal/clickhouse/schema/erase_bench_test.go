package schema_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
)

// eraseRows fills a part of event_contents with rows of one month, each of an
// event of its own and 300 bytes; every hundredth is a tombstone over nothing.
const eraseRows = `INSERT INTO %s.event_contents (conversation_hash, timestamp, id, field, kind, content, version, deleted)
WITH
    1772323200000000 + cityHash64(number) %% 2592000000000 AS micros,
    toUInt32(bitShiftRight(xxHash64(intDiv(number, 20)), 40)) AS hash,
    bitOr(bitOr(bitShiftLeft(toUInt64(intDiv(micros, 1000)), 16), 32768), toUInt64(micros %% 1000)) AS hi,
    bitOr(bitOr(9223372036854775808, bitShiftLeft(toUInt64(hash), 38)), bitAnd(sipHash64(number), 274877906943)) AS lo,
    number %% 100 = 0 AS dead
SELECT hash, fromUnixTimestamp64Micro(toInt64(micros)), reinterpret(bitOr(bitShiftLeft(toUInt128(lo), 64), toUInt128(hi)), 'UUID'), 1, 1,
    if(dead, '', hex(randomString(150, number))), if(dead, bitShiftLeft(2::UInt64, 62), 1), dead
FROM numbers(%d, %d)`

// BenchmarkErase compares the search of a month in which a hundredth of the rows
// are tombstones over nothing with the merge of the month.
func BenchmarkErase(b *testing.B) {
	for _, rows := range []int{200_000, 2_000_000} {
		b.Run(fmt.Sprint(rows), func(b *testing.B) {
			store, server, database := clickhousetest.Migrated(b)
			for from := 0; from < rows; from += 1_000_000 {
				server.Query(b, fmt.Sprintf(eraseRows, database, from, min(1_000_000, rows-from)))
			}
			server.Query(b, "OPTIMIZE TABLE "+database+".event_contents FINAL")
			server.Query(b, "SYSTEM STOP MERGES "+database+".event_contents")
			// A part beside the large one, so that there is something to search for.
			server.Query(b, fmt.Sprintf(eraseRows, database, rows, 1000))
			unerased := func(b *testing.B, e *schema.Erasures) {
				found, err := e.Unerased(b.Context())
				if err != nil || len(found) != 0 {
					b.Fatalf("got %+v, %v", found, err)
				}
			}
			b.Run("from the beginning", func(b *testing.B) {
				for b.Loop() {
					unerased(b, store.Erasures(0))
				}
			})
			goesOn, next := store.Erasures(time.Hour), rows+1000
			unerased(b, goesOn)
			b.Run("a new part", func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					server.Query(b, fmt.Sprintf(eraseRows, database, next, 100_000))
					next += 100_000
					b.StartTimer()
					unerased(b, goesOn)
				}
			})
			b.Run("nothing new", func(b *testing.B) {
				for b.Loop() {
					unerased(b, goesOn)
				}
			})
			server.Query(b, "SYSTEM START MERGES "+database+".event_contents")
			b.Run("merge", func(b *testing.B) {
				for b.Loop() {
					if err := goesOn.Erase(b.Context(), schema.Unerased{Table: "event_contents", Partition: "202603"}); err != nil {
						b.Fatal(err)
					}
				}
			})
			bytes := server.Query(b, "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = 'event_contents' AND database = '"+database+"'")
			b.Logf("%d rows, %s bytes", rows, bytes)
		})
	}
}
