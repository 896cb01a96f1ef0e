package bench

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// conversationEvents is how many events each conversation has.
	conversationEvents = 20
	// eventGap is the time from one event of a conversation to the next, on average.
	eventGap = 15 * time.Second
	// fillMargin is left between the last row and the start of the run, so that
	// new events have minutes that no row has.
	fillMargin = time.Hour
	// fillGeneration is that of the rows' positions in the log: before the first
	// generation of the topic, so that every write of it comes after them.
	fillGeneration = 0
)

// scaleRows are the rows that the hot table is filled with. Row n is a function
// of n, computed in SQL to fill the table and here to name events of it.
type scaleRows struct {
	rows int
	// start is the time of the first row and step that between the beginnings
	// of two conversations, in microseconds.
	start, step int64
}

func newScaleRows(rows, days int, now time.Time) scaleRows {
	span := time.Duration(days)*24*time.Hour - fillMargin
	conversations := (rows + conversationEvents - 1) / conversationEvents
	return scaleRows{
		rows: rows, start: now.AddDate(0, 0, -days).UTC().Truncate(time.Second).UnixMicro(),
		step: span.Microseconds() / int64(conversations),
	}
}

func (s scaleRows) conversation(n int) string {
	return "scale-" + strconv.Itoa(n/conversationEvents)
}

// id is the id of row n's event.
func (s scaleRows) id(n int) event.ID {
	h, gap := mix(uint64(n)), eventGap.Microseconds()
	micros := s.start + int64(n/conversationEvents)*s.step + int64(n%conversationEvents)*gap + int64(h>>38)%gap
	return event.MakeID(micros, event.ConversationHash(s.conversation(n)), h)
}

// mix spreads a number's bits (SplitMix64).
func mix(z uint64) uint64 {
	z *= 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// insert is the statement that fills in the rows from one number to another,
// as their creates would leave them. The first part repeats id.
func (s scaleRows) insert(from, to int) string {
	return strings.NewReplacer(
		"{from}", strconv.Itoa(from),
		"{count}", strconv.Itoa(to-from),
		"{events}", strconv.Itoa(conversationEvents),
		"{start}", strconv.FormatInt(s.start, 10),
		"{step}", strconv.FormatInt(s.step, 10),
		"{gap}", strconv.FormatInt(eventGap.Microseconds(), 10),
		"{position}", fmt.Sprint(uint64(event.MakePosition(fillGeneration, 0))),
		"{complement}", fmt.Sprint(uint64(event.MakeVersion(event.ClassCreate, 0))),
	).Replace(`INSERT INTO events
WITH
    number * 11400714819323198485 AS z1,
    bitXor(z1, bitShiftRight(z1, 30)) * 13787848793156543929 AS z2,
    bitXor(z2, bitShiftRight(z2, 27)) * 10723151780598845931 AS z3,
    bitXor(z3, bitShiftRight(z3, 31)) AS h,
    intDiv(number, {events}) AS conversation,
    toInt64({start} + conversation * {step} + number % {events} * {gap} + bitShiftRight(h, 38) % {gap}) AS micros,
    concat('scale-', toString(conversation)) AS name,
    toUInt32(bitShiftRight(xxHash64(name), 40)) AS hash,
    bitOr(bitOr(bitShiftLeft(toUInt64(intDiv(micros, 1000)), 16), 32768), toUInt64(micros % 1000)) AS hi,
    bitOr(bitOr(9223372036854775808, bitShiftLeft(toUInt64(hash), 38)), bitAnd(h, 274877906943)) AS lo,
    cityHash64(number) AS h1,
    cityHash64(h1) AS h2,
    cityHash64(conversation) AS hc,
    {position} + number AS position
SELECT
    hash AS conversation_hash,
    fromUnixTimestamp64Micro(micros, 'UTC') AS timestamp,
    reinterpret(bitOr(bitShiftLeft(toUInt128(lo), 64), toUInt128(hi)), 'UUID') AS id,
    name AS conversation_id,
    multiIf(h2 % 10 < 6, 'event_a', h2 % 10 < 9, 'event_b', 'event_c') AS event_name,
    -- Not if(…, text, NULL), which keeps the text under each NULL.
    nullIf(if(intDiv(h2, 16) % 1000 < 15, ['timeout: the model did not answer within 30 s', 'rate limited by the provider (429)',
        'the tool returned an error: not found'][1 + intDiv(h2, 65536) % 3], ''), '') AS error,
    -- About log-normal, around 400 ms: the sum of four uniforms is about normal.
    if(intDiv(h2, 1048576) % 50 = 0, NULL, round(exp(6 + 1.4 * (((h1 % 65536) + (intDiv(h1, 65536) % 65536)
        + (intDiv(h1, 4294967296) % 65536) + intDiv(h1, 281474976710656)) / 65536. - 2)), 3)) AS latency,
    concat('{"app":"web","locale":"', ['en', 'de', 'ja'][1 + intDiv(hc, 4) % 3], '","plan":"',
        ['free', 'free', 'pro', 'team'][1 + hc % 4], '","user":"u-', toString(intDiv(hc, 16) % 2000000), '"}') AS metadata,
    '' AS alias,
    position AS created,
    bitXor(position, {complement}) AS version,
    0 AS deleted
FROM numbers({from}, {count})
SETTINGS max_insert_threads = 2, max_block_size = 262144, min_insert_block_size_rows = 1048576`)
}
