package schema

import "context"

// wordsBackfill builds the index of words.
var wordsBackfill = backfill{ //nolint:gochecknoglobals // a constant
	name:    "the index of words",
	table:   TableContents,
	command: "MATERIALIZE INDEX content_words",
	// A part that the command has written is younger than the migration.
	oldParts: `SELECT count() AS parts FROM system.parts
		WHERE active AND database = {database:String} AND table = 'event_contents'
			AND modification_time <= (SELECT toDateTime(max(applied_at)) FROM schema_migrations WHERE version = 10)`,
}

// IndexWords has the index of words built for the contents that were stored before it
// was added, and returns the number of parts that still lack it. A search reads all
// contents of such parts. ClickHouse builds the index in the background, part by part,
// also after a restart. It writes the index alone, not the contents.
//
// A merge that began before the index was added, and ended after it, leaves a part
// without the index that is not counted. The next merge of that part adds it.
func (s *Schema) IndexWords(ctx context.Context) (parts int, err error) {
	return s.backfill(ctx, &wordsBackfill)
}
