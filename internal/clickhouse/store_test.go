package clickhouse_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// hostile are texts that would break out of a query, or out of an escape.
var hostile = []string{
	`'; DROP TABLE events; --`, `\`, `\\'`, `\'`, "a\tb\nc\rd", "nul\x00nul", `{x:String}`, `"quoted"`, "`",
	`\t`, `\N`, `' OR 1=1 --`, "é😀", "\b\f\a\v\x1b\x7f", `%s%d`, "''", `\x41`, `/* */`,
}

func TestCoresRoundTrip(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	var rows event.Rows
	want := make(map[event.ID]event.Core)
	var ids []event.ID
	for i, text := range append(hostile, strings.Repeat("x", 256), "plain") {
		position, version := clickhousetest.Created(int64(i))
		core := event.Core{
			ID:             event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00.123456Z")+int64(i), text),
			ConversationID: text,
			EventName:      text,
			Error:          text,
			Metadata:       `{"k":"v"}`,
			Latency:        float64(i) + 0.1,
			HasLatency:     i%2 == 0,
			Created:        position,
			Version:        version,
		}
		if !core.HasLatency {
			core.Latency, core.Error, core.Metadata = 0, "", ""
			core.Alias = text
			core.ID = core.ID.AsInternal()
		}
		rows.Cores = append(rows.Cores, core)
		want[core.ID] = core
		ids = append(ids, core.ID)
	}
	tombstone := event.Core{ID: event.NewID(event.TimestampMin, "c"), Version: clickhousetest.Deleted(99), Deleted: true}
	rows.Cores = append(rows.Cores, tombstone)
	want[tombstone.ID] = tombstone
	ids = append(ids, tombstone.ID, tombstone.ID, event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "absent"))
	clickhousetest.Insert(t, store, rows)

	got, err := store.Cores(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("cores (-want +got):\n" + diff)
	}
	states, err := store.CoreStates(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	for id, core := range want {
		if diff := cmp.Diff(event.Core{ID: id, Created: core.Created, Version: core.Version, Deleted: core.Deleted}, states[id]); diff != "" {
			t.Error("state (-want +got):\n" + diff)
		}
	}
	if len(states) != len(want) {
		t.Errorf("%d states, want %d", len(states), len(want))
	}
	// The key columns, and the id's text, are what SQL users see.
	for _, line := range strings.Split(server.Query(t, "SELECT id, conversation_hash, toUnixTimestamp64Micro(timestamp), bitShiftRight(xxHash64(conversation_id), 40) FROM "+database+".events WHERE deleted = 0"), "\n") {
		var text string
		var hash, micros, fromText int64
		if _, err := fmt.Sscan(line, &text, &hash, &micros, &fromText); err != nil {
			t.Fatal(err)
		}
		found := false
		for id := range want {
			found = found || id.String() == text && int64(id.ConversationHash()) == hash && id.Micros() == micros && hash == fromText
		}
		if !found {
			t.Errorf("no event has the row %s", line)
		}
	}
}

func TestLookupsReturnTheHighestVersion(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "c")
	p5, v5 := clickhousetest.Created(5)
	p9, v9 := clickhousetest.Created(9)
	row := func(name string, created event.Position, version event.Version) event.Core {
		return event.Core{ID: id, ConversationID: "c", EventName: name, Created: created, Version: version}
	}
	steps := []struct {
		name string
		core event.Core
		want string
	}{
		{"a create", row("second", p9, v9), "second"},
		{"an earlier create wins", row("first", p5, v5), "first"},
		{"the later one again", row("second", p9, v9), "first"},
		{"an update wins over creates", row("updated", p5, clickhousetest.Updated(7)), "updated"},
		{"a later update", row("later", p5, clickhousetest.Updated(8)), "later"},
		{"the earlier one again", row("updated", p5, clickhousetest.Updated(7)), "later"},
		{"a delete wins", event.Core{ID: id, Version: clickhousetest.Deleted(1), Deleted: true}, ""},
		{"over later updates too", row("after", p5, clickhousetest.Updated(100)), ""},
	}
	for _, step := range steps {
		clickhousetest.Insert(t, store, event.Rows{Cores: []event.Core{step.core}})
		cores, err := store.Cores(t.Context(), []event.ID{id})
		if err != nil {
			t.Fatal(err)
		}
		states, err := store.CoreStates(t.Context(), []event.ID{id})
		if err != nil {
			t.Fatal(err)
		}
		if got := cores[id]; got.EventName != step.want || got.Version != states[id].Version || got.Created != states[id].Created || got.Deleted != states[id].Deleted {
			t.Errorf("%s: got %+v and %+v, want %q", step.name, got, states[id], step.want)
		}
	}
}

func TestAliases(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	var rows event.Rows
	want := make(map[string]event.AliasRow)
	var aliases []string
	for i, alias := range hostile {
		_, version := clickhousetest.Created(int64(10 + i))
		row := event.AliasRow{Alias: alias, ID: event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "c").AsInternal(), Version: version}
		rows.Aliases = append(rows.Aliases, row)
		want[alias] = row
		aliases = append(aliases, alias, alias)
	}
	_, losing := clickhousetest.Created(1000)
	rows.Aliases = append(rows.Aliases, event.AliasRow{Alias: hostile[0], ID: event.NewID(clickhousetest.At(t, "2026-03-02T00:00:00Z"), "c"), Version: losing})
	dead := event.AliasRow{Alias: "dead", Version: clickhousetest.Deleted(3), Deleted: true}
	rows.Aliases = append(rows.Aliases, dead)
	want["dead"] = dead
	clickhousetest.Insert(t, store, rows)
	got, err := store.Aliases(t.Context(), append(aliases, "dead", "absent"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("aliases (-want +got):\n" + diff)
	}
}

// TestHistories asks for what is left of events, before merges and after them.
func TestHistories(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	tables := []string{"events", "event_aliases"}
	for _, table := range tables {
		server.Query(t, "SYSTEM STOP MERGES "+database+"."+table)
	}
	last := int64(0)
	id := func() event.ID {
		last++
		return event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z")+last, "c")
	}
	create := func(id event.ID, alias string, offset int64) event.Core {
		position, version := clickhousetest.Created(offset)
		return event.Core{ID: id, ConversationID: "c", EventName: "event_a", Alias: alias, Created: position, Version: version}
	}
	update := func(c event.Core, offset int64) event.Core {
		c.Version = clickhousetest.Updated(offset)
		return c
	}
	remove := func(id event.ID, offset int64) event.Core {
		return event.Core{ID: id, Version: clickhousetest.Deleted(offset), Deleted: true}
	}
	alias := func(name string, id event.ID, offset int64) event.AliasRow {
		_, version := clickhousetest.Created(offset)
		return event.AliasRow{Alias: name, ID: id, Version: version}
	}
	position := func(offset int64) event.Position { return event.MakePosition(1, offset) }
	one, twice, gone, twiceGone, onlyGone, behind := id(), id(), id(), id(), id(), id()
	named, namedGone, burned := id().AsInternal(), id().AsInternal(), id().AsInternal()
	// Each step is one insert.
	for _, rows := range []event.Rows{
		{
			Cores: []event.Core{
				create(one, "", 1), create(twice, "", 2), create(gone, "", 3), create(twiceGone, "", 4), remove(onlyGone, 5),
				create(named, "named", 6), create(namedGone, "gone", 7),
			},
			Aliases: []event.AliasRow{
				alias("named", named, 6), alias("gone", namedGone, 7), alias("burned", burned, 8),
				{Alias: "never", Version: clickhousetest.Deleted(9), Deleted: true},
			},
		},
		{Cores: []event.Core{update(create(one, "", 1), 20), create(twice, "", 21), remove(gone, 22), remove(twiceGone, 23), remove(namedGone, 24)}},
		{Cores: []event.Core{create(gone, "", 30), remove(twiceGone, 31)}},
	} {
		clickhousetest.Insert(t, store, rows)
	}
	want := map[event.Ref]event.History{
		{ID: one}:         {Stored: true, Created: position(1)},
		{ID: twice}:       {Stored: true, Created: position(2)},
		{ID: gone}:        {Stored: true, Created: position(3), Deleted: position(22)},
		{ID: twiceGone}:   {Stored: true, Created: position(4), Deleted: position(23)},
		{ID: onlyGone}:    {Stored: true, Deleted: position(5)},
		{Alias: "named"}:  {Stored: true, Created: position(6)},
		{Alias: "gone"}:   {Stored: true, Created: position(7), Deleted: position(24)},
		{Alias: "burned"}: {Created: position(8)},
		{Alias: "never"}:  {Deleted: position(9)},
	}
	refs := append(slices.Collect(maps.Keys(want)), event.Ref{ID: behind}, event.Ref{Alias: "absent"}, event.Ref{ID: one})
	check := func(when string) {
		t.Helper()
		got, err := store.Histories(t.Context(), refs)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	check("before merges")
	for _, table := range tables {
		server.Query(t, "SYSTEM START MERGES "+database+"."+table)
		server.Query(t, "OPTIMIZE TABLE "+database+"."+table+" FINAL")
	}
	// Of what was deleted, the last tombstone is left; an alias remembers its create.
	want[event.Ref{ID: gone}] = event.History{Stored: true, Deleted: position(22)}
	want[event.Ref{ID: twiceGone}] = event.History{Stored: true, Deleted: position(31)}
	check("after merges")
	if got, err := store.Histories(t.Context(), nil); err != nil || len(got) != 0 {
		t.Errorf("of nothing: %v, error %v", got, err)
	}
}

func TestLookupsInChunks(t *testing.T) {
	server := enginetest.Server(t)
	cfg := clickhousetest.Config(server, server.Database(t))
	cfg.LookupKeysMax, cfg.BlockRowsMax, cfg.InsertConcurrency = 7, 33, 3
	store := clickhousetest.Open(t, cfg)
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var rows event.Rows
	var ids []event.ID
	var aliases []string
	for i := range 100 {
		id := event.NewID(clickhousetest.At(t, "2026-01-31T23:00:00Z")+int64(i)*60_000_000, fmt.Sprint("c", i%3))
		position, version := clickhousetest.Created(int64(i))
		rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: "c", Created: position, Version: version})
		rows.Aliases = append(rows.Aliases, event.AliasRow{Alias: fmt.Sprint("a", i), ID: id, Version: version})
		ids, aliases = append(ids, id), append(aliases, fmt.Sprint("a", i))
	}
	clickhousetest.Insert(t, store, rows)
	cores, err := store.Cores(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	found, err := store.Aliases(t.Context(), aliases)
	if err != nil {
		t.Fatal(err)
	}
	if len(cores) != 100 || len(found) != 100 {
		t.Fatalf("found %d cores and %d aliases of 100", len(cores), len(found))
	}
	for i, id := range ids {
		if found[aliases[i]].ID != id || cores[id].Created != rows.Cores[i].Created {
			t.Fatalf("event %d is another's", i)
		}
	}
}

// A row in sparse form on disk must come back like any other.
func TestSparseColumns(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	var rows event.Rows
	var ids []event.ID
	for i := range 2000 {
		position, version := clickhousetest.Created(int64(i))
		core := event.Core{ID: event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z")+int64(i), "c"), ConversationID: "c", EventName: "n", Created: position, Version: version}
		if i == 700 {
			core.Error, core.Metadata, core.Alias, core.Deleted = "e", "{}", "a", true
		}
		rows.Cores = append(rows.Cores, core)
		ids = append(ids, core.ID)
	}
	clickhousetest.Insert(t, store, rows)
	if got := server.Query(t, "SELECT countIf(serialization_kind = 'Sparse') > 0 FROM system.parts_columns WHERE active AND table = 'events' AND database = '"+database+"'"); got != "1" {
		t.Fatal("no column is sparse, so this test shows nothing")
	}
	cores, err := store.Cores(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		if diff := cmp.Diff(rows.Cores[i], cores[id]); diff != "" {
			t.Fatal("core (-want +got):\n" + diff)
		}
	}
}

func TestOneBlockPerPartition(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	server.Query(t, "SYSTEM STOP MERGES "+database+".events")
	server.Query(t, "SYSTEM STOP MERGES "+database+".event_contents")
	server.Query(t, "SYSTEM STOP MERGES "+database+".event_embeddings")
	server.Query(t, "SYSTEM STOP MERGES "+database+".event_aliases")
	var rows event.Rows
	// Months in turn, so that every one of them is found in many places.
	months := []string{"2025-12-31T23:59:59.999999Z", "2026-01-01T00:00:00Z", "2000-01-01T00:00:00Z"}
	for i := range 9000 {
		id := event.NewID(clickhousetest.At(t, months[i%3]), "c")
		position, version := clickhousetest.Created(int64(i))
		rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: "c", Created: position, Version: version})
		rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte("text")}, Version: version})
		rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: id, Field: event.FieldOutputEmbeddings, Vector: event.VectorOf(make([]float32, 384)...), Version: version})
		rows.Aliases = append(rows.Aliases, event.AliasRow{Alias: id.String(), ID: id, Version: version})
	}
	clickhousetest.Insert(t, store, rows)
	requireParts := func(want map[string]uint64) {
		t.Helper()
		parts, err := store.Parts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		delete(parts, "schema_migrations")
		if diff := cmp.Diff(want, parts); diff != "" {
			t.Error("parts of the fullest partition (-want +got):\n" + diff)
		}
	}
	requireParts(map[string]uint64{"events": 1, "event_contents": 1, "event_embeddings": 1, "event_aliases": 1})
	if got := server.Query(t, "SELECT count() FROM system.parts WHERE active AND database = '"+database+"' AND table = 'events'"); got != "3" {
		t.Errorf("parts of events: %s, want 3", got)
	}
	if got := server.Query(t, "SELECT count(), uniqExact(id) FROM "+database+".events"); got != "9000\t9000" {
		t.Errorf("rows and ids: %s", got)
	}
	clickhousetest.Insert(t, store, event.Rows{Cores: rows.Cores[:1]})
	requireParts(map[string]uint64{"events": 2, "event_contents": 1, "event_embeddings": 1, "event_aliases": 1})
}

// The server has the cores while it works on the contents, and must not show
// them before those are there, or at all where they are refused.
func TestCoresWaitForTheOthers(t *testing.T) {
	for name, result := range map[string]string{"contents that are late": "0", "contents that are refused": "1"} {
		t.Run(name, func(t *testing.T) {
			store, server, database := clickhousetest.Migrated(t)
			// Evaluated for the block once it is there; sleep returns 0.
			server.Query(t, "ALTER TABLE "+database+".event_contents ADD CONSTRAINT late CHECK sleep(1) = "+result)
			id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "c")
			position, version := clickhousetest.Created(1)
			rows := event.Rows{
				Cores:    []event.Core{{ID: id, ConversationID: "c", Created: position, Version: version}},
				Contents: []event.ContentRow{{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte("text")}, Version: version}},
			}
			done := make(chan error, 1)
			go func() { done <- store.Insert(t.Context(), &rows) }()
			counts := "SELECT (SELECT count() FROM " + database + ".events), (SELECT count() FROM " + database + ".event_contents)"
			for {
				select {
				case err := <-done:
					if refused := result == "1"; errors.Is(err, event.ErrRejected) != refused || (err != nil) != refused {
						t.Fatalf("refused is %v, got %v", refused, err)
					}
					// What the server still does, it does not finish.
					for server.Query(t, "SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO events%' AND current_database = '"+database+"'") != "0" {
						continue // each turn asks the server, and the test's time is bounded
					}
					want := map[string]string{"0": "1\t1", "1": "0\t0"}[result]
					if got := server.Query(t, counts); got != want {
						t.Errorf("events and contents: %q, want %q", got, want)
					}
					return
				default:
					if got := server.Query(t, counts); got == "1\t0" {
						t.Fatal("the event is there without its contents")
					}
				}
			}
		})
	}
}

func TestVectorsAreBitExact(t *testing.T) {
	for _, compression := range []conn.Compression{conn.CompressionNone, conn.CompressionLZ4} {
		t.Run(string(compression), func(t *testing.T) {
			server := enginetest.Server(t)
			cfg := clickhousetest.Config(server, server.Database(t))
			cfg.Compression = compression
			store := clickhousetest.Open(t, cfg)
			if _, err := store.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			var rows event.Rows
			vectors := [][]float32{
				{0, float32(math.Copysign(0, -1)), math.SmallestNonzeroFloat32, -math.MaxFloat32, math.MaxFloat32, 1.0 / 3},
				{1},
				make([]float32, 4096), nil,
				{0.1, 0.2},
			}
			for i := range vectors[2] {
				vectors[2][i] = math.Float32frombits(uint32(i)*1_048_583 + 1)
				if math.IsNaN(float64(vectors[2][i])) || math.IsInf(float64(vectors[2][i]), 0) {
					vectors[2][i] = float32(i)
				}
			}
			for i, vector := range vectors {
				id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z")+int64(i), "c")
				position, version := clickhousetest.Created(int64(i))
				rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: "c", Created: position, Version: version})
				rows.Embeddings = append(rows.Embeddings,
					event.EmbeddingRow{ID: id, Field: event.FieldInputEmbeddings, Vector: event.VectorOf(vector...), Version: version},
					event.EmbeddingRow{ID: id, Field: event.FieldOutputEmbeddings, Vector: event.VectorOf(vectors[(i+1)%len(vectors)]...), Version: version})
			}
			clickhousetest.Insert(t, store, rows)
			for i := range vectors {
				e, err := store.Event(t.Context(), event.Ref{ID: rows.Cores[i].ID}, 0)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(event.VectorOf(vectors[i]...), e.InputEmbeddings, cmpopts.EquateEmpty()); diff != "" {
					t.Error("input (-want +got):\n" + diff)
				}
				if diff := cmp.Diff(event.VectorOf(vectors[(i+1)%len(vectors)]...), e.OutputEmbeddings, cmpopts.EquateEmpty()); diff != "" {
					t.Error("output (-want +got):\n" + diff)
				}
			}
		})
	}
}

// TestLeastRights is about a process that may only read: a database user who
// may select from the database and nothing else.
func TestLeastRights(t *testing.T) {
	server := enginetest.Server(t)
	database, user, password := server.Readable(t)
	writer := clickhousetest.Open(t, clickhousetest.Config(server, database))
	if _, err := writer.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	rows := clickhousetest.OneCore(t, "c1")
	clickhousetest.Insert(t, writer, rows)
	if err := writer.RecordTopic(t.Context(), 1, "events.g1", "id-1", 12); err != nil {
		t.Fatal(err)
	}
	cfg := clickhousetest.Config(server, database)
	cfg.User, cfg.Password = user, password
	store := clickhousetest.Open(t, cfg)
	if err := store.Ready(t.Context()); err != nil {
		t.Errorf("ready: %v", err)
	}
	if _, err := store.CheckSchema(t.Context()); err != nil {
		t.Errorf("check the schema: %v", err)
	}
	if err := store.CheckTopic(t.Context(), 1, "events.g1", "id-2", 12); !errors.Is(err, schema.ErrTopicRecreated) {
		t.Errorf("check the topic: %v", err)
	}
	if got, err := store.Generations(t.Context()); err != nil || !slices.Equal(got, []int{1}) {
		t.Errorf("generations %v, error %v", got, err)
	}
	id := rows.Cores[0].ID
	if e, err := store.Event(t.Context(), event.Ref{ID: id}, 0); err != nil || e == nil {
		t.Errorf("event %v, error %v", e, err)
	}
	if page, err := store.List(t.Context(), query.List{Filter: query.OfConversation("c1"), LimitEvents: 10}); err != nil || len(page.Events) != 1 {
		t.Errorf("conversation %v, error %v", page, err)
	}
	filter := query.Filter{SinceMicros: id.Micros() - 1, UntilMicros: id.Micros() + 1}
	if n, err := store.Errors(t.Context(), filter); err != nil || n.Events != 1 {
		t.Errorf("errors %v, error %v", n, err)
	}
	if got, err := store.Latency(t.Context(), query.Latency{Filter: filter, Quantiles: []float64{0.5}, LimitRows: 10}); err != nil {
		t.Errorf("latency %v, error %v", got, err)
	}
	if got, err := store.Conversations(t.Context(), query.Conversations{Filter: filter, LimitRows: 10}); err != nil || len(got) != 1 {
		t.Errorf("conversations %v, error %v", got, err)
	}
	series := query.TimeSeries{Filter: filter, IntervalMicros: time.Minute.Microseconds()}
	if got, err := store.TimeSeries(t.Context(), series); err != nil || len(got) == 0 {
		t.Errorf("time series %v, error %v", got, err)
	}
	// It really has no other right.
	denied := func(what string, err error) {
		t.Helper()
		if !ch.IsErr(err, 497) {
			t.Errorf("%s: got %v, want ACCESS_DENIED", what, err)
		}
	}
	denied("insert", store.Insert(t.Context(), &rows))
	denied("record a topic", store.RecordTopic(t.Context(), 2, "events.g2", "id-2", 12))
	_, err := store.Migrate(t.Context())
	denied("migrate", err)
	_, err = store.SetRetention(t.Context(), 48*time.Hour)
	denied("set the retention", err)
}

// Only what is wrong with the row itself may ever be dead-lettered.
func TestErrorClasses(t *testing.T) {
	insertOne := func(t *testing.T, store *clickhouse.Store) error {
		rows := clickhousetest.OneCore(t, "conversation")
		return store.Insert(t.Context(), &rows)
	}
	tests := []struct {
		name      string
		retryable bool
		err       func(t *testing.T) error
	}{
		{"a violated constraint", false, func(t *testing.T) error {
			store, server, database := clickhousetest.Migrated(t)
			server.Query(t, "ALTER TABLE "+database+".events ADD CONSTRAINT short CHECK length(conversation_id) < 5")
			return insertOne(t, store)
		}},
		{"a value that does not convert", false, func(t *testing.T) error {
			store, server, database := clickhousetest.Migrated(t)
			server.Query(t, "ALTER TABLE "+database+".events MODIFY COLUMN conversation_id UInt8")
			return insertOne(t, store)
		}},
		{"no such table", true, func(t *testing.T) error {
			store, server, database := clickhousetest.Migrated(t)
			server.Query(t, "DROP TABLE "+database+".events SYNC")
			return insertOne(t, store)
		}},
		{"no such column", true, func(t *testing.T) error {
			store, server, database := clickhousetest.Migrated(t)
			server.Query(t, "ALTER TABLE "+database+".events DROP COLUMN metadata")
			return insertOne(t, store)
		}},
		{"no such database", true, func(t *testing.T) error {
			server := enginetest.Server(t)
			return insertOne(t, clickhousetest.Open(t, clickhousetest.Config(server, "no_such_database")))
		}},
		{"a wrong password", true, func(t *testing.T) error {
			_, server, database := clickhousetest.Migrated(t)
			cfg := clickhousetest.Config(server, database)
			cfg.Password = "wrong"
			return insertOne(t, clickhousetest.Open(t, cfg))
		}},
		{"a user without rights", true, func(t *testing.T) error {
			_, server, database := clickhousetest.Migrated(t)
			cfg := clickhousetest.Config(server, database)
			cfg.User, cfg.Password = "default", ""
			return insertOne(t, clickhousetest.Open(t, cfg))
		}},
		{"a read-only table", true, func(t *testing.T) error {
			store, server, database := clickhousetest.Migrated(t)
			server.Query(t, "ALTER TABLE "+database+".events MODIFY SETTING table_readonly = 1")
			return insertOne(t, store)
		}},
		{"too many parts", true, func(t *testing.T) error {
			store, server, database := clickhousetest.Migrated(t)
			server.Query(t, "SYSTEM STOP MERGES "+database+".events")
			server.Query(t, "ALTER TABLE "+database+".events MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1")
			if err := insertOne(t, store); err != nil {
				t.Fatal(err)
			}
			return insertOne(t, store)
		}},
		{"nothing listens", true, func(t *testing.T) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			_ = l.Close()
			return insertOne(t, clickhousetest.Open(t, clickhouse.Config{Addr: l.Addr().String()}))
		}},
		{"a cancelled context", true, func(t *testing.T) error {
			store, _, _ := clickhousetest.Migrated(t)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			rows := clickhousetest.OneCore(t, "c")
			return store.Insert(ctx, &rows)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := test.err(t)
			if err == nil {
				t.Fatal("no error")
			}
			if clickhouse.IsRetryable(err) != test.retryable || errors.Is(err, event.ErrRejected) == test.retryable {
				t.Errorf("retryable is %v: %v", clickhouse.IsRetryable(err), err)
			}
			if strings.Contains(err.Error(), "secret") || !test.retryable && strings.Contains(err.Error(), "conversation'") {
				t.Errorf("the error tells too much: %v", err)
			}
		})
	}
}

// A server that accepts and then says nothing must not hold an operation
// longer than its context.
func TestStalledServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	store := clickhousetest.Open(t, clickhouse.Config{Addr: l.Addr().String()})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := store.Ready(ctx); err == nil {
		t.Fatal("ready without an answer")
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
}

// A server that is too busy to say hello at once has DialTimeout for it.
func TestSlowHandshake(t *testing.T) {
	_, server, database := clickhousetest.Migrated(t)
	p := clickhousetest.NewProxy(t, server.Addr)
	const late = 1500 * time.Millisecond
	p.Late.Store(int64(late))
	cfg := clickhousetest.Config(server, database)
	cfg.Addr = p.Addr().String()
	if err := clickhousetest.Open(t, cfg).Ready(t.Context()); err != nil {
		t.Errorf("%v, though %s is less than DialTimeout, %s", err, late, conn.DefaultDialTimeout)
	}
	cfg.DialTimeout = 500 * time.Millisecond
	if err := clickhousetest.Open(t, cfg).Ready(t.Context()); err == nil {
		t.Errorf("no error, though %s is more than DialTimeout, %s", late, cfg.DialTimeout)
	}
}

// A server that falls silent within an answer, or stops reading within an
// insert, holds nobody longer than the context: not at its deadline, and not
// when it is cancelled.
func TestStallInMidQuery(t *testing.T) {
	direct, server, database := clickhousetest.Migrated(t)
	const n = 20_000
	var rows event.Rows
	var ids []event.ID
	for i := range n {
		position, version := clickhousetest.Created(int64(i))
		text := strings.Repeat("x", 200) + strconv.Itoa(i)
		id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z")+int64(i), text)
		ids = append(ids, id)
		rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: text, Created: position, Version: version})
	}
	clickhousetest.Insert(t, direct, rows)
	tests := []struct {
		name              string
		answers, requests int64
		operation         func(ctx context.Context, store *clickhouse.Store) error
	}{
		{"a lookup within its answer", 200_000, 1 << 40, func(ctx context.Context, store *clickhouse.Store) error {
			_, err := store.Cores(ctx, ids)
			return err
		}},
		{"a lookup before its answer", 100, 1 << 40, func(ctx context.Context, store *clickhouse.Store) error {
			_, err := store.Cores(ctx, ids)
			return err
		}},
		{"an insert within its block", 1 << 40, 500_000, func(ctx context.Context, store *clickhouse.Store) error {
			return store.Insert(ctx, &rows)
		}},
	}
	for _, test := range tests {
		for _, how := range []string{"deadline", "cancel"} {
			t.Run(test.name+"/"+how, func(t *testing.T) {
				p := clickhousetest.NewProxy(t, server.Addr)
				cfg := clickhousetest.Config(server, database)
				cfg.Addr = p.Addr().String()
				store := clickhousetest.Open(t, cfg)
				// The operation finds a connection that is open.
				if _, err := store.Cores(t.Context(), ids[:1]); err != nil {
					t.Fatal(err)
				}
				p.Answers.Store(test.answers)
				p.Requests.Store(test.requests)
				ctx, cancel := context.WithCancel(t.Context())
				want := context.Canceled
				if how == "deadline" {
					ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
					want = context.DeadlineExceeded
				} else {
					time.AfterFunc(300*time.Millisecond, cancel)
				}
				defer cancel()
				start := time.Now()
				if err := test.operation(ctx, store); !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
				if took := time.Since(start); took > 10*time.Second {
					t.Errorf("it took %s", took)
				}
			})
		}
	}
}
