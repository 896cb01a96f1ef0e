package consumer_test

import (
	"bytes"
	stdcmp "cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/consumer"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
	"github.com/sluicehq/sluice/internal/record"
)

func TestMain(m *testing.M) { os.Exit(enginetest.Main(m)) }

// TestHistories applies random histories of creates, updates and deletes to
// the real database, through two consumers that are handed partitions to and
// fro at random, with random batchings and replays, and compares what readers
// then see with a model in plain Go; then replays the whole log and compares
// again. SLUICE_SEED repeats one run, SLUICE_HISTORIES is how many there are in
// each.
func TestHistories(t *testing.T) {
	eachSeed(t, 10, 500, func(t *testing.T, seed uint64, histories int) { // 5,000 in all
		testHistories(t, seed, histories, false)
	})
}

// TestHistoriesWithRefusals is TestHistories on tables that refuse some creates
// for their data, and take them when the log is replayed at last. What was
// refused stays refused, and leaves nothing that a reader or a later write sees.
func TestHistoriesWithRefusals(t *testing.T) {
	eachSeed(t, 4, 120, func(t *testing.T, seed uint64, histories int) {
		testHistories(t, seed, histories, true)
	})
}

func eachSeed(t *testing.T, runs, histories int, test func(t *testing.T, seed uint64, histories int)) {
	if s := os.Getenv("SLUICE_HISTORIES"); s != "" {
		var err error
		if histories, err = strconv.Atoi(s); err != nil || histories < 1 {
			t.Fatalf("SLUICE_HISTORIES: %q is not a number from 1 on", s)
		}
	}
	seeds := make([]uint64, runs)
	for i := range seeds {
		seeds[i] = uint64(i + 1)
	}
	if s := os.Getenv("SLUICE_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("SLUICE_SEED: %v", err)
		}
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel() // they mostly wait for the database's fsyncs
			test(t, seed, histories)
		})
	}
}

// refusedEvery: the table of core rows refuses the create at one of so many
// offsets, and what later writes make of it. It must be a power of two.
const refusedEvery = 4

func isRefused(offset int64) bool { return offset%refusedEvery == 1 }

func testHistories(t *testing.T, seed uint64, histories int, refusals bool) {
	rng := rand.New(rand.NewPCG(seed, 0))
	server := enginetest.Server(t)
	database := server.Database(t)
	store := openStore(t, server.Addr, server.User, server.Password, database)
	log := generate(rng, histories)
	want := log.model(refusals)
	if refusals {
		server.Query(t, fmt.Sprintf("ALTER TABLE %s.events ADD CONSTRAINT refuses CHECK deleted OR bitAnd(created, %d) != 1", database, refusedEvery-1))
	}

	group := newGroup(log)
	// Some runs are of many small batches, some of few large ones.
	pollMax := []int{60, 300, 3000}[rng.IntN(3)]
	var members []*member
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	for range 2 {
		cfg := consumer.DefaultConfig()
		cfg.FlushDelayQuiet, cfg.FlushDelayBusy = time.Millisecond, time.Millisecond
		cfg.BatchRecordsMax = 1 + rng.IntN(2*pollMax)
		if rng.IntN(2) == 0 {
			cfg.RecentBytesMax = 20_000 // forgets nearly all
		}
		m := &member{group: group, pollMax: pollMax, rng: rand.New(rand.NewPCG(seed, uint64(len(members)+1)))}
		c, err := consumer.New(cfg, m, store, group, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		m.consumer = c
		members = append(members, m)
		running.Go(func() {
			if err := c.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	group.deal(members)
	const handOvers = 24
	for i := range handOvers {
		group.handOver(ctx, rng, members, float64(i+1)/handOvers)
	}
	group.waitApplied(t)
	compare(t, store, want, "after the hand-overs")
	if !refusals {
		checkEffects(t, store, log, want, "after the hand-overs")
	}
	got := want.without(group.reasons())
	if diff := cmp.Diff(want.refused, got); diff != "" {
		t.Errorf("refused records (-want +got):\n%s", diff)
		log.dump(t, want.refused, got)
	}
	if refusals {
		server.Query(t, "ALTER TABLE "+database+".events DROP CONSTRAINT refuses")
	}

	for p := range log.partitions {
		group.rewind(ctx, int32(p), members[rng.IntN(2)], 0)
	}
	group.waitApplied(t)
	compare(t, store, want, "after a full replay")
	if !refusals {
		checkEffects(t, store, log, want, "after a full replay")
	}
	if diff := cmp.Diff(want.refused, want.without(group.reasons())); diff != "" {
		t.Errorf("refused records after a full replay (-want +got):\n%s", diff)
	}
	for _, table := range []string{"event_contents", "event_embeddings"} {
		left := server.Query(t, "SELECT count() FROM "+database+"."+table+` FINAL WHERE deleted = 0
			AND id IN (SELECT id FROM `+database+".events FINAL WHERE deleted = 1)")
		if left = strings.TrimSpace(left); left != "0" {
			t.Errorf("%s rows of deleted events in %s", left, table)
		}
	}
}

func openStore(t *testing.T, addr, user, password, database string) *clickhouse.Store {
	t.Helper()
	store, err := clickhouse.New(clickhouse.Config{
		Addr: addr, User: user, Password: password, Database: database,
	}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return store
}

const (
	partitions    = 4
	conversations = 8
	// start is the time of the first event, in Unix microseconds; events lie
	// on both sides of the turn of a month, so that batches span partitions.
	start int64 = 1_793_491_200_000_000 - 3600_000_000
	// span is how long the log goes on, in microseconds.
	span int64 = 7200_000_000
)

// history is a log of many events' writes, interleaved.
type history struct {
	partitions [partitions][]record.Record
	writes     [partitions][]event.Write
	refs       []event.Ref
}

// generate makes a log of n events' histories. Each is of one id: minted by
// the server, minted by a client, or an alias. Its writes come in any order and
// repetition, but that nothing precedes the one create of a server's id. They
// come soon after the event's time, or anywhere in the log.
func generate(rng *rand.Rand, n int) *history {
	type turn struct {
		subject int
		at      float64
	}
	log := &history{}
	var turns []turn
	events := make([]*subject, n)
	spread := []float64{float64(n) / 50, float64(n)}[rng.IntN(2)]
	for i := range events {
		events[i] = newSubject(rng, i, start+span*int64(i)/int64(n))
		log.refs = append(log.refs, events[i].ref)
		for range 1 + rng.IntN(9) {
			turns = append(turns, turn{i, float64(i) + spread*rng.Float64()})
		}
	}
	slices.SortFunc(turns, func(a, b turn) int { return stdcmp.Compare(a.at, b.at) })
	for _, turn := range turns {
		now := start + int64(float64(span)*min(1, turn.at/float64(n)))
		log.add(events[turn.subject].next(rng), now)
		if rng.IntN(40) == 0 { // a run of writes of one event, for one batch
			for range rng.IntN(4) {
				log.add(events[turn.subject].next(rng), now)
			}
		}
	}
	return log
}

func (h *history) add(w event.Write, micros int64) {
	key := w.Ref().String()
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(key))
	p := hash.Sum32() % partitions
	value := record.AppendWrite(nil, &w)
	h.partitions[p] = append(h.partitions[p], record.Record{
		Generation: 1, Partition: int32(p), Offset: int64(len(h.partitions[p])),
		Key: []byte(key), Value: value, Version: record.FormatVersionOf(&w), AppendTime: time.UnixMicro(micros),
	})
	h.writes[p] = append(h.writes[p], w)
}

// subject is one event to be, and how it is named.
type subject struct {
	ref            event.Ref
	conversationID string
	// micros is about the event's time.
	micros  int64
	fresh   bool
	creates int
}

func newSubject(rng *rand.Rand, i int, micros int64) *subject {
	s := &subject{micros: micros, conversationID: fmt.Sprintf("conversation-%d", rng.IntN(conversations))}
	switch rng.IntN(3) {
	case 0:
		s.fresh = true
		s.ref.ID = s.mint(rng, s.conversationID)
	case 1:
		s.ref.ID = s.mint(rng, s.conversationID)
	default:
		s.ref.Alias = fmt.Sprintf("alias/%d", i)
	}
	return s
}

// mint makes an id within two minutes of the event's time.
func (s *subject) mint(rng *rand.Rand, conversationID string) event.ID {
	return event.NewID(s.micros+rng.Int64N(120_000_000), conversationID)
}

func (s *subject) next(rng *rand.Rand) event.Write {
	w := event.Write{ID: s.ref.ID, Alias: s.ref.Alias}
	switch n := rng.IntN(100); {
	case s.fresh && s.creates == 0, n < 32:
		w.Op = event.OpCreate
		w.ConversationID = s.conversationID
		w.Fresh = s.fresh && s.creates == 0
		s.creates++
		if w.Alias != "" {
			// A second create by alias may be of another conversation and time.
			w.ConversationID = fmt.Sprintf("conversation-%d", rng.IntN(conversations))
			w.ID = s.mint(rng, w.ConversationID).AsInternal()
		}
		w.Set = w.Set.With(event.FieldEventName)
		w.EventName = "event_" + string(rune('a'+rng.IntN(3)))
		setFields(rng, &w, false)
	case n < 88:
		w.Op = event.OpUpdate
		for w.Set == 0 {
			setFields(rng, &w, true)
			if rng.IntN(4) == 0 {
				w.Set = w.Set.With(event.FieldEventName)
				w.EventName = "event_" + string(rune('a'+rng.IntN(3)))
			}
		}
	default:
		w.Op = event.OpDelete
	}
	return w
}

// setFields gives the write a random choice of the fields that can be null.
func setFields(rng *rand.Rand, w *event.Write, nulls bool) {
	// set says whether to bring the field, and with a value or as null.
	set := func(f event.Field) (value bool) {
		if rng.IntN(3) > 0 {
			return false
		}
		w.Set = w.Set.With(f)
		if nulls && rng.IntN(4) == 0 {
			w.Null = w.Null.With(f)
			return false
		}
		return true
	}
	content := func(f event.Field) event.Content {
		if !set(f) {
			return event.Content{}
		}
		if rng.IntN(2) == 0 {
			return event.Content{Kind: event.KindJSON, Data: fmt.Appendf(nil, `[{"n":%d}]`, rng.IntN(1000))}
		}
		return event.Content{Kind: event.KindString, Data: fmt.Appendf(nil, "text %d", rng.IntN(1000))}
	}
	vector := func(f event.Field) event.Vector {
		if !set(f) {
			return nil
		}
		v := make([]float32, 1+rng.IntN(5))
		for i := range v {
			v[i] = rng.Float32()*2 - 1
		}
		return event.VectorOf(v...)
	}
	if set(event.FieldMetadata) {
		w.Metadata = fmt.Appendf(nil, `{"plan":"p%d"}`, rng.IntN(100))
		if w.MergeMetadata = w.Op == event.OpUpdate && rng.IntN(3) > 0; w.MergeMetadata {
			// Each key changes often, and is taken away at times.
			value := []string{"null", strconv.Itoa(rng.IntN(100)), fmt.Sprintf(`{"n%d":%d,"x":null}`, rng.IntN(3), rng.IntN(100))}[rng.IntN(3)]
			w.Metadata = fmt.Appendf(nil, `{"k%d":%s}`, rng.IntN(4), value)
		}
	}
	if set(event.FieldError) {
		w.Error = fmt.Sprintf("error %d", rng.IntN(100))
	}
	if set(event.FieldLatency) {
		w.Latency = float64(rng.IntN(100_000)) / 8
	}
	w.Input, w.Output = content(event.FieldInput), content(event.FieldOutput)
	w.InputEmbeddings, w.OutputEmbeddings = vector(event.FieldInputEmbeddings), vector(event.FieldOutputEmbeddings)
}

// dump logs the writes of every event of which the refusals differ.
func (h *history) dump(t *testing.T, want, got map[place]event.Code) {
	t.Helper()
	for p := range h.writes {
		differ := make(map[string]bool)
		for offset, w := range h.writes[p] {
			at := place{int32(p), int64(offset)}
			differ[w.Ref().String()] = differ[w.Ref().String()] || want[at] != got[at]
		}
		for offset, w := range h.writes[p] {
			if at := (place{int32(p), int64(offset)}); differ[w.Ref().String()] {
				t.Logf("%s: partition %d offset %d: %s, fields %b, want %q, got %q", w.Ref(), p, offset, w.Op, w.Set, want[at], got[at])
			}
		}
	}
}

// place is where a record is.
type place struct {
	Partition int32
	Offset    int64
}

// outcome is what a log must lead to.
type outcome struct {
	live    map[string]event.Event
	dead    []event.Ref
	refused map[place]event.Code
	// either may be refused or not, by what the consumer holds and how the log is
	// cut into batches: creates without effect, and writes that a later delete of
	// the same batch makes irrelevant.
	either map[place]bool
}

// without returns the reasons of the records that must be refused or not.
func (o *outcome) without(reasons map[place]event.Code) map[place]event.Code {
	maps.DeleteFunc(reasons, func(at place, _ event.Code) bool { return o.either[at] })
	return reasons
}

// model folds the log by the words of the design, one write after the other.
func (h *history) model(refusals bool) outcome {
	type entry struct {
		event   *event.Event
		deleted bool
		// refused are the first create that the tables refuse and what is refused
		// after it: none of that where the batch has the event deleted.
		refused []place
	}
	entries := make(map[string]*entry)
	out := outcome{live: make(map[string]event.Event), refused: make(map[place]event.Code), either: make(map[place]bool)}
	for p, writes := range h.writes {
		for offset, w := range writes {
			key := w.Ref().String()
			e := entries[key]
			if e == nil {
				e = &entry{}
				entries[key] = e
			}
			at := place{int32(p), int64(offset)}
			refuse := func(code event.Code) {
				out.refused[at] = code
				if code == event.CodeRejectedByStore || len(e.refused) > 0 {
					e.refused = append(e.refused, at)
				}
			}
			switch {
			case w.Op == event.OpCreate && refusals && isRefused(int64(offset)):
				if e.deleted || e.event != nil {
					out.either[at] = true
				} else {
					refuse(event.CodeRejectedByStore)
				}
			case w.Op == event.OpDelete:
				for _, at := range e.refused {
					delete(out.refused, at)
					out.either[at] = true
				}
				e.refused = nil
				e.deleted, e.event = true, nil
			case e.deleted:
			case w.Op == event.OpCreate && e.event == nil:
				e.event = &event.Event{ID: key, ConversationID: w.ConversationID, Micros: w.ID.Micros()}
				merge(e.event, &w)
			case w.Op == event.OpUpdate && e.event == nil:
				refuse(event.CodeUnknownEvent)
			case w.Op == event.OpUpdate:
				merge(e.event, &w)
			}
		}
	}
	for key, e := range entries {
		if e.event != nil {
			out.live[key] = *e.event
		}
	}
	for _, ref := range h.refs {
		if _, ok := out.live[ref.String()]; !ok {
			out.dead = append(out.dead, ref)
		}
	}
	return out
}

func merge(e *event.Event, w *event.Write) {
	for f := event.FieldEventName; f <= event.FieldOutputEmbeddings; f++ {
		if !w.Set.Has(f) {
			continue
		}
		before := e.Metadata
		switch f {
		case event.FieldEventName:
			e.EventName = w.EventName
		case event.FieldMetadata:
			e.Metadata = string(w.Metadata)
			if w.MergeMetadata {
				e.Metadata = patched(before, w.Metadata)
			}
		case event.FieldError:
			e.Error = w.Error
		case event.FieldLatency:
			e.Latency = nil
			if !w.Null.Has(f) {
				latency := w.Latency
				e.Latency = &latency
			}
		case event.FieldInput:
			e.Input = w.Input
		case event.FieldOutput:
			e.Output = w.Output
		case event.FieldInputEmbeddings:
			e.InputEmbeddings = w.InputEmbeddings
		case event.FieldOutputEmbeddings:
			e.OutputEmbeddings = w.OutputEmbeddings
		}
	}
}

// patched is RFC 7396 as the RFC has it, on maps, with the members of the result
// in the order of their names.
func patched(metadata string, patch []byte) string {
	var target, changes any
	if metadata != "" && json.Unmarshal([]byte(metadata), &target) != nil || json.Unmarshal(patch, &changes) != nil {
		panic("BUG: the metadata is no JSON")
	}
	var apply func(target, changes any) any
	apply = func(target, changes any) any {
		object, ok := changes.(map[string]any)
		if !ok {
			return changes
		}
		result, ok := target.(map[string]any)
		if !ok {
			result = make(map[string]any)
		}
		for name, value := range object {
			if value == nil {
				delete(result, name)
			} else {
				result[name] = apply(result[name], value)
			}
		}
		return result
	}
	text, err := json.Marshal(apply(target, changes))
	if err != nil {
		panic(err)
	}
	return string(text)
}

// sortedMetadata is the metadata with its members in the order of their names.
func sortedMetadata(metadata string) string {
	if metadata == "" {
		return ""
	}
	return patched(metadata, []byte("{}"))
}

// compare reads every event back by its conversation, and some by id.
func compare(t *testing.T, store *clickhouse.Store, want outcome, when string) {
	t.Helper()
	got := make(map[string]event.Event)
	for i := range conversations {
		q := query.List{Filter: query.OfConversation(fmt.Sprintf("conversation-%d", i)), LimitEvents: 300, WithEmbeddings: true}
		for {
			page, err := store.List(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range page.Events {
				if _, ok := got[e.ID]; ok {
					t.Errorf("%s: event %s is there twice", when, e.ID)
				}
				e.Metadata = sortedMetadata(e.Metadata)
				got[e.ID] = e
			}
			if q.After = page.Next; q.After == nil {
				break
			}
		}
	}
	opts := cmp.Options{
		cmp.Transformer("content", func(c event.Content) string { return fmt.Sprintf("%d %s", c.Kind, c.Data) }),
		cmp.Comparer(func(a, b event.Vector) bool { return bytes.Equal(a, b) }),
	}
	if diff := cmp.Diff(want.live, got, opts); diff != "" {
		t.Fatalf("%s: events (-want +got):\n%.8000s", when, diff)
	}
	sample := slices.Clone(want.dead)
	for key := range maps.Keys(want.live) {
		if ref, err := event.ParseRef(key, time.UnixMicro(start).Add(24*time.Hour)); err != nil {
			t.Fatal(err)
		} else if sample = append(sample, ref); len(sample) > len(want.dead)+20 {
			break
		}
	}
	for _, ref := range sample[max(0, len(sample)-60):] {
		e, err := store.Event(t.Context(), ref, 0)
		if err != nil {
			t.Fatal(err)
		}
		if e != nil {
			e.Metadata = sortedMetadata(e.Metadata)
		}
		if live, ok := want.live[ref.String()]; !ok && e != nil {
			t.Errorf("%s: event %s is there, should not be", when, ref)
		} else if ok && (e == nil || !cmp.Equal(live, *e, opts)) {
			t.Errorf("%s: event %s: got %+v, want %+v", when, ref, e, live)
		}
	}
}

// checkEffects compares what the tables tell of each write that was not refused
// with what the log came to. The tables are those of the log's end, in which of a
// write less is left than for somebody who asks at once.
func checkEffects(t *testing.T, store *clickhouse.Store, log *history, want outcome, when string) {
	t.Helper()
	histories, err := store.Histories(t.Context(), log.refs)
	if err != nil {
		t.Fatal(err)
	}
	type written struct {
		write  *event.Write
		at     event.Position
		effect event.Effect
	}
	events := make(map[event.Ref][]written)
	for p := range log.writes {
		for offset := range log.writes[p] {
			w := &log.writes[p][offset]
			if _, refused := want.refused[place{int32(p), int64(offset)}]; !refused {
				events[w.Ref()] = append(events[w.Ref()], written{write: w, at: event.MakePosition(1, int64(offset))})
			}
		}
	}
	counts := make(map[event.Effect]int)
	for ref, writes := range events {
		var before, beside event.History
		for i, w := range writes {
			switch {
			case w.write.Op == event.OpDelete:
				writes[i].effect = event.EffectApplied
			case before.Deleted != 0:
				writes[i].effect = event.EffectDeleted
			case w.write.Op == event.OpCreate && before.Created != 0:
				writes[i].effect = event.EffectTaken
			default:
				writes[i].effect = event.EffectApplied
			}
			before.Add(w.write.Op, w.at)
			beside.Add(w.write.Op, w.at)
		}
		for _, w := range writes {
			counts[w.effect]++
			h := histories[ref]
			effect := func(notRefused bool, beside event.History) event.Effect {
				return h.Effect(w.write.Op, w.at, notRefused, beside)
			}
			if got := effect(true, beside); got != w.effect {
				t.Fatalf("%s: %s of %s at %d: effect %d, want %d; %+v beside %+v", when, w.write.Op, ref, w.at, got, w.effect, h, beside)
			}
			// A delete after the write can hide one before it, and creates.
			covered := h.Deleted > w.at
			if got := effect(true, event.History{}); got != w.effect &&
				(!covered || got != event.EffectApplied && got != event.EffectTaken) {
				t.Fatalf("%s: %s of %s at %d alone: effect %d, want %d; %+v", when, w.write.Op, ref, w.at, got, w.effect, h)
			}
			// Who does not know whether the write was refused never says that it was applied
			// where it was not.
			if got := effect(false, event.History{}); got != w.effect && got != event.EffectUnknown &&
				(!covered || got != event.EffectTaken) {
				t.Fatalf("%s: %s of %s at %d, of unknown refusals: effect %d, want %d; %+v", when, w.write.Op, ref, w.at, got, w.effect, h)
			}
		}
	}
	for _, e := range []event.Effect{event.EffectApplied, event.EffectTaken, event.EffectDeleted} {
		if counts[e] == 0 {
			t.Errorf("no write has effect %d, so that nothing was tested", e)
		}
	}
}

// group is the log with the members of a consumer group on it. It keeps
// committed offsets and gives partitions to members, as a broker would.
type group struct {
	log *history

	mu      sync.Mutex
	changed chan struct{} // closed when a member may find records
	owners  [partitions]*member
	epochs  [partitions]int64
	// ends are how far the log may be read as yet.
	ends      [partitions]int64
	positions [partitions]int64
	committed [partitions]int64
	refused   map[place]event.Code
}

func newGroup(log *history) *group {
	return &group{log: log, changed: make(chan struct{}), refused: make(map[place]event.Code)}
}

// Send takes dead letters.
func (g *group) Send(_ context.Context, letters []record.DeadLetter) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range letters {
		at := place{l.Record.Partition, l.Record.Offset}
		if !bytes.Equal(l.Record.Value, g.log.partitions[at.Partition][at.Offset].Value) {
			return errors.New("dead letter carries another record")
		}
		g.refused[at] = l.Reason
	}
	return nil
}

func (g *group) reasons() map[place]event.Code {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.refused)
}

func (g *group) deal(members []*member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p := range g.owners {
		g.assign(p, members[p%len(members)], 0)
	}
}

// assign gives the partition to m, from the offset on. g.mu is held.
func (g *group) assign(p int, m *member, from int64) {
	g.owners[p] = m
	g.epochs[p]++
	g.positions[p], g.committed[p] = from, from
	close(g.changed)
	g.changed = make(chan struct{})
}

// handOver lets the members read on to a share of the log, and moves a random
// partition somewhere on the way: properly, or with the old owner going on for
// a while; from the committed offset, or from an earlier one.
func (g *group) handOver(ctx context.Context, rng *rand.Rand, members []*member, share float64) {
	p := rng.IntN(partitions)
	g.mu.Lock()
	target := g.ends[p]
	for i := range g.ends {
		g.ends[i] = int64(share * float64(len(g.log.partitions[i])))
	}
	target += rng.Int64N(g.ends[p] - target + 1)
	g.mu.Unlock()
	for ctx.Err() == nil {
		g.mu.Lock()
		changed, read := g.changed, g.positions[p]
		g.mu.Unlock()
		if read >= target {
			break
		}
		select {
		case <-changed:
		case <-time.After(time.Millisecond):
		}
	}
	to := members[rng.IntN(2)]
	back := int64(0)
	if rng.IntN(3) == 0 {
		back = rng.Int64N(200)
	}
	g.mu.Lock()
	from := g.owners[p]
	g.mu.Unlock()
	lost := rng.IntN(2) == 0
	if !lost {
		from.consumer.Revoked(ctx, []int32{int32(p)}, false)
	}
	g.mu.Lock()
	g.assign(p, to, max(0, g.committed[p]-back))
	g.mu.Unlock()
	if lost && from != to {
		from.consumer.Revoked(ctx, []int32{int32(p)}, true)
	}
}

// rewind gives the partition to m from an offset on.
func (g *group) rewind(ctx context.Context, p int32, m *member, from int64) {
	g.mu.Lock()
	owner := g.owners[p]
	g.mu.Unlock()
	owner.consumer.Revoked(ctx, []int32{p}, false)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.assign(int(p), m, from)
}

func (g *group) waitApplied(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		g.mu.Lock()
		done := true
		for p := range g.committed {
			done = done && g.committed[p] == int64(len(g.log.partitions[p]))
		}
		g.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log was not applied in time: committed %v", g.committed)
		}
		<-time.After(time.Millisecond)
	}
}

// member is one consumer's view of the group.
type member struct {
	group    *group
	consumer *consumer.Consumer
	pollMax  int
	rng      *rand.Rand
}

// Poll returns a random number of records of each partition that m owns.
func (m *member) Poll(ctx context.Context, recordsMax int) ([]record.Chunk, error) {
	g := m.group
	for {
		g.mu.Lock()
		var chunks []record.Chunk
		for p, owner := range g.owners {
			left := g.log.partitions[p][g.positions[p]:max(g.ends[p], g.positions[p])]
			if owner != m || len(left) == 0 || m.rng.IntN(4) == 0 {
				continue
			}
			n := min(len(left), recordsMax, 1+m.rng.IntN(1+m.rng.IntN(m.pollMax)))
			g.positions[p] += int64(n)
			chunks = append(chunks, record.Chunk{
				Partition: int32(p), Epoch: g.epochs[p], Records: slices.Clone(left[:n]),
			})
		}
		changed := g.changed
		g.mu.Unlock()
		if len(chunks) > 0 {
			return chunks, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		case <-time.After(time.Millisecond):
		}
	}
}

// Commit takes the offsets of the partitions that m still owns.
func (m *member) Commit(_ context.Context, next map[int32]int64) error {
	g := m.group
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, offset := range next {
		if g.owners[p] == m {
			g.committed[p] = offset
		}
	}
	return nil
}

func (m *member) Pause()  {}
func (m *member) Resume() {}
