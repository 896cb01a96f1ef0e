package main

import (
	"fmt"
	"strings"
)

// texts says where a layout keeps inputs and outputs.
type texts int

const (
	textsNone   texts = iota // not at all: the hot table alone is compared
	textsApart               // in a table of their own
	textsInline              // in the hot row
)

// layout is one way to lay out the hot table. Zero values are those of the
// design: monthly partitions, and the day first in the key.
type layout struct {
	name, about string
	granularity int
	// compressBlockMin is the fewest bytes of a column that are compressed
	// together, at whole granules; 0 is the engine's default of 64 KiB.
	compressBlockMin int
	partition        string
	key              []string
	// primary is how many of the key's columns the primary index has.
	primary int
	// hint adds an index of the least and the greatest timestamp, and has the
	// queries name the day, so that they can do without primary 2.
	hint bool
	// isDeleted hands the deleted column to the engine.
	isDeleted bool
	// errorString stores no error as an empty string.
	errorString bool
	// metadataJSON stores metadata as the type JSON.
	metadataJSON bool
	texts        texts
	// noBloom leaves out the index that finds a conversation, where the key does.
	noBloom bool
	// suffix stores only what of the id the other columns of the key do not say.
	suffix bool
	// codecs replaces codecs of columns.
	codecs map[string]string
}

const day = "toDate(timestamp)"

// layouts are all that are compared. An event's name is mutable, and
// therefore in no key: an update would give the event a second row.
func layouts() []layout {
	date := []string{day, "conversation_hash", "timestamp", "id"}
	conversation := []string{"conversation_hash", "timestamp", "id"}
	clock := []string{"timestamp", "conversation_hash", "id"}
	month, week, daily := "toYYYYMM(timestamp)", "toMonday(timestamp)", "toYYYYMMDD(timestamp)"
	design := layout{granularity: 1024, partition: month, key: date, primary: 2}
	with := func(name, about string, edit func(*layout)) layout {
		l := design
		l.name, l.about = name, about
		edit(&l)
		return l
	}
	return []layout{
		with("date-8192", "the day first, then the conversation; monthly partitions, granules of 8192 rows", func(l *layout) { l.granularity = 8192 }),
		with("date-1024", "granules of 1024 rows, as in all that follow unless they say otherwise", func(*layout) {}),
		with("date-256", "granules of 256 rows", func(l *layout) { l.granularity = 256 }),
		with("date-1024-4k", "columns compressed from 4 KiB on, not 64", func(l *layout) { l.compressBlockMin = 4 << 10 }),
		with("date-256-4k", "granules of 256 rows, compressed from 4 KiB on", func(l *layout) { l.granularity, l.compressBlockMin = 256, 4<<10 }),
		with("date-long", "the timestamp in the primary key too", func(l *layout) { l.primary = 3 }),
		with("date-long-hint", "the timestamp in the primary key too, the day in the queries, and an index of least and greatest timestamps, as in the schema", func(l *layout) { l.primary, l.hint = 3, true }),
		with("conversation", "the conversation first", func(l *layout) { l.key, l.noBloom = conversation, true }),
		with("time", "the time first", func(l *layout) { l.key = clock }),
		with("weekly", "weekly partitions", func(l *layout) { l.partition = week }),
		with("daily", "daily partitions, the conversation first", func(l *layout) { l.partition, l.key, l.noBloom = daily, conversation, true }),
		with("is-deleted", "the engine's is_deleted parameter", func(l *layout) { l.isDeleted = true }),
		with("error-string", "error String, empty for none, not Nullable", func(l *layout) { l.errorString = true }),
		with("metadata-json", "metadata of type JSON, not String", func(l *layout) { l.metadataJSON = true }),
		with("timestamp-t64", "the timestamp under T64, not Delta", func(l *layout) { l.codecs = map[string]string{"timestamp": "T64, LZ4"} }),
		with("id-suffix", "only the id's random bits stored", func(l *layout) { l.suffix, l.key = true, []string{day, "conversation_hash", "timestamp", "suffix"} }),
		with("texts-apart", "inputs and outputs in a table of their own", func(l *layout) { l.texts = textsApart }),
		with("texts-inline", "inputs and outputs in the hot row", func(l *layout) { l.texts = textsInline }),
	}
}

// table is the name of the layout's hot table.
func (l *layout) table() string { return "events_" + strings.ReplaceAll(l.name, "-", "_") }

// contentsTable is the name of its table of texts, if they are apart.
func (l *layout) contentsTable() string { return l.table() + "_contents" }

// tables are all of the layout's tables.
func (l *layout) tables() []string {
	if l.texts == textsApart {
		return []string{l.contentsTable(), l.table()}
	}
	return []string{l.table()}
}

// share is which share of the conversations the layout holds, 1 in so many.
func (l *layout) share() int {
	if l.texts == textsNone {
		return 1
	}
	return wideShare
}

// source is the table that the layout is filled from.
func (l *layout) source() string {
	if l.texts == textsNone {
		return "source"
	}
	return "source_wide"
}

func (l *layout) primaryKey() string {
	return "(" + strings.Join(l.key[:l.primary], ", ") + ")"
}

func (l *layout) orderBy(more ...string) string {
	return "(" + strings.Join(append(l.key[:len(l.key):len(l.key)], more...), ", ") + ")"
}

// settings are those of the service, but that nothing merges by itself: what
// is fresh is to stay so, and what is merged to be merged by command.
func (l *layout) settings() string {
	blocks := ""
	if l.compressBlockMin > 0 {
		blocks = fmt.Sprintf(", min_compress_block_size = %d", l.compressBlockMin)
	}
	return fmt.Sprintf(`
SETTINGS index_granularity = %d, fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1,
    parts_to_delay_insert = 100000, parts_to_throw_insert = 100000, max_bytes_to_merge_at_max_space_in_pool = 1%s`, l.granularity, blocks)
}

// create is the DDL of the layout, a statement per table.
func (l *layout) create() []string {
	errorType, metadataType, engine := "Nullable(String)", "String", "ReplacingMergeTree(version)"
	if l.errorString {
		errorType = "String"
	}
	if l.metadataJSON {
		metadataType = "JSON"
	}
	if l.isDeleted {
		engine = "ReplacingMergeTree(version, deleted)"
	}
	codec := func(column, def string) string {
		if c, ok := l.codecs[column]; ok {
			return " CODEC(" + c + ")"
		}
		return " CODEC(" + def + ")"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "CREATE TABLE %s\n(", l.table())
	for i, c := range [][3]string{
		{"conversation_hash", "UInt32", "Delta(4), LZ4"},
		{"timestamp", "DateTime64(6, 'UTC')", "Delta(8), LZ4"},
		{"id", "UUID", "ZSTD(1)"},
		{"conversation_id", "String", "ZSTD(1)"},
		{"event_name", "LowCardinality(String)", "LZ4"},
		{"error", errorType, "ZSTD(1)"},
		{"latency", "Nullable(Float64)", "ZSTD(1)"},
		{"metadata", metadataType, "ZSTD(1)"},
		{"alias", "String", "ZSTD(1)"},
		{"created", "UInt64", "T64, LZ4"},
		{"version", "UInt64", "T64, LZ4"},
		{"deleted", "UInt8", "LZ4"},
	} {
		if i > 0 {
			b.WriteString(",")
		}
		if c[0] == "id" && l.suffix {
			fmt.Fprintf(&b, "\n    suffix UInt64%s,\n    id UUID ALIAS %s", codec("suffix", "T64, LZ4"), idOfSuffix)
			continue
		}
		fmt.Fprintf(&b, "\n    %s %s%s", c[0], c[1], codec(c[0], c[2]))
	}
	if l.texts == textsInline {
		b.WriteString(",\n    input String CODEC(ZSTD(1)),\n    output String CODEC(ZSTD(1))")
	}
	if l.hint {
		b.WriteString(",\n    INDEX timestamp_minmax timestamp TYPE minmax GRANULARITY 1")
	}
	if !l.noBloom {
		b.WriteString(",\n    INDEX conversation_hash_bloom conversation_hash TYPE bloom_filter(0.01) GRANULARITY 1")
	}
	fmt.Fprintf(&b, "\n)\nENGINE = %s\nPARTITION BY %s\nPRIMARY KEY %s\nORDER BY %s%s",
		engine, l.partition, l.primaryKey(), l.orderBy(), l.settings())
	statements := []string{b.String()}
	if l.texts == textsApart {
		statements = append(statements, fmt.Sprintf(`CREATE TABLE %s
(
    conversation_hash UInt32 CODEC(Delta(4), LZ4),
    timestamp DateTime64(6, 'UTC') CODEC(Delta(8), LZ4),
    id UUID CODEC(ZSTD(1)),
    field Enum8('input' = 1, 'output' = 2),
    kind UInt8,
    content String CODEC(ZSTD(1)),
    version UInt64 CODEC(T64, LZ4),
    deleted UInt8 CODEC(LZ4)
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY %s
PRIMARY KEY %s
ORDER BY %s%s, index_granularity_bytes = 262144`, l.contentsTable(), l.partition, l.primaryKey(), l.orderBy("field"), l.settings()))
	}
	return statements
}

// What an id adds to the conversation's hash and the time, and back.
const (
	suffixOfID = "bitAnd(toUInt64(bitShiftRight(reinterpret(id, 'UInt128'), 64)), 274877906943)"
	idOfSuffix = `reinterpret(bitOr(
        bitShiftLeft(toUInt128(bitOr(bitOr(9223372036854775808, bitShiftLeft(toUInt64(conversation_hash), 38)), suffix)), 64),
        toUInt128(bitOr(bitOr(bitShiftLeft(toUInt64(toUnixTimestamp64Milli(timestamp)), 16), 32768),
            toUInt64(toUnixTimestamp64Micro(timestamp) % 1000)))), 'UUID')`
)

// insertSettings are those of the consumer's inserts: one block, one part.
func insertSettings() []string {
	return []string{
		"async_insert", "0", "max_insert_threads", "1", "max_threads", "1", "deduplicate_insert", "disable",
		"max_block_size", "1000000000", "preferred_block_size_bytes", "0", "max_insert_block_size", "1000000000",
		"min_insert_block_size_rows", "1000000000", "min_insert_block_size_bytes", "0",
	}
}

// insertCores inserts rows of the shape of a source into the hot table.
func (l *layout) insertCores(from string) string {
	columns := []string{"conversation_hash", "timestamp", "id", "conversation_id", "event_name", "error", "latency", "metadata", "alias", "created", "version", "deleted"}
	if l.texts == textsInline {
		columns = append(columns, "input", "output")
	}
	values := make([]string, len(columns))
	for i, c := range columns {
		switch {
		case c == "id" && l.suffix:
			columns[i], values[i] = "suffix", suffixOfID
		case c == "error" && l.errorString:
			values[i] = "ifNull(error, '')"
		case c == "metadata" && l.metadataJSON:
			values[i] = "CAST(if(metadata = '', '{}', metadata), 'JSON')"
		default:
			values[i] = c
		}
	}
	return fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM %s", l.table(), strings.Join(columns, ", "), strings.Join(values, ", "), from)
}

// insertContents inserts the texts of rows of the shape of a source.
func (l *layout) insertContents(from string) string {
	return fmt.Sprintf(`INSERT INTO %s (conversation_hash, timestamp, id, field, kind, content, version, deleted)
SELECT conversation_hash, timestamp, id, field, if(deleted, 0, 1), content, version, deleted
FROM (SELECT * FROM %s) ARRAY JOIN ['input', 'output'] AS field, [input, output] AS content`, l.contentsTable(), from)
}

// inserts are the statements that write rows of the shape of a source, texts
// first as the consumer does. An update here touches no text.
func (l *layout) inserts(from string, update bool) []string {
	if l.texts == textsApart && !update {
		return []string{l.insertContents(from), l.insertCores(from)}
	}
	return []string{l.insertCores(from)}
}
