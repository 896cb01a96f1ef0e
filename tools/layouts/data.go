package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// The data spans these days before a fixed now, so that every run is the same.
const (
	dataDays = 30
	// blockEvents is how many events two neighbouring conversations have
	// together: 1 to 17 of them are the first one's, 9 on average.
	blockEvents = 18
	// topicPartitions spreads the offsets in the versions.
	topicPartitions = 12
	// freshOffset is where updates and deletes begin in the log, behind all creates.
	freshOffset = 10_000_000_000
	// wideShare is the share of the conversations, 1 in so many, that the
	// layouts with texts hold.
	wideShare = 4
)

// dataEnd is the "now" of the data.
func dataEnd() time.Time { return time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC) }

// micros writes a time as a constant of SQL.
func micros(t time.Time) string {
	return fmt.Sprintf("fromUnixTimestamp64Micro(%d, 'UTC')", t.UnixMicro())
}

// conversationID is the id of the first conversation of a block, which every
// share holds when the block is a multiple of it.
func conversationID(block int) string { return "c-" + strconv.Itoa(2*block) }

// createSource makes the table that every layout is filled from, so that
// the time of generating does not count as the time of inserting. Events are
// numbered in the order of their arrival, which is nearly that of their time.
const createSource = `CREATE TABLE source
(
    number UInt64,
    conversation_hash UInt32,
    timestamp DateTime64(6, 'UTC'),
    id UUID,
    conversation_id String,
    event_name LowCardinality(String),
    error Nullable(String),
    latency Nullable(Float64),
    metadata String,
    alias String,
    created UInt64,
    version UInt64,
    deleted UInt8
)
ENGINE = MergeTree ORDER BY number
SETTINGS fsync_after_insert = 0`

// fillSource generates rows from hashes of their number and the seed alone.
func fillSource(rows, seed int) string {
	length := int64(dataDays*24*time.Hour/time.Microsecond) - int64(time.Hour/time.Microsecond)
	blocks := (rows + blockEvents - 1) / blockEvents
	return strings.NewReplacer(
		"{rows}", strconv.Itoa(rows),
		"{seed}", strconv.Itoa(seed),
		"{block}", strconv.Itoa(blockEvents),
		"{start}", strconv.FormatInt(dataEnd().AddDate(0, 0, -dataDays).UnixMicro(), 10),
		"{length}", strconv.FormatInt(length, 10),
		"{blocks}", strconv.Itoa(blocks),
		"{partitions}", strconv.Itoa(topicPartitions),
	).Replace(`INSERT INTO source
WITH
    intDiv(number, {block}) AS block,
    number % {block} AS place,
    2 * block + (place > cityHash64(block, {seed}) % ({block} - 1)) AS conversation,
    cityHash64(number, {seed}) AS h1,
    cityHash64(h1) AS h2,
    cityHash64(h2) AS h3,
    cityHash64(conversation, {seed}, 'conversation') AS hc,
    -- Arrival order with a jitter of minutes, then half a minute between events.
    toInt64(toInt64({start}) + intDiv(toInt128({length}) * block, {blocks}) + hc % 600000000
        + place * 30000000 + h1 % 30000000) AS micros,
    toUInt32(bitShiftRight(xxHash64(concat('c-', toString(conversation))), 40)) AS hash,
    bitOr(bitOr(bitShiftLeft(toUInt64(intDiv(micros, 1000)), 16), 32768), toUInt64(micros % 1000)) AS hi,
    bitOr(bitOr(9223372036854775808, bitShiftLeft(toUInt64(hash), 38)), bitAnd(h2, 274877906943)) AS lo,
    intDiv(number, {partitions}) AS position
SELECT
    number,
    hash AS conversation_hash,
    fromUnixTimestamp64Micro(micros, 'UTC') AS timestamp,
    reinterpret(bitOr(bitShiftLeft(toUInt128(lo), 64), toUInt128(hi)), 'UUID') AS id,
    concat('c-', toString(conversation)) AS conversation_id,
    multiIf(h3 % 10 < 6, 'event_a', h3 % 10 < 9, 'event_b', 'event_c') AS event_name,
    if(intDiv(h3, 16) % 1000 < 15, ['timeout: the model did not answer within 30 s', 'rate limited by the provider (429)',
        'the tool returned an error: not found'][1 + intDiv(h3, 65536) % 3], NULL) AS error,
    -- About log-normal, around 400 ms: the sum of four uniforms is about normal.
    if(intDiv(h3, 1048576) % 50 = 0, NULL, round(exp(6 + 1.4 * (((h1 % 65536) + (intDiv(h1, 65536) % 65536)
        + (intDiv(h1, 4294967296) % 65536) + intDiv(h1, 281474976710656)) / 65536. - 2)), 3)) AS latency,
    concat('{"app":"web","locale":"', ['en', 'de', 'ja'][1 + intDiv(hc, 4) % 3], '","plan":"',
        ['free', 'free', 'pro', 'team'][1 + hc % 4], '","user":"u-', toString(intDiv(hc, 16) % 2000000), '"}') AS metadata,
    '' AS alias,
    position AS created,
    bitXor(position, 0x3FFFFFFFFFFFFFFF) AS version,
    0 AS deleted
FROM numbers({rows})
SETTINGS max_insert_threads = 2, max_block_size = 262144`)
}

// createSourceWide adds texts to a share of the events: words out of a few
// hundred, about 400 bytes per event, which compress about as real ones do.
const createSourceWide = `CREATE TABLE source_wide
(
    number UInt64,
    conversation_hash UInt32,
    timestamp DateTime64(6, 'UTC'),
    id UUID,
    conversation_id String,
    event_name LowCardinality(String),
    error Nullable(String),
    latency Nullable(Float64),
    metadata String,
    alias String,
    created UInt64,
    version UInt64,
    deleted UInt8,
    input String,
    output String
)
ENGINE = MergeTree ORDER BY number
SETTINGS fsync_after_insert = 0`

func fillSourceWide() string {
	text := func(words int, salt string) string {
		// Syllables make words of 4 to 6 letters; 256 pairs of them are 256 words.
		return fmt.Sprintf(`arrayStringConcat(arrayMap(i -> concat(
        ['in','re','con','per','ta','mo','sel','ver','lo','un','for','dis','ma','the','pro','ca'][1 + cityHash64(number, i, '%[2]s') %% 16],
        ['ter','ing','al','er','tion','ble','ly','ment','ous','ic','sta','ve','ry','ness','le','on'][1 + intDiv(cityHash64(number, i, '%[2]s'), 16) %% 16]),
        range(%[1]d + cityHash64(number, '%[2]s') %% %[1]d)), ' ')`, words, salt)
	}
	return fmt.Sprintf(`INSERT INTO source_wide
SELECT *, %s AS input, %s AS output
FROM source
WHERE intDiv(number, %d) %% %d = 0
SETTINGS max_insert_threads = 2, max_block_size = 65536`, text(12, "i"), text(28, "o"), blockEvents, wideShare)
}

// checkSource compares ids made in SQL with the ones that the service mints.
func checkSource(ctx context.Context, c *client) error {
	answer, err := c.query(ctx, `SELECT id, toUnixTimestamp64Micro(timestamp), conversation_hash, conversation_id
FROM source WHERE number % 97 = 0 LIMIT 1000`)
	if err != nil {
		return fmt.Errorf("check ids: %w", err)
	}
	for line := range strings.Lines(answer.body) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 4 {
			return fmt.Errorf("check ids: line %q", line)
		}
		ref, err := event.ParseRef(f[0], dataEnd())
		if err != nil {
			return fmt.Errorf("check ids: %s: %w", f[0], err)
		}
		hash := strconv.FormatUint(uint64(event.ConversationHash(f[3])), 10)
		if got := ref.ID; strconv.FormatInt(got.Micros(), 10) != f[1] || hash != f[2] ||
			got.ConversationHash() != event.ConversationHash(f[3]) {
			return fmt.Errorf("check ids: %s does not locate its row %q", f[0], line)
		}
	}
	return nil
}

// Updates and deletes come in a few inserts that together touch 1 % of the
// events each.
const (
	freshInserts = 4
	freshModulus = 100 * freshInserts
)

// freshUpdates selects, out of a source, events with new values of the three
// fields that updates change most.
func freshUpdates(source string, insert, seed int) string {
	return fmt.Sprintf(`
    SELECT * REPLACE (
        if(error IS NULL AND cityHash64(number) %% 16 = 0, 'cancelled by the user', error) AS error,
        latency * 1.5 AS latency,
        if(number %% 3 = 0, 'event_b', CAST(event_name, 'String')) AS event_name,
        bitOr(bitShiftLeft(toUInt64(1), 62), toUInt64(%d) + number) AS version)
    FROM %s WHERE cityHash64(number, %d, 'update') %% %d = %d`, freshOffset, source, seed, freshModulus, insert)
}

// freshDeletes selects tombstones of the events of one insert.
func freshDeletes(source string, insert, seed int) string {
	return tombstones(fmt.Sprintf("%s WHERE cityHash64(number, %d, 'delete') %% %d = %d", source, seed, freshModulus, insert))
}

// freshTable is the name of the table that holds what one of those inserts
// writes, so that finding its events is not part of its time.
func freshTable(source, kind string, insert int) string {
	return fmt.Sprintf("fresh_%s_of_%s_%d", kind, source, insert)
}

// tombstones selects a tombstone for each row of from, which has a number and
// the three columns of the key.
func tombstones(from string) string {
	return fmt.Sprintf(`
    SELECT number, conversation_hash, timestamp, id, '' AS conversation_id, '' AS event_name,
        CAST(NULL, 'Nullable(String)') AS error, CAST(NULL, 'Nullable(Float64)') AS latency, '' AS metadata, '' AS alias,
        0 AS created, bitOr(bitShiftLeft(toUInt64(2), 62), toUInt64(%d) + number) AS version, 1 AS deleted,
        '' AS input, '' AS output
    FROM %s`, 2*freshOffset, from)
}

// createKeys makes a table of random keys to look up or to delete.
func createKeys(name string, rows, keys, share, seed int) []string {
	return []string{
		"CREATE TABLE " + name + " (number UInt64, conversation_hash UInt32, timestamp DateTime64(6, 'UTC'), id UUID, suffix UInt64) ENGINE = Memory",
		fmt.Sprintf(`INSERT INTO %[1]s SELECT number, conversation_hash, timestamp, id, %[7]s FROM source
WHERE cityHash64(number, %[2]d, '%[1]s') %% %[3]d = 0 AND intDiv(number, %[4]d) %% %[5]d = 0
LIMIT %[6]d`, name, seed, max(1, rows/share/keys), blockEvents, share, keys, suffixOfID),
	}
}
