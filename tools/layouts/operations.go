package main

import (
	"fmt"
	"time"
)

// operation is something that is measured on a layout.
type operation struct {
	name, about string
	// only says which layouts it can be measured on; nil is all.
	only func(*layout) bool
	// times is how often in a repetition, with other arguments each time; 0 is once.
	times int
	// rare operations are slow: repeated less often, and their reads only clean.
	rare bool
	// write operations change the tables, and come last, after fresh updates and deletes.
	write bool
	// settings come on top of those of the reads; pairs.
	settings []string
	sql      func(l *layout, p *plan, n int) string
}

// plan is what a run does, as far as SQL depends on it.
type plan struct {
	rows, seed, lookupKeys int
}

const keysPerLookup = 50_000

// readSettings are those of the service's queries.
func readSettings() []string {
	return []string{
		"do_not_merge_across_partitions_select_final", "1",
		"use_skip_indexes_if_final", "1",
		"use_skip_indexes_if_final_exact_mode", "0",
	}
}

// lookupSettings are those of the consumer's lookups: the primary index finds
// every key.
func lookupSettings() []string { return []string{"use_skip_indexes", "0"} }

// live is what follows FROM: the shape of the service's queries. Immutable
// columns go into PREWHERE, before FINAL, the others into WHERE, after it.
func (l *layout) live(prewhere string) string {
	s := l.table() + " FINAL PREWHERE " + prewhere + " WHERE "
	if l.isDeleted {
		return s + "1"
	}
	return s + "deleted = 0"
}

// since selects the last days, up to a day after now.
func (l *layout) since(days int) string {
	from, until := micros(dataEnd().AddDate(0, 0, -days)), micros(dataEnd().Add(24*time.Hour))
	s := "timestamp >= " + from + " AND timestamp < " + until
	if l.hint {
		s += " AND indexHint(toDate(timestamp) >= toDate(" + from + ") AND toDate(timestamp) <= toDate(" + until + "))"
	}
	return s
}

func (l *layout) isError() string {
	if l.errorString {
		return "error != ''"
	}
	// With FINAL the engine does not see by itself that the null map is enough.
	return "error.null = 0"
}

func (l *layout) errorText() string {
	if l.errorString {
		return "nullIf(error, '')"
	}
	return "error"
}

func (l *layout) metadataText() string {
	if l.metadataJSON {
		return "if(deleted, '', toString(metadata))"
	}
	return "metadata"
}

// session is one of the conversations that every layout holds.
func (p *plan) session(n int) string {
	blocks := max(1, p.rows/blockEvents/wideShare)
	return conversationID(n * 7919 % blocks * wideShare)
}

func (l *layout) sessionFrom(p *plan, n int) string {
	id := p.session(n)
	return l.live(fmt.Sprintf("conversation_hash = toUInt32(bitShiftRight(xxHash64('%s'), 40))", id)) +
		fmt.Sprintf(" AND conversation_id = '%s'", id)
}

func keysTable(l *layout, keys, n int) string {
	return fmt.Sprintf("keys_%d_of_1_in_%d_set_%d", keys, l.share(), n)
}

// lookup is the consumer's read of core rows for updates, in its shape: the
// time alone is cheaper to check per row than the whole key. All columns are
// read, and summed up so that answers can be compared.
func lookup(keys int) func(*layout, *plan, int) string {
	return func(l *layout, p *plan, n int) string {
		return fmt.Sprintf(`SELECT count(), sum(length(conversation_id)), sum(length(event_name)), countIf(%s), sum(length(%s)),
    max(latency), sum(length(%s)), sum(length(alias)), sum(created), max(version), sum(deleted)
FROM %[4]s PREWHERE timestamp IN (SELECT timestamp FROM %[6]s) WHERE %[5]s IN (SELECT %[5]s FROM %[6]s)`,
			l.isError(), l.errorText(), l.metadataText(), l.table(), l.orderBy(), keysTable(l, min(keys, p.lookupKeys), n%keySets))
	}
}

// keySets is how many sets of keys there are of each size.
const keySets = 5

func operations() []operation {
	hasTexts := func(l *layout) bool { return l.texts != textsNone }
	noTexts := func(l *layout) bool { return l.texts == textsNone }
	readsMetadata := func(l *layout) bool { return l.metadataJSON || l.name == "date-1024" }
	return []operation{
		{
			name: "errors_7d", about: "errors in event_a, 7 days",
			sql: func(l *layout, _ *plan, _ int) string {
				return "SELECT count(), countIf(" + l.isError() + ") FROM " + l.live(l.since(7)) + " AND event_name = 'event_a'"
			},
		},
		{
			name: "latency_1d", about: "p95 latency per event type per session, 1 day",
			sql: func(l *layout, _ *plan, _ int) string {
				return "SELECT conversation_id, CAST(event_name, 'String') AS name, count() AS events, quantilesExactInclusive(0.95)(assumeNotNull(latency)) AS quantiles FROM " +
					l.live(l.since(1)) + " AND latency IS NOT NULL GROUP BY conversation_id, name ORDER BY quantiles[1] DESC, conversation_id, name LIMIT 100"
			},
		},
		{
			name: "session", about: "one session in time order, time unknown", times: 4,
			sql: func(l *layout, p *plan, n int) string {
				return "SELECT timestamp, id, event_name, " + l.errorText() + ", latency, " + l.metadataText() + ", created, version FROM " +
					l.sessionFrom(p, n) + " ORDER BY timestamp, id LIMIT 100"
			},
		},
		{
			name: "session_texts", about: "the same with inputs and outputs", times: 4, only: hasTexts,
			sql: func(l *layout, p *plan, n int) string {
				if l.texts == textsInline {
					return "SELECT id, field, content FROM (SELECT timestamp, id, input, output FROM " + l.sessionFrom(p, n) +
						" ORDER BY timestamp, id LIMIT 100) ARRAY JOIN ['input', 'output'] AS field, [input, output] AS content ORDER BY timestamp, id, field"
				}
				return fmt.Sprintf("SELECT id, field, content FROM %s WHERE %s IN (SELECT %[2]s FROM %[3]s ORDER BY timestamp, id LIMIT 100) ORDER BY timestamp, id, CAST(field, 'String')",
					l.contentsTable(), l.orderBy(), l.sessionFrom(p, n))
			},
		},
		{
			name: "top_7d", about: "top sessions by error rate, 7 days",
			sql: func(l *layout, _ *plan, _ int) string {
				return "SELECT conversation_id, count() AS events, countIf(" + l.isError() + ") AS errors, min(timestamp), max(timestamp) FROM " + l.live(l.since(7)) +
					" GROUP BY conversation_id HAVING events >= 5 ORDER BY errors / events DESC, conversation_id LIMIT 100"
			},
		},
		{
			name: "metadata_7d", about: "errors where metadata.plan = pro, 7 days", only: readsMetadata,
			sql: func(l *layout, _ *plan, _ int) string {
				filter := "JSONExtractString(metadata, 'plan') = 'pro'"
				if l.metadataJSON {
					filter = "metadata.plan.:String = 'pro'"
				}
				return "SELECT count(), countIf(" + l.isError() + ") FROM " + l.live(l.since(7)) + " AND " + filter
			},
		},
		{name: "lookup_5k", about: "5 k random core rows by key", rare: true, settings: lookupSettings(), sql: lookup(keysPerLookup / 10)},
		{name: "lookup_50k", about: "50 k random core rows by key", rare: true, settings: lookupSettings(), sql: lookup(keysPerLookup)},
		{
			name: "tombstones_50k", about: "50 k tombstones inserted", rare: true, write: true, only: noTexts,
			sql: func(l *layout, p *plan, n int) string {
				return l.insertCores("(" + tombstones(keysTable(l, min(keysPerLookup, p.lookupKeys), n%keySets)) + ")")
			},
		},
	}
}
