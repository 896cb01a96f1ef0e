package schema

import "context"

// signsBackfill stores the signs of vectors.
var signsBackfill = backfill{ //nolint:gochecknoglobals // a constant
	name:    "the signs of vectors",
	table:   TableEmbeddings,
	command: "MATERIALIZE COLUMN signs",
	oldParts: `SELECT count() AS parts FROM system.parts
		WHERE active AND rows > 0 AND database = {database:String} AND table = 'event_embeddings'
			AND name NOT IN (SELECT name FROM system.parts_columns
				WHERE active AND database = {database:String} AND table = 'event_embeddings' AND column = 'signs')`,
}

// StoreSigns has the signs of vectors stored for the embeddings from before the column of
// signs was added, and returns the number of parts that still lack them. A search for
// similar vectors reads the vectors of such parts. ClickHouse stores the signs in the
// background, part by part, also after a restart. It writes the signs alone, and parts of
// less than 128 MiB whole.
func (s *Schema) StoreSigns(ctx context.Context) (parts int, err error) {
	return s.backfill(ctx, &signsBackfill)
}
