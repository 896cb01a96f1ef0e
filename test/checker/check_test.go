package checker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// world is a small history with the log and the tables that it should have led
// to, for tests to spoil.
type world struct {
	history *History
	log     *Log
	tables  *Tables
	ids     []string
}

const seconds = time.Second

// newWorld has three events: one with updates, one deleted, one by an alias.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{history: NewHistory(), log: &Log{}}
	at := time.UnixMicro(1_790_000_000_000_000)
	for i := range 2 {
		w.ids = append(w.ids, event.MakeID(at.UnixMicro(), event.ConversationHash("c"), uint64(i)).String())
	}
	w.ids = append(w.ids, "alias/1")
	for i, step := range []struct {
		event int
		op    event.Op
		set   event.Fields
	}{
		{0, event.OpCreate, allFields},
		{1, event.OpUpdate, event.CoreFields}, // refused: there is none yet
		{1, event.OpCreate, contentFields | 1<<event.FieldEventName},
		{0, event.OpUpdate, contentFields},
		{2, event.OpCreate, allFields},
		{0, event.OpUpdate, 1 << event.FieldLatency},
		{1, event.OpDelete, 0},
		{0, event.OpCreate, allFields}, // loses
		{2, event.OpUpdate, embeddingFields},
	} {
		sent := &Write{
			Number: w.history.number(), Op: step.op, ID: w.ids[step.event], Set: step.set, Outcome: Applied,
			Receipt: event.Receipt{Generation: 1, Offset: int64(i)},
			Call:    time.Duration(i) * seconds, Return: time.Duration(i)*seconds + seconds/2,
		}
		if step.op == event.OpCreate {
			sent.ConversationID = "c"
		}
		if i == 1 {
			sent.Outcome = NotApplied
		}
		if i == 7 {
			sent.NoEffect = event.CodeIDTaken
		}
		w.history.add([]*Write{sent}, nil)
		w.log.Records = append(w.log.Records, recordOf(t, sent, at, int64(i)))
	}
	w.log.Letters = []record.DeadLetter{{Record: w.log.Records[1], Reason: event.CodeUnknownEvent}}
	w.tables = fold(w.log.Records, nil).tables
	for i, seen := range []map[event.Field]int{
		{event.FieldLatency: 1, event.FieldInput: 1, event.FieldOutput: 1},
		{event.FieldLatency: 6, event.FieldInput: 4, event.FieldOutput: 4},
	} {
		r := &Read{ID: w.ids[0], Found: true, Seen: seen, Call: 600 * time.Millisecond, Return: 700 * time.Millisecond}
		for _, field := range []event.Field{event.FieldMetadata, event.FieldError, event.FieldInputEmbeddings, event.FieldOutputEmbeddings} {
			seen[field] = 1
		}
		if i == 1 {
			r.After = event.Receipt{Generation: 1, Offset: 5}
			r.Call, r.Return = 6*seconds, 7*seconds
		}
		w.history.add(nil, r)
	}
	return w
}

// recordOf is the write as the log has it.
func recordOf(t *testing.T, w *Write, at time.Time, offset int64) record.Record {
	t.Helper()
	e := w.event()
	ref, err := event.ParseRef(w.ID, at)
	if err != nil {
		t.Fatal(err)
	}
	e.ID, e.Alias = ref.ID, ref.Alias
	if e.Alias != "" {
		if w.Op == event.OpCreate {
			e.ID = event.MakeID(at.UnixMicro(), event.ConversationHash(w.ConversationID), uint64(w.Number)).AsInternal()
		}
	}
	return record.Record{
		Generation: 1, Offset: offset, Key: []byte(w.ID), Value: record.AppendWrite(nil, &e),
		Version: record.FormatVersion, AppendTime: at,
	}
}

// readBetween adds a read of event 0 that sees its contents after, and its core
// before, a create that lost.
func readBetween(t *testing.T, w *world, call time.Duration) {
	t.Helper()
	w.history.writes[5].Outcome = Acknowledged
	update := &Write{
		Number: w.history.number(), Op: event.OpUpdate, ID: w.ids[0], Set: contentFields, Outcome: Applied,
		Receipt: event.Receipt{Generation: 1, Offset: 9}, Call: 7300 * time.Millisecond, Return: 7500 * time.Millisecond,
	}
	w.history.add([]*Write{update}, nil)
	w.log.Records = append(w.log.Records, recordOf(t, update, w.log.Records[0].AppendTime, 9))
	w.tables = fold(w.log.Records, nil).tables
	r := w.history.reads[1]
	r.After = event.Receipt{}
	r.Call, r.Return = call, call+seconds
	r.Seen[event.FieldLatency], r.Seen[event.FieldInput], r.Seen[event.FieldOutput] = 1, update.Number, update.Number
}

// TestCheckNotices spoils a world in one way at a time.
func TestCheckNotices(t *testing.T) {
	id := func(w *world, i int) event.ID {
		ref, err := event.ParseRef(w.ids[i], time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return ref.ID
	}
	core := func(w *world, i int, change func(*event.Core)) {
		c := w.tables.Cores[id(w, i)]
		change(&c)
		w.tables.Cores[c.ID] = c
	}
	for name, test := range map[string]struct {
		spoil func(w *world)
		want  string // empty: nothing is wrong
	}{
		"nothing": {func(*world) {}, ""},
		"a row of a create that lost": {func(w *world) {
			k := wideKey{id(w, 1), event.FieldInput}
			row := w.tables.Contents[k]
			row.Version, row.Deleted = event.MakeVersion(event.ClassCreate, event.MakePosition(1, 3)), false
			w.tables.Cores[k.id] = event.Core{ID: k.id, Created: event.MakePosition(1, 2), Version: event.MakeVersion(event.ClassCreate, event.MakePosition(1, 2))}
			if len((&Tables{Cores: w.tables.Cores, Contents: map[wideKey]event.ContentRow{k: row}}).counting().Contents) != 0 {
				t.Error("it counts")
			}
			w.tables = fold(w.log.Records, nil).tables
		}, ""},
		"a read between the tables, across a create that lost": {func(w *world) { readBetween(t, w, 7400*time.Millisecond) }, ""},
		"the same when the create was applied":                 {func(w *world) { readBetween(t, w, 8*seconds) }, "no order of the operations"},
		"a lost update":                                        {func(w *world) { core(w, 0, func(c *event.Core) { c.Latency = 1 }) }, "table events"},
		"another version":                                      {func(w *world) { core(w, 0, func(c *event.Core) { c.Version++ }) }, "table events"},
		"an event that came back":                              {func(w *world) { core(w, 1, func(c *event.Core) { c.Deleted = false }) }, "table events"},
		"a lost event":                                         {func(w *world) { delete(w.tables.Cores, id(w, 0)) }, "a row is missing"},
		"an event too many":                                    {func(w *world) { w.tables.Cores[event.ID{1}] = event.Core{} }, "a row too many"},
		"other contents": {func(w *world) {
			k := wideKey{id(w, 0), event.FieldOutput}
			row := w.tables.Contents[k]
			row.Content.Data = []byte("other")
			w.tables.Contents[k] = row
		}, "table event_contents"},
		"contents of a deleted event": {func(w *world) {
			k := wideKey{id(w, 1), event.FieldInput}
			row := w.tables.Contents[k]
			row.Deleted = false
			w.tables.Contents[k] = row
		}, "table event_contents"},
		"another embedding": {func(w *world) {
			k := wideKey{id(w, 0), event.FieldInputEmbeddings}
			row := w.tables.Embeddings[k]
			row.Vector = event.VectorOf(1)
			w.tables.Embeddings[k] = row
		}, "table event_embeddings"},
		"a lost alias": {func(w *world) { delete(w.tables.Aliases, "alias/1") }, "table event_aliases"},
		"an acknowledged write that is not there": {func(w *world) {
			w.history.writes[8].Receipt.Offset = 100
		}, "acknowledged as 1.0.100, is not there"},
		"an acknowledged delete that is not there": {func(w *world) {
			w.log.Records = append(w.log.Records[:6:6], w.log.Records[7:]...)
			w.tables = fold(w.log.Records, nil).tables
		}, "acknowledged as 1.0.6, is not there"},
		"a write that is there twice": {func(w *world) {
			again := w.log.Records[3]
			again.Offset = 9
			w.log.Records = append(w.log.Records, again)
			w.tables = fold(w.log.Records, nil).tables
		}, "and again at 1.0.9"},
		"a write that nobody sent": {func(w *world) {
			w.history.writes = w.history.writes[:8]
		}, "which nobody sent"},
		"a delete that nobody sent": {func(w *world) {
			w.history.writes[6] = &Write{Number: 7, Op: event.OpUpdate, ID: w.ids[1], Outcome: Unknown, Set: event.CoreFields}
		}, "once more than anybody asked for"},
		"a write that was refused": {func(w *world) { w.history.writes[3].Outcome = Refused }, "it was refused"},
		"a write that is another than was sent": {func(w *world) {
			w.history.writes[3].Set = event.CoreFields
		}, "is not write 4"},
		"writes of an event in two partitions": {func(w *world) {
			w.log.Records[8].Partition = 1
			w.history.writes[8].Receipt.Partition = 1
		}, "are in partitions 0 and 1"},
		"two writes at one place": {func(w *world) { w.history.writes[5].Receipt.Offset = 3 }, "have the same receipt"},
		"a record refused that should not have been": {func(w *world) {
			w.log.Letters = append(w.log.Letters, record.DeadLetter{Record: w.log.Records[3]})
		}, "should have been applied"},
		"a refused record that is nowhere":          {func(w *world) { w.log.Letters = nil }, "was to be refused"},
		"a create said to have made what was there": {func(w *world) { w.history.writes[7].NoEffect = "" }, `answered with "", want "id_taken"`},
		"an update said to have come too late": {func(w *world) {
			w.history.writes[3].NoEffect = event.CodeEventDeleted
		}, `answered with "event_deleted", want ""`},
		"a read of what came too early": {func(w *world) {
			w.history.reads[1].Seen[event.FieldLatency] = 1
		}, "has the latency of write 1 after 1.0.5"},
		"a read that did not find": {func(w *world) { w.history.reads[1].Found = false }, "was not there"},
		"a read of the future": {func(w *world) {
			w.history.reads[0].Seen[event.FieldLatency] = 6
		}, "no order of the operations"},
		"a read of the past": {func(w *world) {
			w.history.reads[1].After = event.Receipt{}
			w.history.reads[1].Seen[event.FieldLatency] = 1
		}, "no order of the operations"},
		"an update applied to nothing": {func(w *world) {
			w.history.writes[1].Outcome = Applied
			w.history.add(nil, &Read{ID: w.ids[1], Call: 0, Return: seconds})
			w.history.writes[1].Receipt = event.Receipt{Generation: 1, Offset: 1}
		}, "no order of the operations"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.spoil(w)
			err := w.history.Check(w.log, w.tables)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("%v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("%v, want it to say %q", err, test.want)
			}
		})
	}
}

// TestNumbers reads the number of a write back from each of its values.
func TestNumbers(t *testing.T) {
	for n := 1; n <= 2; n++ {
		for field := event.FieldMetadata; field <= event.FieldOutputEmbeddings; field++ {
			w := &Write{Number: n * 1001, Op: event.OpUpdate, Set: 1 << field}
			e := w.event()
			if got, err := recordNumber(&e); err != nil || got != w.Number {
				t.Errorf("%s: the record is of write %d, error %v, want %d", field, got, err, w.Number)
			}
			item := string(w.item(false))
			value := strings.TrimSuffix(strings.TrimPrefix(item, fmt.Sprintf(`{"%s":`, field)), "}")
			if strings.HasSuffix(field.String(), "embeddings") && n%2 == 0 {
				continue // sent as base64, shown as numbers
			}
			if got, err := numberOf(field, []byte(value)); err != nil || got != w.Number {
				t.Errorf("%s: %s shows write %d, error %v, want %d", field, value, got, err, w.Number)
			}
		}
	}
}
