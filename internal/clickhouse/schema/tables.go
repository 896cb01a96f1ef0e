package schema

// The names of the tables, in SQL and in metrics.
const (
	TableEvents     = "events"
	TableContents   = "event_contents"
	TableEmbeddings = "event_embeddings"
	TableAliases    = "event_aliases"

	tableGenerations = "topic_generations"
	tableErasures    = "erasures"
)
