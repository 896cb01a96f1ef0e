package mcp

import (
	"context"
	"net/url"
)

// schemaArgs are the arguments of schema, which has none.
type schemaArgs struct{}

const (
	// recentChars is how much is shown of the names in use.
	recentChars = 6_000
	// recentNames is how many event names and keys are shown.
	recentNames = "100"
	// recentKeys finds the keys of the metadata of recent events. It looks at some events only.
	recentKeys = "SELECT arrayJoin(JSONExtractKeys(conversation_metadata)) AS key, count() AS events FROM " +
		"(SELECT conversation_metadata FROM live_events WHERE timestamp > now() - INTERVAL 7 DAY AND conversation_metadata != '' LIMIT 10000) " +
		"GROUP BY key ORDER BY events DESC, key LIMIT " + recentNames
)

// Columns are the columns of each view of SQL, with their types.
func Columns() map[string][][2]string {
	events := [][2]string{
		{"id", "String"},
		{"conversation_id", "String"},
		{"conversation_hash", "UInt32"},
		{"timestamp", "DateTime64(6, 'UTC')"},
		{"event_name", "LowCardinality(String)"},
	}
	with := func(more ...[2]string) [][2]string { return append(append([][2]string{}, events...), more...) }
	field := [2]string{"field", "Enum8('input' = 1, 'output' = 2)"}
	return map[string][][2]string{
		"live_events": with([2]string{"error", "Nullable(String)"}, [2]string{"latency", "Nullable(Float64)"},
			[2]string{"conversation_metadata", "String"}),
		"live_event_contents":   with(field, [2]string{"kind", "String"}, [2]string{"content", "String"}),
		"live_event_embeddings": with(field, [2]string{"vector", "Array(Float32)"}),
	}
}

const (
	sqlNotes = "error is NULL where there is none; latency is in ms; conversation_metadata is a JSON object as text or empty: JSONExtractString(conversation_metadata, 'plan'). " +
		"live_event_contents has a row for each input and output, live_event_embeddings one for each embedding. kind: 'string' (content is the text) or 'json' (content is JSON). " +
		"A range of timestamp makes a query fast; so does conversation_id = 'c' AND conversation_hash = bitShiftRight(xxHash64('c'), 40)."
	noKeys = "not known: "
)

// schema tells what there is. If the names in use cannot be read, it says why and tells the rest.
func schema(ctx context.Context, api *API, _ *schemaArgs) ([]byte, error) {
	out := appendText(append(begin(), `"filter":`...), filterGrammar)
	out = append(out, `,"views":{`...)
	columns := Columns()
	for i, view := range []string{"live_events", "live_event_contents", "live_event_embeddings"} {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(appendText(out, view), ':', '{')
		for j, column := range columns[view] {
			if j > 0 {
				out = append(out, ',')
			}
			out = append(appendText(out, column[0]), ':')
			out = appendText(out, column[1])
		}
		out = append(out, '}')
	}
	out = appendText(append(out, `},"sql":`...), sqlNotes)
	names, err := askInsights(ctx, api, url.Values{"measure": {"events"}, "group_by": {"event_name"}, "limit": {recentNames}}, recentChars)
	out = appendRecent(append(out, `,"event_names_of_7_days":`...), names, err)
	keys, _, err := askSQL(ctx, api, recentKeys, recentChars)
	out = appendRecent(append(out, `,"metadata_keys_of_7_days":`...), keys, err)
	return append(out, '}'), nil
}

// appendRecent appends names in use.
func appendRecent(b []byte, t *rows, err error) []byte {
	if err != nil {
		return appendText(b, noKeys+err.Error())
	}
	return append(append(append(b, '['), t.out...), ']')
}
