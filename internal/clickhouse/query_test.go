package clickhouse_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// world is a history of writes as rows, and the events that are left by it.
type world struct {
	rows []event.Rows // one per write, in log order
	live map[event.ID]*event.Event
	dead []event.Ref
	refs map[event.ID]event.Ref
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// vocabulary has words of many scripts, cases and shapes.
var vocabulary = []string{
	"Refund", "REFUNDED", "don't", "wörld", "Größe", "naïve", "слово", "СЛОВА", "ΟΔΟΣ", "οδός", "İstanbul", "\u212Aelvin", "你好世界", "世界", "東京タワー", "สวัสดีครับ",
	"안녕하세요", "مرحبا", "नमस्ते", "ab12", "3.14", "foo_bar", "a@b.example", "“quoted”", "—", "😀", "x😀y", "e\u0301te", "\\back", `"q"`, "C:\\new", "ﬁne", "ＦＵＬＬ", "you", "世a界",
}

func sentence(r *rand.Rand) string {
	words := make([]string, 1+r.IntN(12))
	for i := range words {
		words[i] = pick(r, vocabulary)
	}
	return strings.Join(words, pick(r, []string{" ", ", ", "\n"}))
}

// escapedJSON writes a value as Python does by default, in ASCII, or as Java does.
func escapedJSON(r *rand.Rand, value any) []byte {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(r.IntN(2) == 0)
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	text := strings.TrimSpace(b.String())
	format := pick(r, []string{"", `\u%04x`, `\u%04X`})
	if format == "" {
		return []byte(text)
	}
	b.Reset()
	for _, c := range text {
		switch {
		case c < 128:
			b.WriteRune(c)
		case c > 0xFFFF:
			high, low := utf16.EncodeRune(c)
			fmt.Fprintf(&b, format+format, high, low)
		default:
			fmt.Fprintf(&b, format, c)
		}
	}
	return b.Bytes()
}

// searchable returns a content that searches find words in.
func searchable(r *rand.Rand) event.Content {
	switch r.IntN(4) {
	case 0:
		return event.Content{Kind: event.KindString, Data: []byte(sentence(r))}
	case 1:
		return event.Content{Kind: event.KindJSON, Data: escapedJSON(r, []any{map[string]any{"role": "user", "content": sentence(r)}, 3.25, sentence(r), nil, true})}
	default:
		return text(r)
	}
}

func text(r *rand.Rand) event.Content {
	switch r.IntN(4) {
	case 0:
		return event.Content{}
	case 1:
		return event.Content{Kind: event.KindString, Data: []byte{}}
	case 2:
		return event.Content{Kind: event.KindString, Data: []byte(pick(r, hostile))}
	}
	return event.Content{Kind: event.KindJSON, Data: []byte(`[{"role":"user","n":` + strconv.Itoa(r.IntN(9)) + `}]`)}
}

func vector(r *rand.Rand) event.Vector {
	if r.IntN(2) == 0 {
		return nil
	}
	return event.VectorOf(r.Float32(), -r.Float32(), 0)
}

// newWorld writes n events of a few conversations.
func newWorld(r *rand.Rand, first, last int64, n int) *world {
	return newWorldOf(r, []string{"alpha", "beta", "gamma'; DROP TABLE events; --", "delta\\", "ünï\tcode\n"}, searchable, first, last, n)
}

// newWorldOf writes n events with creates that lose, updates and deletes among
// them, as the consumer would write them.
func newWorldOf(r *rand.Rand, conversations []string, content func(*rand.Rand) event.Content, first, last int64, n int) *world {
	w := &world{live: make(map[event.ID]*event.Event), refs: make(map[event.ID]event.Ref)}
	offset := int64(0)
	names := []string{"event_a", "event_b", "event_c"}
	metadata := []string{
		"", `{"n":9007199254740993,"day":"2026-01-30"}`, `{"n":9007199254740992.0,"m":-0}`, `{"n":18446744073709551617, "say \"7\"":[1,2],"plan":null}`,
		`{"n":-36893488147419103233,"pl\u0061n":"pro"}`, `{"n":"9007199254740993","x":{"n":1}}`, `{"a<b>&c":1e2,"text \\":"12 \\\" 34","n":0.1}`,
		`{"plan":"pro","seats":3}`, `{"plan":"free","beta":true,"nested":{"plan":"pro"}}`, `{"plan":5,"ratio":1.5}`, `{"it's":"a\\b","big":12345678901234567890123}`,
	}
	for range n {
		conversation := pick(r, conversations)
		// Ties in time are common.
		micros := first + r.Int64N((last-first)/1000)*1000
		if r.IntN(3) == 0 {
			micros = first + r.Int64N(5)
		}
		id := event.NewID(micros, conversation)
		ref := event.Ref{ID: id}
		if r.IntN(4) == 0 {
			id = id.AsInternal()
			ref = event.Ref{Alias: fmt.Sprintf("order'%d\\", len(w.refs))}
		}
		w.refs[id] = ref
		var e *event.Event
		var core event.Core
		write := func(class event.Class) {
			position := event.MakePosition(1, offset)
			version := event.MakeVersion(class, position)
			offset++
			var rows event.Rows
			add := func(field event.Field, content event.Content, deleted bool) {
				rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: field, Content: content, Version: version, Deleted: deleted})
			}
			embed := func(field event.Field, vector event.Vector, deleted bool) {
				rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: id, Field: field, Vector: vector, Version: version, Deleted: deleted})
			}
			switch class {
			case event.ClassCreate:
				c := event.Core{ID: id, Alias: ref.Alias, ConversationID: conversation, EventName: pick(r, names), Metadata: pick(r, metadata), Created: position, Version: version}
				if r.IntN(3) == 0 {
					c.Error = pick(r, hostile)
				}
				if r.IntN(3) != 0 {
					c.HasLatency, c.Latency = true, math.Round(r.Float64()*1000)/8
				}
				fresh := event.Event{ID: ref.String(), ConversationID: conversation, Micros: micros}
				fresh.Input, fresh.Output, fresh.InputEmbeddings, fresh.OutputEmbeddings = content(r), content(r), vector(r), vector(r)
				if fresh.Input.Kind != event.KindNull {
					add(event.FieldInput, fresh.Input, false)
				}
				if fresh.Output.Kind != event.KindNull {
					add(event.FieldOutput, fresh.Output, false)
				}
				if fresh.InputEmbeddings != nil {
					embed(event.FieldInputEmbeddings, fresh.InputEmbeddings, false)
				}
				if fresh.OutputEmbeddings != nil {
					embed(event.FieldOutputEmbeddings, fresh.OutputEmbeddings, false)
				}
				if ref.Alias != "" {
					rows.Aliases = append(rows.Aliases, event.AliasRow{Alias: ref.Alias, ID: id, Version: version})
				}
				rows.Cores = append(rows.Cores, c)
				if e == nil {
					e, core = &fresh, c
				}
			case event.ClassUpdate:
				switch r.IntN(3) {
				case 0:
					core.EventName, core.Error, core.HasLatency, core.Latency = pick(r, names), "", true, 7
					core.Version = version
					rows.Cores = append(rows.Cores, core)
				case 1:
					e.Output = content(r)
					add(event.FieldOutput, e.Output, false)
				case 2:
					e.InputEmbeddings = vector(r)
					embed(event.FieldInputEmbeddings, e.InputEmbeddings, false)
				}
			case event.ClassDelete:
				rows.Cores = append(rows.Cores, event.Core{ID: id, Alias: ref.Alias, Version: version, Deleted: true})
				add(event.FieldInput, event.Content{}, true)
				add(event.FieldOutput, event.Content{}, true)
				embed(event.FieldInputEmbeddings, nil, true)
				embed(event.FieldOutputEmbeddings, nil, true)
			}
			w.rows = append(w.rows, rows)
		}
		write(event.ClassCreate)
		for range r.IntN(3) {
			write(pick(r, []event.Class{event.ClassCreate, event.ClassUpdate, event.ClassUpdate}))
		}
		if r.IntN(5) == 0 {
			write(event.ClassDelete)
			w.dead = append(w.dead, ref)
			continue
		}
		e.EventName, e.Metadata, e.Error = core.EventName, core.Metadata, core.Error
		if core.HasLatency {
			latency := core.Latency
			e.Latency = &latency
		}
		w.live[id] = e
	}
	return w
}

// insert inserts the history in batches out of order, some of them twice, each
// by one of the stores.
func (w *world) insert(t *testing.T, r *rand.Rand, stores ...*clickhouse.Store) {
	t.Helper()
	order := r.Perm(len(w.rows))
	for batch := range slices.Chunk(order, len(order)/7+1) {
		var rows event.Rows
		for _, i := range batch {
			rows.Cores = append(rows.Cores, w.rows[i].Cores...)
			rows.Contents = append(rows.Contents, w.rows[i].Contents...)
			rows.Embeddings = append(rows.Embeddings, w.rows[i].Embeddings...)
			rows.Aliases = append(rows.Aliases, w.rows[i].Aliases...)
		}
		for range 1 + r.IntN(2) {
			if err := pick(r, stores).Insert(t.Context(), &rows); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (w *world) matching(f query.Filter, metadata func(string) bool) []*event.Event {
	var matching []*event.Event
	for _, e := range w.live {
		if e.Micros >= f.SinceMicros && e.Micros < f.UntilMicros &&
			(f.ConversationID == "" || f.ConversationID == e.ConversationID) &&
			(len(f.EventNames) == 0 || slices.Contains(f.EventNames, e.EventName)) &&
			(f.Errors == query.AnyErrors || (f.Errors == query.WithError) == (e.Error != "")) &&
			(f.LatencyMin == nil || e.Latency != nil && *e.Latency >= *f.LatencyMin) &&
			(f.LatencyMax == nil || e.Latency != nil && *e.Latency <= *f.LatencyMax) &&
			!slices.ContainsFunc(f.Metadata, func(m query.MetadataFilter) bool { return !hasMetadata(e.Metadata, m) }) &&
			(metadata == nil || metadata(e.Metadata)) {
			matching = append(matching, e)
		}
	}
	return matching
}

// metadataFilters has all operators with values of all kinds.
func metadataFilters() []query.MetadataFilter {
	var filters []query.MetadataFilter
	values := []string{
		"", "pro", "2026-01-30", "0", "-0.0", "3", "3.00", "100", "0.1", "1e-1", "0.10000000000000002", "9007199254740992", "9007199254740993", "9007199254740992.5",
		"18446744073709551617", "18446744073709551616", "18446744073709551617.5", "1844674407370955161e1", "-36893488147419103233", "-36893488147419103234", "-36893488147419103232",
		"1e300", "-1e300", "1e400", "true", "null", `12 \" 34`,
	}
	for _, key := range []string{"n", "plan", "m", "day", "seats", "a<b>&c", `say "7"`, `text \`, "x", "none"} {
		filters = append(filters, query.MetadataFilter{Key: key, Op: query.Exists}, query.MetadataFilter{Key: key, Op: query.Missing})
		for _, op := range []query.Op{query.Equal, query.NotEqual, query.Less, query.LessOrEqual, query.Greater, query.GreaterOrEqual} {
			some := values
			if key != "n" {
				some = []string{"", "pro", "2026-01-30", "-0.0", "3.00", "100", "true", `12 \" 34`}
			}
			for _, value := range some {
				filters = append(filters, query.MetadataFilter{Key: key, Op: op, Value: value})
			}
		}
	}
	return filters
}

// hasMetadata is the definition that query.MetadataFilter documents.
func hasMetadata(metadata string, f query.MetadataFilter) bool {
	var members map[string]any
	decoder := json.NewDecoder(strings.NewReader(metadata))
	decoder.UseNumber()
	if metadata != "" && decoder.Decode(&members) != nil {
		panic("BUG: metadata " + metadata)
	}
	member, exists := members[f.Key]
	switch f.Op {
	case query.Exists:
		return exists
	case query.Missing:
		return !exists
	case query.NotEqual:
		return !hasMetadata(metadata, query.MetadataFilter{Key: f.Key, Value: f.Value})
	default:
	}
	order, comparable := 0, false
	switch member := member.(type) {
	case string:
		order, comparable = strings.Compare(member, f.Value), f.Op == query.Equal || !isNumber(f.Value)
	case bool:
		comparable = f.Op == query.Equal && strconv.FormatBool(member) == f.Value
	case json.Number:
		if comparable = isNumber(f.Value); comparable {
			order = compareNumbers(string(member), f.Value)
		}
	}
	if !comparable {
		return false
	}
	switch f.Op {
	case query.Less:
		return order < 0
	case query.LessOrEqual:
		return order <= 0
	case query.Greater:
		return order > 0
	case query.GreaterOrEqual:
		return order >= 0
	default:
		return order == 0
	}
}

func isNumber(text string) bool {
	if text == "true" || text == "null" || !json.Valid([]byte(text)) {
		return false
	}
	_, err := strconv.ParseFloat(text, 64)
	return err == nil
}

// compareNumbers compares a number of the metadata with one of a filter: an integer exactly, another
// number as float64.
func compareNumbers(a, b string) int {
	if !strings.ContainsAny(a, ".eE") {
		x, _ := new(big.Rat).SetString(a)
		y, _ := new(big.Rat).SetString(b)
		return x.Cmp(y)
	}
	x, _ := strconv.ParseFloat(a, 64)
	y, _ := strconv.ParseFloat(b, 64)
	return cmp.Compare(x, y)
}

// quantile is the definition that Store.Latency documents.
func quantile(values []float64, level float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	slices.Sort(values)
	place := level * float64(len(values)-1)
	low := int(place)
	if low+1 == len(values) {
		return values[low]
	}
	return values[low] + (place-float64(low))*(values[low+1]-values[low])
}

func latencies(events []*event.Event) []float64 {
	var values []float64
	for _, e := range events {
		if e.Latency != nil {
			values = append(values, *e.Latency)
		}
	}
	return values
}

func count(events []*event.Event) query.ErrorCount {
	c := query.ErrorCount{Events: uint64(len(events))}
	for _, e := range events {
		if e.Error != "" {
			c.Errors++
		}
	}
	return c
}

var equateContents = gocmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateApprox(0, 1e-9), cmpopts.EquateNaNs()}

func TestReads(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	r := rand.New(rand.NewPCG(1, 2))
	first, last := clickhousetest.At(t, "2026-01-30T00:00:00Z"), clickhousetest.At(t, "2026-03-02T00:00:00Z")
	w := newWorld(r, first, last, 400)
	// Merges or not, the answers are the same.
	for _, table := range []string{"events", "event_contents", "event_embeddings", "event_aliases"} {
		server.Query(t, "SYSTEM STOP MERGES "+database+"."+table)
	}
	w.insert(t, r, store)
	t.Run("unmerged", func(t *testing.T) { w.check(t, store) })
	t.Run("views", func(t *testing.T) {
		w.checkViews(t, func(sql string) string { return server.Query(t, sql) }, database)
	})
	for _, table := range []string{"events", "event_contents", "event_embeddings", "event_aliases"} {
		server.Query(t, "SYSTEM START MERGES "+database+"."+table)
		server.Query(t, "OPTIMIZE TABLE "+database+"."+table+" FINAL")
	}
	t.Run("merged", func(t *testing.T) {
		// Lists are read in windows of time.
		cfg := clickhousetest.Config(server, database)
		cfg.ListRowsMax = 1
		w.check(t, clickhousetest.Open(t, cfg))
	})
	t.Run("metadata", func(t *testing.T) {
		for _, m := range metadataFilters() {
			f := query.Filter{UntilMicros: query.MicrosMax, Metadata: []query.MetadataFilter{m}}
			got, err := store.Errors(t.Context(), f)
			if err != nil {
				t.Fatalf("%+v: %v", m, err)
			}
			if want := count(w.matching(f, nil)); got != want {
				t.Errorf("%+v: got %+v, want %+v", m, got, want)
			}
		}
	})
	t.Run("views merged", func(t *testing.T) {
		w.checkViews(t, func(sql string) string { return server.Query(t, sql) }, database)
	})
}

func (w *world) check(t *testing.T, store *clickhouse.Store) {
	ctx := t.Context()
	const day = 24 * 60 * 60 * 1_000_000
	all := query.Filter{SinceMicros: clickhousetest.At(t, "2026-01-01T00:00:00Z"), UntilMicros: clickhousetest.At(t, "2026-12-01T00:00:00Z")}

	t.Run("event", func(t *testing.T) {
		n := 0
		for id, want := range w.live {
			if n++; n > 100 {
				break
			}
			got, err := store.Event(ctx, w.refs[id], 0)
			if err != nil {
				t.Fatal(err)
			}
			if got == nil {
				t.Fatalf("%q is not found", want.ID)
			}
			if diff := gocmp.Diff(want, got, equateContents); diff != "" {
				t.Fatal("event (-want +got):\n" + diff)
			}
		}
		absent := []event.Ref{{Alias: "absent"}, {ID: event.NewID(all.SinceMicros, "alpha")}}
		for id, ref := range w.refs {
			if ref.Alias != "" {
				absent = append(absent, event.Ref{ID: id}) // behind an alias
			}
		}
		absent = append(absent[:min(len(absent), 30)], w.dead[:20]...)
		for _, ref := range absent {
			if got, err := store.Event(ctx, ref, 0); err != nil || got != nil {
				t.Fatalf("%q: got %v, %v, want nothing", ref, got, err)
			}
		}
	})

	t.Run("conversation", func(t *testing.T) {
		for _, conversation := range []string{"alpha", "gamma'; DROP TABLE events; --", "ünï\tcode\n", "none"} {
			for _, limit := range []int{7, 1000} {
				seen := make(map[string]event.Event)
				var after *event.ID
				var lastMicros int64
				for {
					page, err := store.List(ctx, query.List{Filter: query.OfConversation(conversation), After: after, LimitEvents: limit, WithEmbeddings: limit == 7})
					if err != nil {
						t.Fatal(err)
					}
					if len(page.Events) > limit || page.Next != nil && len(page.Events) != limit {
						t.Fatalf("a page of %d events at limit %d", len(page.Events), limit)
					}
					for _, e := range page.Events {
						if _, again := seen[e.ID]; again || e.Micros < lastMicros {
							t.Fatalf("%q comes again or out of order", e.ID)
						}
						lastMicros = e.Micros
						seen[e.ID] = e
					}
					if after = page.Next; after == nil {
						break
					}
				}
				want := make(map[string]event.Event)
				for _, e := range w.live {
					if e.ConversationID == conversation {
						copied := *e
						if limit != 7 {
							copied.InputEmbeddings, copied.OutputEmbeddings = nil, nil
						}
						want[e.ID] = copied
					}
				}
				if diff := gocmp.Diff(want, seen, equateContents); diff != "" {
					t.Fatal("conversation (-want +got):\n" + diff)
				}
			}
		}
	})

	filters := []struct {
		name     string
		filter   query.Filter
		metadata func(string) bool
	}{
		{"everything", query.Filter{}, nil},
		{"a day", query.Filter{SinceMicros: all.SinceMicros + 40*day, UntilMicros: all.SinceMicros + 41*day}, nil},
		{"since is in, until is out", query.Filter{SinceMicros: clickhousetest.At(t, "2026-01-30T00:00:00Z") + 1, UntilMicros: clickhousetest.At(t, "2026-01-30T00:00:00Z") + 3}, nil},
		{"an event name", query.Filter{EventNames: []string{"event_b"}}, nil},
		{"two event names", query.Filter{EventNames: []string{"event_a", "event_c"}}, nil},
		{"with an error", query.Filter{Errors: query.WithError}, nil},
		{"without an error", query.Filter{Errors: query.WithoutError, EventNames: []string{"event_a"}}, nil},
		{"a range of latency", query.Filter{LatencyMin: new(7.0), LatencyMax: new(60.125)}, nil},
		{"until after all dates", query.Filter{SinceMicros: all.SinceMicros, UntilMicros: clickhousetest.At(t, "2200-01-01T00:00:00Z")}, nil},
		{"since after all dates", query.Filter{SinceMicros: clickhousetest.At(t, "2200-01-01T00:00:00Z"), UntilMicros: clickhousetest.At(t, "9000-01-01T00:00:00Z")}, nil},
		{"a conversation", query.Filter{ConversationID: "delta\\"}, nil},
		{"an injected conversation", query.Filter{ConversationID: "gamma'; DROP TABLE events; --"}, nil},
		{"a conversation that is not there", query.Filter{ConversationID: "' OR 1=1 --"}, nil},
		{
			"string metadata",
			query.Filter{Metadata: []query.MetadataFilter{{Key: "plan", Value: "pro"}}},
			func(m string) bool {
				return strings.HasPrefix(m, `{"plan":"pro"`) || strings.Contains(m, `"pl\u0061n":"pro"`)
			},
		},
		{
			"number metadata",
			query.Filter{Metadata: []query.MetadataFilter{{Key: "seats", Value: "3"}}},
			func(m string) bool { return strings.Contains(m, `"seats":3`) },
		},
		{
			"fraction metadata",
			query.Filter{Metadata: []query.MetadataFilter{{Key: "ratio", Value: "1.5"}}},
			func(m string) bool { return strings.Contains(m, `"ratio":1.5`) },
		},
		{
			"boolean metadata",
			query.Filter{Metadata: []query.MetadataFilter{{Key: "beta", Value: "true"}}},
			func(m string) bool { return strings.Contains(m, `"beta":true`) },
		},
		{
			"two keys",
			query.Filter{Metadata: []query.MetadataFilter{{Key: "plan", Value: "free"}, {Key: "beta", Value: "true"}}},
			func(m string) bool { return strings.Contains(m, `"beta":true`) },
		},
		{
			"escaped metadata beside a big number",
			query.Filter{Metadata: []query.MetadataFilter{{Key: "it's", Value: `a\b`}}},
			func(m string) bool { return strings.Contains(m, "it's") },
		},
		{
			"an object is no value",
			query.Filter{Metadata: []query.MetadataFilter{{Key: "nested", Value: `{"plan":"pro"}`}}},
			func(string) bool { return false },
		},
		{
			"injected metadata",
			query.Filter{Metadata: []query.MetadataFilter{{Key: `') OR 1=1 --`, Value: `' OR '1'='1`}}},
			func(string) bool { return false },
		},
	}
	for _, f := range filters {
		if f.filter.UntilMicros == 0 {
			f.filter.SinceMicros, f.filter.UntilMicros = all.SinceMicros, all.UntilMicros
		}
		events := w.matching(f.filter, f.metadata)
		t.Run("errors/"+f.name, func(t *testing.T) {
			got, err := store.Errors(ctx, f.filter)
			if err != nil {
				t.Fatal(err)
			}
			if got != count(events) {
				t.Errorf("got %+v, want %+v", got, count(events))
			}
		})
		t.Run("similar/"+f.name, func(t *testing.T) { checkSimilar(t, store, f.filter, events) })
		switch f.name {
		case "everything", "with an error", "a conversation", "string metadata":
			t.Run("search/"+f.name, func(t *testing.T) { checkSearch(t, store, f.filter, events) })
		}
		t.Run("list/"+f.name, func(t *testing.T) { checkList(t, store, f.filter, events) })
		t.Run("export/"+f.name, func(t *testing.T) { w.checkExport(t, store, f.filter, events) })
		t.Run("insights/"+f.name, func(t *testing.T) {
			if f.name == "everything" {
				w.checkInsights(t, store, f.filter)
				return
			}
			w.checkInsights(t, store, f.filter, "plans")
		})
		if f.name == "everything" || f.name == "a range of latency" {
			t.Run("funnel/"+f.name, func(t *testing.T) { w.checkFunnel(t, store, f.filter) })
			t.Run("retention/"+f.name, func(t *testing.T) { w.checkRetention(t, store, f.filter) })
		}
		t.Run("conversations by last event/"+f.name, func(t *testing.T) { checkConversationList(t, store, f.filter, events) })
		t.Run("timeseries/"+f.name, func(t *testing.T) {
			interval := int64(36 * 60 * 60 * 1_000_000)
			// As many buckets as are allowed at most.
			interval *= 1 + (f.filter.UntilMicros-f.filter.SinceMicros)/(clickhouse.TimeSeriesRowsMax*interval)
			buckets := make(map[int64][]*event.Event)
			for _, e := range events {
				buckets[e.Micros/interval*interval] = append(buckets[e.Micros/interval*interval], e)
			}
			var want []query.TimeSeriesRow
			for micros, events := range buckets {
				values := latencies(events)
				want = append(want, query.TimeSeriesRow{Micros: micros, ErrorCount: count(events), Quantiles: []float64{quantile(values, 0.5), quantile(values, 0.99)}})
			}
			slices.SortFunc(want, func(a, b query.TimeSeriesRow) int { return cmp.Compare(a.Micros, b.Micros) })
			got, err := store.TimeSeries(ctx, query.TimeSeries{Filter: f.filter, IntervalMicros: interval, Quantiles: []float64{0.5, 0.99}})
			if err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(want, got, equateContents); diff != "" {
				t.Error("rows (-want +got):\n" + diff)
			}
		})
		for _, by := range []struct {
			name                string
			conversation, name1 bool
		}{{"all", false, false}, {"conversation", true, false}, {"event_name", false, true}, {"both", true, true}} {
			t.Run("latency/"+by.name+"/"+f.name, func(t *testing.T) {
				groups := make(map[[2]string][]float64)
				for _, e := range events {
					if e.Latency == nil {
						continue
					}
					var key [2]string
					if by.conversation {
						key[0] = e.ConversationID
					}
					if by.name1 {
						key[1] = e.EventName
					}
					groups[key] = append(groups[key], *e.Latency)
				}
				var want []query.LatencyRow
				for key, values := range groups {
					want = append(want, query.LatencyRow{
						ConversationID: key[0], EventName: key[1], Events: uint64(len(values)),
						Quantiles: []float64{quantile(values, 0.95), quantile(values, 0.333), quantile(values, 0.999)},
					})
				}
				slices.SortFunc(want, func(a, b query.LatencyRow) int {
					return cmp.Or(-cmp.Compare(a.Quantiles[0], b.Quantiles[0]), cmp.Compare(a.ConversationID, b.ConversationID), cmp.Compare(a.EventName, b.EventName))
				})
				want = want[:min(len(want), 6)]
				got, err := store.Latency(ctx, query.Latency{Filter: f.filter, Quantiles: []float64{0.95, 0.333, 0.999}, ByConversation: by.conversation, ByEventName: by.name1, LimitRows: 6})
				if err != nil {
					t.Fatal(err)
				}
				if diff := gocmp.Diff(want, got, equateContents); diff != "" {
					t.Error("rows (-want +got):\n" + diff)
				}
			})
		}
		for order, key := range map[query.Order]func(query.ConversationRow) float64{
			query.OrderByErrorRate: func(r query.ConversationRow) float64 { return r.Rate() },
			query.OrderByErrors:    func(r query.ConversationRow) float64 { return float64(r.Errors) },
			query.OrderByEvents:    func(r query.ConversationRow) float64 { return float64(r.Events) },
		} {
			t.Run(fmt.Sprint("conversations/", order, "/", f.name), func(t *testing.T) {
				groups := make(map[string][]*event.Event)
				for _, e := range events {
					groups[e.ConversationID] = append(groups[e.ConversationID], e)
				}
				var want []query.ConversationRow
				for conversation, events := range groups {
					row := query.ConversationRow{ConversationID: conversation, ErrorCount: count(events), FirstMicros: math.MaxInt64}
					for _, e := range events {
						row.FirstMicros, row.LastMicros = min(row.FirstMicros, e.Micros), max(row.LastMicros, e.Micros)
					}
					if row.Events >= 3 {
						want = append(want, row)
					}
				}
				slices.SortFunc(want, func(a, b query.ConversationRow) int {
					return cmp.Or(-cmp.Compare(key(a), key(b)), cmp.Compare(a.ConversationID, b.ConversationID))
				})
				want = want[:min(len(want), 4)]
				got, err := store.Conversations(ctx, query.Conversations{Filter: f.filter, OrderBy: order, EventsMin: 3, LimitRows: 4})
				if err != nil {
					t.Fatal(err)
				}
				if diff := gocmp.Diff(want, got, equateContents); diff != "" {
					t.Error("rows (-want +got):\n" + diff)
				}
			})
		}
	}
}

// checkList reads all pages of a list, in both orders.
func checkList(t *testing.T, store *clickhouse.Store, f query.Filter, events []*event.Event) {
	for _, newest := range []bool{false, true} {
		for _, limit := range []int{11, 1000} {
			seen := make(map[string]event.Event)
			var last *event.Event
			q := query.List{Filter: f, Newest: newest, LimitEvents: limit, WithEmbeddings: limit == 11}
			for {
				page, err := store.List(t.Context(), q)
				if err != nil {
					t.Fatal(err)
				}
				if len(page.Events) > limit || page.Next != nil && len(page.Events) != limit {
					t.Fatalf("a page of %d events at limit %d", len(page.Events), limit)
				}
				for _, e := range page.Events {
					if _, again := seen[e.ID]; again || last != nil && e.Micros != last.Micros && e.Micros < last.Micros != newest {
						t.Fatalf("%q comes again or out of order", e.ID)
					}
					seen[e.ID], last = e, &e
				}
				if q.After = page.Next; q.After == nil {
					break
				}
			}
			want := make(map[string]event.Event)
			for _, e := range events {
				copied := *e
				if !q.WithEmbeddings {
					copied.InputEmbeddings, copied.OutputEmbeddings = nil, nil
				}
				want[e.ID] = copied
			}
			if diff := gocmp.Diff(want, seen, equateContents); diff != "" {
				t.Fatalf("newest %v, limit %d (-want +got):\n%s", newest, limit, diff)
			}
		}
	}
}

// checkConversationList reads all pages of conversations.
func checkConversationList(t *testing.T, store *clickhouse.Store, f query.Filter, events []*event.Event) {
	const chars = 5
	of := make(map[string][]*event.Event)
	for _, e := range events {
		of[e.ConversationID] = append(of[e.ConversationID], e)
	}
	var want []query.ConversationSummary
	for id, events := range of {
		summary := query.ConversationSummary{ConversationID: id, ErrorCount: count(events), FirstMicros: math.MaxInt64}
		for _, e := range events {
			summary.FirstMicros, summary.LastMicros = min(summary.FirstMicros, e.Micros), max(summary.LastMicros, e.Micros)
			summary.EventNames = append(summary.EventNames, e.EventName)
		}
		slices.Sort(summary.EventNames)
		summary.EventNames = slices.Compact(summary.EventNames)
		want = append(want, summary)
	}
	slices.SortFunc(want, func(a, b query.ConversationSummary) int {
		return cmp.Or(cmp.Compare(b.LastMicros, a.LastMicros), strings.Compare(a.ConversationID, b.ConversationID))
	})
	for _, limit := range []int{1, 2, 100} {
		var got []query.ConversationSummary
		q := query.ConversationList{Filter: f, LimitRows: limit, PreviewChars: chars}
		for {
			page, err := store.ConversationList(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			for i := range page {
				checkPreviews(t, &page[i], of[page[i].ConversationID], chars)
				page[i].FirstInput, page[i].LastOutput = "", ""
			}
			got = append(got, page...)
			if len(page) < limit {
				break
			}
			q.After = &query.ConversationPlace{LastMicros: page[limit-1].LastMicros, ConversationID: page[limit-1].ConversationID}
		}
		if diff := gocmp.Diff(want, got, equateContents); diff != "" {
			t.Fatalf("limit %d (-want +got):\n%s", limit, diff)
		}
	}
}

// checkPreviews checks the previews of a conversation whose first and last events have
// distinct times. Ids of equal times are ordered by the database alone.
func checkPreviews(t *testing.T, summary *query.ConversationSummary, events []*event.Event, chars int) {
	t.Helper()
	slices.SortFunc(events, func(a, b *event.Event) int { return cmp.Compare(a.Micros, b.Micros) })
	begin := func(e *event.Event, c event.Content) (text string, ok, certain bool) {
		for _, other := range events {
			if other != e && other.Micros == e.Micros {
				return "", false, false
			}
		}
		runes := []rune(string(c.Data))
		return string(runes[:min(chars, len(runes))]), c.Kind != event.KindNull, true
	}
	for _, e := range events[:min(5, len(events))] {
		text, ok, certain := begin(e, e.Input)
		if !certain {
			break
		}
		if ok {
			if summary.FirstInput != text {
				t.Errorf("%q begins with %q, want %q", summary.ConversationID, summary.FirstInput, text)
			}
			break
		}
	}
	slices.Reverse(events)
	for _, e := range events[:min(5, len(events))] {
		text, ok, certain := begin(e, e.Output)
		if !certain {
			break
		}
		if ok {
			if summary.LastOutput != text {
				t.Errorf("%q ends with %q, want %q", summary.ConversationID, summary.LastOutput, text)
			}
			break
		}
	}
}

func (w *world) checkViews(t *testing.T, query func(sql string) string, database string) {
	t.Helper()
	var events, contents, embeddings []string
	hex := func(s string) string { return strings.ToUpper(fmt.Sprintf("%x", s)) }
	for _, e := range w.live {
		latency := "none"
		if e.Latency != nil {
			latency = strconv.FormatFloat(*e.Latency, 'f', -1, 64)
		}
		events = append(events, strings.Join([]string{hex(e.ID), hex(e.ConversationID), strconv.FormatInt(e.Micros, 10), e.EventName, hex(e.Error), latency, hex(e.Metadata)}, "|"))
		for field, c := range map[string]event.Content{"input": e.Input, "output": e.Output} {
			if c.Kind != event.KindNull {
				contents = append(contents, strings.Join([]string{hex(e.ID), field, map[event.Kind]string{event.KindString: "string", event.KindJSON: "json"}[c.Kind], hex(string(c.Data))}, "|"))
			}
		}
		for field, v := range map[string]event.Vector{"input": e.InputEmbeddings, "output": e.OutputEmbeddings} {
			if len(v) > 0 {
				embeddings = append(embeddings, strings.Join([]string{hex(e.ID), field, strconv.FormatUint(uint64(math.Float32bits(v.At(0))), 10)}, "|"))
			}
		}
	}
	for _, view := range []struct {
		columns, name string
		want          []string
	}{
		{"hex(id) || '|' || hex(conversation_id) || '|' || toString(toUnixTimestamp64Micro(timestamp)) || '|' || event_name || '|' || hex(ifNull(error, '')) || '|' || ifNull(toString(latency), 'none') || '|' || hex(conversation_metadata)", "live_events", events},
		{"hex(id) || '|' || toString(field) || '|' || kind || '|' || hex(content)", "live_event_contents", contents},
		{"hex(id) || '|' || toString(field) || '|' || toString(reinterpretAsUInt32(vector[1]))", "live_event_embeddings", embeddings},
	} {
		got := strings.Split(query("SELECT "+view.columns+" FROM "+database+"."+view.name), "\n")
		slices.Sort(got)
		slices.Sort(view.want)
		if diff := gocmp.Diff(view.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", view.name, diff)
		}
	}
}

func TestQueriesRefuseWhatTheyCannotBound(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	f := query.Filter{SinceMicros: 0, UntilMicros: 1_000_000}
	if _, err := store.TimeSeries(t.Context(), query.TimeSeries{Filter: f, IntervalMicros: 10}); err == nil {
		t.Error("100,000 buckets are not refused")
	}
	for _, level := range []float64{0, 1, -1, math.NaN(), math.Inf(1)} {
		if _, err := store.Latency(t.Context(), query.Latency{Filter: f, Quantiles: []float64{level}, LimitRows: 1}); err == nil {
			t.Errorf("quantile %v is not refused", level)
		}
	}
}
