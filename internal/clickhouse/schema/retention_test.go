package schema_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

func TestParseRetention(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"90d": 90 * day, "1d": day, "24h": day, "2160h": 90 * day, "36h30m": 36*time.Hour + 30*time.Minute,
		"10000d": 10_000 * day, "0": schema.Forever, "0d": schema.Forever, "forever": schema.Forever,
	} {
		if got, err := schema.ParseRetention(text); err != nil || got != want {
			t.Errorf("%q is %s, error %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "90", "-90d", "1.5d", "23h", "10001d", "99999d", "24h0.5s", "never", "90 d", "90D"} {
		if got, err := schema.ParseRetention(text); err == nil {
			t.Errorf("%q is %s, want an error", text, got)
		}
	}
}

// retained is a store with events of several ages, two of them deleted.
type retained struct {
	*clickhouse.Store
	t        *testing.T
	query    func(sql string) string
	database string
	now      time.Time
	rows     event.Rows
}

func newRetained(t *testing.T) *retained {
	t.Helper()
	store, server, database := clickhousetest.Migrated(t)
	r := &retained{
		Store: store, t: t, database: database, now: time.Now(),
		query: func(sql string) string {
			t.Helper()
			return server.Query(t, strings.ReplaceAll(sql, "{db}", database))
		},
	}
	// Every insert stays the part that it is, but where a test says so.
	for _, table := range []string{"events", "event_contents", "event_embeddings", "event_aliases"} {
		r.query("SYSTEM STOP MERGES {db}." + table)
	}
	return r
}

// id is that of an event so many days old, of a conversation named by it.
func (r *retained) id(days float64) event.ID {
	at := r.now.Add(-time.Duration(days * float64(24*time.Hour)))
	return event.NewID(at.UnixMicro(), r.conversation(days))
}

func (r *retained) conversation(days float64) string { return fmt.Sprintf("%g days old", days) }

// create inserts an event with an alias, contents and embeddings.
func (r *retained) create(days float64, offset int64) event.ID {
	r.t.Helper()
	id := r.id(days)
	position, version := clickhousetest.Created(offset)
	rows := event.Rows{
		Cores: []event.Core{{
			ID: id, ConversationID: r.conversation(days), EventName: "event_a", Alias: r.conversation(days),
			Created: position, Version: version,
		}},
		Contents:   []event.ContentRow{{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte("x")}, Version: version}},
		Embeddings: []event.EmbeddingRow{{ID: id, Field: event.FieldInputEmbeddings, Vector: event.VectorOf(1, 2), Version: version}},
		Aliases:    []event.AliasRow{{Alias: r.conversation(days), ID: id, Version: version}},
	}
	clickhousetest.Insert(r.t, r.Store, rows)
	r.rows.Cores = append(r.rows.Cores, rows.Cores...)
	r.rows.Contents = append(r.rows.Contents, rows.Contents...)
	r.rows.Embeddings = append(r.rows.Embeddings, rows.Embeddings...)
	r.rows.Aliases = append(r.rows.Aliases, rows.Aliases...)
	return id
}

// delete inserts the tombstones of an event, and returns the names of their parts.
func (r *retained) delete(id event.ID, offset int64) map[string]string {
	r.t.Helper()
	clickhousetest.Insert(r.t, r.Store, event.Rows{
		Cores:      []event.Core{{ID: id, Version: clickhousetest.Deleted(offset), Deleted: true}},
		Contents:   []event.ContentRow{{ID: id, Field: event.FieldInput, Version: clickhousetest.Deleted(offset), Deleted: true}},
		Embeddings: []event.EmbeddingRow{{ID: id, Field: event.FieldInputEmbeddings, Version: clickhousetest.Deleted(offset), Deleted: true}},
	})
	parts := make(map[string]string)
	for _, table := range []string{"events", "event_contents", "event_embeddings"} {
		parts[table] = r.query("SELECT argMax(name, max_block_number) FROM system.parts WHERE active AND database = '{db}' AND table = '" + table + "'")
	}
	return parts
}

func (r *retained) set(keep time.Duration) {
	r.t.Helper()
	if _, err := r.SetRetention(r.t.Context(), keep); err != nil {
		r.t.Fatal(err)
	}
}

// requireVisible checks every way to an event of so many days, whose id is given.
func (r *retained) requireVisible(days float64, id event.ID, want bool) {
	r.t.Helper()
	name := r.conversation(days)
	found := map[string]bool{}
	e, err := r.Event(r.t.Context(), event.Ref{ID: id, Alias: name}, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	found["Event"] = e != nil
	page, err := r.List(r.t.Context(), query.List{Filter: query.OfConversation(name), LimitEvents: 10, WithEmbeddings: true})
	if err != nil {
		r.t.Fatal(err)
	}
	found["Conversation"] = len(page.Events) > 0
	filter := query.Filter{ConversationID: name, UntilMicros: r.now.Add(time.Hour).UnixMicro()}
	errs, err := r.Errors(r.t.Context(), filter)
	if err != nil {
		r.t.Fatal(err)
	}
	found["Errors"] = errs.Events > 0
	tops, err := r.Conversations(r.t.Context(), query.Conversations{Filter: filter, LimitRows: 10, OrderBy: query.OrderByEvents})
	if err != nil {
		r.t.Fatal(err)
	}
	found["Conversations"] = len(tops) > 0
	ref := event.Ref{Alias: r.conversation(days)}
	histories, err := r.Histories(r.t.Context(), []event.Ref{ref})
	if err != nil {
		r.t.Fatal(err)
	}
	if h := histories[ref]; h.Stored && h.Deleted == 0 && h.Expired == want {
		r.t.Errorf("expired %t of an event %g days old, visible %t", h.Expired, days, want)
	}
	cores, err := r.Cores(r.t.Context(), []event.ID{id})
	if err != nil {
		r.t.Fatal(err)
	}
	core, ok := cores[id]
	found["Cores"] = ok && !core.Deleted
	if cores, err = r.CoreStates(r.t.Context(), []event.ID{id}); err != nil {
		r.t.Fatal(err)
	}
	core, ok = cores[id]
	found["CoreStates"] = ok && !core.Deleted
	for _, view := range []string{"live_events", "live_event_contents", "live_event_embeddings"} {
		found[view] = r.query("SELECT count() FROM {db}."+view+" WHERE conversation_id = '"+name+"'") != "0"
	}
	for way, got := range found {
		if got != want {
			r.t.Errorf("%s finds the event that is %s: %t, want %t", way, name, got, want)
		}
	}
}

// Events are hidden from all readers at the retention, to the second.
func TestRetentionHides(t *testing.T) {
	r := newRetained(t)
	const day = 24 * time.Hour
	ids := make(map[float64]event.ID)
	ages := []float64{0, 1.9, 29.99, 30.01, 45, 200, 4000}
	for i, days := range ages {
		ids[days] = r.create(days, int64(i))
	}
	check := func(most float64) {
		t.Helper()
		for _, days := range ages {
			r.requireVisible(days, ids[days], days < most)
		}
	}
	check(5000)
	for _, keep := range []float64{30, 2} {
		changed, err := r.SetRetention(t.Context(), time.Duration(keep)*day)
		if err != nil || !changed {
			t.Fatalf("changed %t, error %v", changed, err)
		}
		if changed, err = r.SetRetention(t.Context(), time.Duration(keep)*day); err != nil || changed {
			t.Fatalf("the same again: changed %t, error %v", changed, err)
		}
		check(keep)
	}
	// A replay hides nothing and shows nothing.
	clickhousetest.Insert(t, r.Store, r.rows)
	check(2)
	// What is new is hidden when its time comes, whatever was before.
	r.set(36 * time.Hour)
	r.requireVisible(1.9, ids[1.9], false)
	r.requireVisible(0, ids[0], true)
	if got := r.query("SELECT count() FROM {db}.events"); got != strconv.Itoa(2*len(ages)) {
		t.Errorf("%s rows are there, want all: nothing was merged", got)
	}
}

// A tombstone that is dropped before the row under it does not bring the event
// back, and no later retention does.
func TestRetentionNeverRevives(t *testing.T) {
	r := newRetained(t)
	const day = 24 * time.Hour
	const old, recent = 100, 3
	gone, kept := r.create(old, 1), r.create(recent, 2)
	live := r.create(old+0.5, 3)
	parts := r.delete(gone, 10)
	r.requireVisible(old, gone, false)
	r.requireVisible(old+0.5, live, true)
	r.set(30 * day)
	// What a merge of that part alone does when the TTL is over.
	for table, part := range parts {
		r.query("ALTER TABLE {db}." + table + " DROP PART '" + part + "'")
	}
	if got := r.query("SELECT count() FROM {db}.events FINAL WHERE deleted = 0 AND conversation_id = '" + r.conversation(old) + "'"); got != "1" {
		t.Fatalf("%s rows without a tombstone, want one: else this test shows nothing", got)
	}
	check := func(what string) {
		t.Helper()
		r.requireVisible(old, gone, false)
		r.requireVisible(old+0.5, live, false)
		r.requireVisible(recent, kept, true)
		if t.Failed() {
			t.Fatal(what)
		}
	}
	check("after the tombstone was dropped")
	for _, keep := range []time.Duration{365 * day, schema.Forever, 60 * day, schema.Forever, 5000 * day} {
		r.set(keep)
		check("with a retention of " + keep.String())
	}
	// A writer's replay changes none of it.
	clickhousetest.Insert(t, r.Store, r.rows)
	check("after a replay")
}

// The rows of a month are dropped once all of them are out of sight, and no
// others; nothing is dropped of a store without a retention.
func TestRetentionDrops(t *testing.T) {
	r := newRetained(t)
	const day = 24 * time.Hour
	ages := []float64{0, 20, 75, 150, 900}
	ids := make([]event.ID, len(ages))
	for i, days := range ages {
		ids[i] = r.create(days, int64(i))
		r.delete(r.id(days), int64(100+i)) // of another event of that time
	}
	clickhousetest.Insert(t, r.Store, event.Rows{Aliases: []event.AliasRow{{Alias: "never created", Version: clickhousetest.Deleted(500), Deleted: true}}})
	for _, table := range []string{"events", "event_contents", "event_embeddings", "event_aliases"} {
		r.query("ALTER TABLE {db}." + table + " MODIFY SETTING merge_with_ttl_timeout = 0, merge_selecting_sleep_ms = 100, max_merge_selecting_sleep_ms = 200, cleanup_delay_period = 1, cleanup_delay_period_random_add = 0, max_cleanup_delay_period = 1, old_parts_lifetime = 1")
		r.query("DETACH TABLE {db}." + table + " SYNC")
		r.query("ATTACH TABLE {db}." + table)
	}
	r.set(60 * day)
	horizon := r.now.Add(-61 * day)
	left := 0
	for _, days := range ages {
		at := r.now.Add(-time.Duration(days) * day).UTC()
		if monthEnd := time.Date(at.Year(), at.Month()+1, 1, 0, 0, 0, 0, time.UTC); monthEnd.After(horizon) {
			left++
		}
	}
	if left < 2 || left > 3 {
		t.Fatalf("%d of %d events are to stay", left, len(ages))
	}
	want := fmt.Sprintf("%d\t%d\t%d\t%d", 2*left, 2*left, 2*left, left+1)
	deadline := time.Now().Add(time.Minute)
	for {
		got := r.query("SELECT (SELECT count() FROM {db}.events), (SELECT count() FROM {db}.event_contents), (SELECT count() FROM {db}.event_embeddings), (SELECT count() FROM {db}.event_aliases)")
		if got == want {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("rows %q, want %q; mutations: %s; parts: %s", got, want,
				r.query("SELECT table, command, is_done, latest_fail_reason FROM system.mutations WHERE database = '{db}'"),
				r.query("SELECT table, name, rows, delete_ttl_info_max FROM system.parts WHERE active AND database = '{db}'"))
		}
		<-time.After(100 * time.Millisecond)
	}
	aliases, err := r.Aliases(t.Context(), []string{"never created", r.conversation(0), r.conversation(900)})
	if err != nil {
		t.Fatal(err)
	}
	if !aliases["never created"].Deleted || aliases[r.conversation(0)].ID != ids[0] || len(aliases) != 2 {
		t.Errorf("aliases %v", aliases)
	}
	r.requireVisible(20, ids[1], true)
	// Without a retention, what comes late stays.
	r.set(schema.Forever)
	for _, table := range []string{"events", "event_contents", "event_embeddings", "event_aliases"} {
		if ddl := r.query("SHOW CREATE TABLE {db}." + table); strings.Contains(ddl, "TTL") {
			t.Errorf("%s still has a TTL: %s", table, ddl)
		}
	}
}

// Readers of a Distributed table see what its own column says, and it has no TTL.
func TestRetentionOfDistributed(t *testing.T) {
	r := newRetained(t)
	const day = 24 * time.Hour
	old, recent := r.create(40, 1), r.create(20, 2)
	server := enginetest.Server(t)
	database := server.Database(t)
	server.Query(t, fmt.Sprintf("CREATE TABLE %s.events AS remote('%s', %s, events, '%s', '%s')",
		database, server.Addr, r.database, server.User, server.Password))
	store := clickhousetest.Open(t, clickhousetest.Config(server, database))
	for range 2 {
		if _, err := store.SetRetention(t.Context(), 30*day); err != nil {
			t.Fatal(err)
		}
	}
	r.requireVisible(40, old, true) // nobody but it was asked to
	filter := query.Filter{UntilMicros: r.now.Add(time.Hour).UnixMicro()}
	if got, err := store.Errors(t.Context(), filter); err != nil || got.Events != 1 {
		t.Errorf("%d events, error %v; want the recent one", got.Events, err)
	}
	r.set(30 * day)
	r.requireVisible(40, old, false)
	r.requireVisible(20, recent, true)
}
