package schema_test

import (
	"errors"
	"testing"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// TestReadyTellsTheSchema is about what a process finds that comes before the
// migration.
func TestReadyTellsTheSchema(t *testing.T) {
	server := enginetest.Server(t)
	all, err := schema.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	nowhere := clickhousetest.Config(server, "t_nowhere")
	empty := clickhousetest.Config(server, server.Database(t))
	old := clickhousetest.Config(server, migratedTo(t, server, len(all)-1))
	for _, tt := range []struct {
		name string
		cfg  clickhouse.Config
		want error
	}{
		{"no database", nowhere, event.ErrSchemaMissing},
		{"no tables", empty, event.ErrSchemaMissing},
		{"the version before", old, event.ErrSchemaOld},
	} {
		store := clickhousetest.Open(t, tt.cfg)
		if err := store.Ready(t.Context()); !errors.Is(err, tt.want) {
			t.Errorf("%s: ready with %v, want %v", tt.name, err, tt.want)
		}
		if _, err := store.CheckSchema(t.Context()); !errors.Is(err, tt.want) {
			t.Errorf("%s: checked with %v, want %v", tt.name, err, tt.want)
		}
		if errors.Is(tt.want, event.ErrSchemaMissing) {
			for what, err := range map[string]error{
				"generations": func() error { _, err := store.Generations(t.Context()); return err }(),
				"topic":       store.CheckTopic(t.Context(), 1, "events.g1", "id", 1),
				"read":        func() error { _, err := store.Errors(t.Context(), query.Filter{UntilMicros: 1}); return err }(),
			} {
				if !errors.Is(err, tt.want) {
					t.Errorf("%s: %s says %v, want %v", tt.name, what, err, tt.want)
				}
			}
		}
		if got := server.Query(t, "SELECT count() FROM system.databases WHERE name = '"+nowhere.Database+"'"); got != "0" {
			t.Errorf("%s: the database was made", tt.name)
		}
		if tt.cfg == nowhere {
			continue
		}
		// It becomes ready without a restart, and not ready where the tables go.
		if _, err := clickhousetest.Open(t, tt.cfg).Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := store.Ready(t.Context()); err != nil {
			t.Errorf("%s, migrated: ready with %v", tt.name, err)
		}
		server.Query(t, "DROP TABLE "+tt.cfg.Database+".events SYNC")
		if err := store.Ready(t.Context()); !errors.Is(err, event.ErrSchemaMissing) {
			t.Errorf("%s, without events: ready with %v", tt.name, err)
		}
	}
}
