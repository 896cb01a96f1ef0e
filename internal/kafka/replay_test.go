package kafka_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/internal/record"
)

// replayLog is a log some of whose records are refused.
type replayLog struct {
	t        *testing.T
	b        *backend
	cfg      kafka.Config
	producer *kafka.Producer
	letters  *kafka.DeadLetters
	readers  int
}

func newReplayLog(t *testing.T, b *backend) *replayLog {
	cfg := b.topics(t)
	return &replayLog{t: t, b: b, cfg: cfg, producer: kafkatest.NewProducer(t, cfg), letters: newDeadLetters(t, cfg)}
}

// changes is an update of the event that sets the fields to its name.
func changes(alias, text string, fields ...event.Field) event.Write {
	w := event.Write{Op: event.OpUpdate, Alias: alias}
	for _, f := range fields {
		w.Set = w.Set.With(f)
		switch f {
		case event.FieldError:
			w.Error = text
		case event.FieldInput:
			w.Input = event.Content{Kind: event.KindString, Data: []byte(text)}
		case event.FieldOutput:
			w.Output = event.Content{Kind: event.KindString, Data: []byte(text)}
		default:
			panic("BUG: another field")
		}
	}
	return w
}

// write puts writes into the log.
func (l *replayLog) write(writes ...event.Write) []event.Receipt {
	l.t.Helper()
	return kafkatest.Produce(l.t, l.producer, writes)
}

// refuse makes a dead letter of the write at the receipt.
func (l *replayLog) refuse(reason event.Code, w event.Write, at event.Receipt) {
	l.t.Helper()
	err := l.letters.Send(l.t.Context(), []record.DeadLetter{{
		Record: record.Record{
			Generation: at.Generation, Partition: at.Partition, Offset: at.Offset, Version: record.FormatVersion,
			Key: []byte(w.Ref().String()), Value: record.AppendWrite(nil, &w),
		},
		Reason: reason,
	}})
	if err != nil {
		l.t.Fatal(err)
	}
}

// writeRefused puts a write into the log, and makes a dead letter of it.
func (l *replayLog) writeRefused(reason event.Code, w event.Write) event.Receipt {
	l.t.Helper()
	at := l.write(w)[0]
	l.refuse(reason, w, at)
	return at
}

// records are the records of the log, of one event in order.
func (l *replayLog) records() []record.Record {
	l.t.Helper()
	ends, err := l.b.admin(l.t).ListEndOffsets(l.t.Context(), l.cfg.EventsTopic())
	if err != nil {
		l.t.Fatal(err)
	}
	n := 0
	ends.Each(func(o kadm.ListedOffset) { n += int(o.Offset) })
	cfg := l.cfg
	l.readers++
	cfg.Group = fmt.Sprint("reader ", l.readers)
	return kafkatest.Collect(l.t, kafkatest.NewConsumer(l.t, cfg, nil), n)
}

// replay replays, wants these outcomes, and returns what was written for it.
func (l *replayLog) replay(opts kafka.ReplayOptions, want map[kafka.ReplayOutcome]map[event.Code]int) []record.Record {
	l.t.Helper()
	before := make(map[event.Receipt]bool)
	for _, r := range l.records() {
		before[r.Receipt()] = true
	}
	report, err := l.letters.Replay(l.t.Context(), l.producer, opts)
	if err != nil {
		l.t.Fatal(err)
	}
	if diff := cmp.Diff(kafka.ReplayReport{Letters: want}, report); diff != "" {
		l.t.Errorf("replay with %+v: %s", opts, diff)
	}
	var written []record.Record
	for _, r := range l.records() {
		if !before[r.Receipt()] {
			written = append(written, r)
		}
	}
	if len(written) != report.Count(kafka.ReplaySent) {
		l.t.Errorf("replay with %+v wrote %d records and reports %d", opts, len(written), report.Count(kafka.ReplaySent))
	}
	return written
}

type outcomes = map[kafka.ReplayOutcome]map[event.Code]int

const (
	unknown  = event.CodeUnknownEvent
	rejected = event.CodeRejectedByStore
)

func counted(o kafka.ReplayOutcome, reason event.Code, n int) outcomes {
	return outcomes{o: {reason: n}}
}

// A letter is replayed once, whatever the next replays pick.
func testReplayOnce(t *testing.T, b *backend) {
	l := newReplayLog(t, b)
	if got := l.replay(kafka.ReplayOptions{}, nil); len(got) != 0 {
		t.Errorf("a replay of no letters wrote %d records", len(got))
	}
	var first []event.Receipt
	for i := range 6 {
		reason := unknown
		if i%2 == 1 {
			reason = rejected
		}
		first = append(first, l.writeRefused(reason, changes(fmt.Sprint("event ", i), "x", event.FieldOutput)))
	}
	if got := l.replay(kafka.ReplayOptions{Reason: rejected, LimitLetters: 2}, counted(kafka.ReplaySent, rejected, 2)); len(got) == 2 {
		for _, r := range got {
			if r.ReplayOf != first[1] && r.ReplayOf != first[3] {
				t.Errorf("%s is a replay of %s, want %s or %s", r.Receipt(), r.ReplayOf, first[1], first[3])
			}
		}
	}
	l.replay(kafka.ReplayOptions{From: 4}, outcomes{kafka.ReplaySent: {unknown: 1, rejected: 1}})
	l.replay(kafka.ReplayOptions{}, outcomes{kafka.ReplaySent: {unknown: 2}, kafka.ReplayEarlier: {unknown: 1, rejected: 3}})
	l.replay(kafka.ReplayOptions{}, outcomes{kafka.ReplayEarlier: {unknown: 3, rejected: 3}})
	l.replay(kafka.ReplayOptions{From: 1, LimitLetters: 1, Again: true}, outcomes{kafka.ReplaySent: {rejected: 1}})

	replayed, err := l.letters.Replayed(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	letters, err := l.letters.List(t.Context(), 0, 100)
	if err != nil || len(letters) != len(first) {
		t.Fatalf("%d letters, error %v; want %d, and no mark among them", len(letters), err, len(first))
	}
	for _, s := range letters {
		if !replayed(s.Seq) {
			t.Errorf("letter %d is not marked as replayed", s.Seq)
		}
	}

	// One that is refused once more is a letter of its own, and remembers what it
	// repeats.
	w := changes("event 0", "x", event.FieldOutput)
	l.refuse(unknown, w, event.Receipt{Generation: 1, Partition: first[0].Partition, Offset: 1000})
	l.replay(kafka.ReplayOptions{Reason: unknown}, outcomes{kafka.ReplaySent: {unknown: 1}, kafka.ReplayEarlier: {unknown: 3}})
	// A letter that was written twice is of one write.
	l.refuse(unknown, w, event.Receipt{Generation: 1, Partition: first[0].Partition, Offset: 1000})
	l.replay(kafka.ReplayOptions{Reason: unknown}, outcomes{kafka.ReplayCopy: {unknown: 1}, kafka.ReplayEarlier: {unknown: 4}})
	l.replay(kafka.ReplayOptions{Reason: unknown}, outcomes{kafka.ReplayEarlier: {unknown: 5}})
}

// An update that was refused does not overwrite what changed its fields since.
func testReplayHoldsBack(t *testing.T, b *backend) {
	l := newReplayLog(t, b)
	create := func(alias string) event.Write {
		return event.Write{
			Op: event.OpCreate, Alias: alias, ID: event.NewID(1_700_000_000_000_000, "c").AsInternal(), ConversationID: "c",
			Set: event.Fields(0).With(event.FieldEventName), EventName: "event_a",
		}
	}
	// What came before the update, a create, other fields and other events are
	// no reason to hold it back.
	l.write(changes("free", "older", event.FieldOutput))
	l.writeRefused(unknown, changes("free", "late", event.FieldOutput))
	l.write(create("free"), changes("free", "newer", event.FieldInput, event.FieldError), changes("other", "newer", event.FieldOutput))
	// One of two fields is.
	l.writeRefused(unknown, changes("overlaps", "late", event.FieldOutput, event.FieldError))
	l.write(create("overlaps"), changes("overlaps", "newer", event.FieldInput, event.FieldError))
	// Several refused updates of an event do not hold back each other.
	l.writeRefused(unknown, changes("several", "1", event.FieldOutput))
	l.writeRefused(unknown, changes("several", "2", event.FieldOutput))
	l.writeRefused(rejected, changes("several", "3", event.FieldOutput))
	// What was deleted is left out, be it update or create.
	l.writeRefused(unknown, changes("deleted", "late", event.FieldOutput))
	l.writeRefused(rejected, create("deleted"))
	l.write(event.NewDelete(event.Ref{Alias: "deleted"}))
	// A delete is sent.
	l.writeRefused(rejected, event.NewDelete(event.Ref{Alias: "free"}))
	// Nobody can read this.
	at := l.write(changes("unreadable", "x", event.FieldOutput))[0]
	err := l.letters.Send(t.Context(), []record.DeadLetter{
		{Record: record.Record{Generation: 1, Partition: at.Partition, Offset: at.Offset, Key: []byte("unreadable"), Value: []byte("\xff"), Version: 1}, Reason: event.CodeBadRecord},
		{Record: record.Record{Generation: 1, Partition: at.Partition, Offset: at.Offset + 1, Key: []byte("unreadable"), Version: 200}, Reason: event.CodeUnsupportedVersion},
	})
	if err != nil {
		t.Fatal(err)
	}

	held := outcomes{
		kafka.ReplaySuperseded: {unknown: 1}, kafka.ReplayUnreadable: {event.CodeBadRecord: 1, event.CodeUnsupportedVersion: 1},
	}
	want := outcomes{
		kafka.ReplaySent: {unknown: 3, rejected: 2}, kafka.ReplayDeleted: {unknown: 1, rejected: 1},
		kafka.ReplaySuperseded: held[kafka.ReplaySuperseded], kafka.ReplayUnreadable: held[kafka.ReplayUnreadable],
	}
	var several []string
	for _, r := range l.replay(kafka.ReplayOptions{}, want) {
		w, err := record.Read(&r)
		if err != nil {
			t.Error(err)
		}
		if w.Alias == "several" {
			several = append(several, string(w.Output.Data))
		}
	}
	if diff := cmp.Diff([]string{"1", "2", "3"}, several); diff != "" {
		t.Errorf("order of the updates of one event: %s", diff)
	}
	// What was held back is held back again, and is sent when asked for.
	earlier := map[event.Code]int{unknown: 4, rejected: 3}
	held[kafka.ReplayEarlier] = earlier
	l.replay(kafka.ReplayOptions{}, held)
	got := l.replay(kafka.ReplayOptions{Overwrite: true}, outcomes{
		kafka.ReplaySent: {unknown: 1}, kafka.ReplayEarlier: earlier, kafka.ReplayUnreadable: held[kafka.ReplayUnreadable],
	})
	if len(got) == 1 && string(got[0].Key) != "overlaps" {
		t.Errorf("what was held back is %q, want overlaps", got[0].Key)
	}

	// A replayed update counts as what it repeats, and no younger: one that was
	// refused after it and replayed later still wins.
	l.writeRefused(rejected, changes("turns", "1", event.FieldOutput))
	l.writeRefused(unknown, changes("turns", "2", event.FieldOutput))
	again := map[event.Code]int{unknown: 5, rejected: 3}
	sum := func(more outcomes) outcomes {
		more[kafka.ReplayUnreadable] = held[kafka.ReplayUnreadable]
		more[kafka.ReplayEarlier] = again
		return more
	}
	l.replay(kafka.ReplayOptions{Reason: rejected}, outcomes{kafka.ReplaySent: {rejected: 1}, kafka.ReplayEarlier: {rejected: 3}})
	again[rejected]++
	l.replay(kafka.ReplayOptions{}, sum(outcomes{kafka.ReplaySent: {unknown: 1}}))
	again[unknown]++
	// The other way round the older one is held back, also as the letter of a
	// replay that was refused.
	one := l.writeRefused(rejected, changes("back", "1", event.FieldOutput))
	l.writeRefused(unknown, changes("back", "2", event.FieldOutput))
	l.replay(kafka.ReplayOptions{Reason: unknown}, outcomes{kafka.ReplaySent: {unknown: 1}, kafka.ReplayEarlier: {unknown: again[unknown]}})
	again[unknown]++
	l.replay(kafka.ReplayOptions{}, sum(outcomes{kafka.ReplaySuperseded: {rejected: 1}}))
	repeated := changes("back", "1", event.FieldOutput)
	err = l.letters.Send(t.Context(), []record.DeadLetter{{Reason: rejected, Record: record.Record{
		Generation: 1, Partition: one.Partition, Offset: 1 << 30, Version: record.FormatVersion, ReplayOf: one,
		Key: []byte("back"), Value: record.AppendWrite(nil, &repeated),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	l.replay(kafka.ReplayOptions{}, sum(outcomes{kafka.ReplaySuperseded: {rejected: 2}}))
}

// Where the log does not reach back to an update, nobody knows what came after.
func testReplayUncertain(t *testing.T, b *backend) {
	l := newReplayLog(t, b)
	old := changes("old", "late", event.FieldOutput)
	at := l.writeRefused(unknown, old)
	create := event.Write{
		Op: event.OpCreate, Alias: "created", ID: event.NewID(1_700_000_000_000_000, "c").AsInternal(), ConversationID: "c",
		Set: event.Fields(0).With(event.FieldEventName), EventName: "event_a",
	}
	l.writeRefused(rejected, create)
	for range 3 {
		l.write(changes("old", "newer", event.FieldInput), changes("created", "newer", event.FieldInput))
	}
	// The update is gone, and the record after it.
	gone := kadm.Offsets{}
	gone.AddOffset(l.cfg.EventsTopic(), at.Partition, at.Offset+2, -1)
	deleted, err := b.admin(t).DeleteRecords(t.Context(), gone)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	report, err := l.letters.Replay(t.Context(), l.producer, kafka.ReplayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := outcomes{kafka.ReplayUncertain: {unknown: 1}, kafka.ReplaySent: {rejected: 1}}
	if diff := cmp.Diff(kafka.ReplayReport{Letters: want}, report); diff != "" {
		t.Error(diff)
	}
	report, err = l.letters.Replay(t.Context(), l.producer, kafka.ReplayOptions{Overwrite: true})
	if err != nil {
		t.Fatal(err)
	}
	want = outcomes{kafka.ReplaySent: {unknown: 1}, kafka.ReplayEarlier: {rejected: 1}}
	if diff := cmp.Diff(kafka.ReplayReport{Letters: want}, report); diff != "" {
		t.Error(diff)
	}
}

// In a new generation, the log is that of all generations since the update.
func testReplayGenerations(t *testing.T, b *backend) {
	l := newReplayLog(t, b)
	l.writeRefused(unknown, changes("free", "late", event.FieldOutput))
	l.writeRefused(unknown, changes("changed before", "late", event.FieldOutput))
	l.writeRefused(unknown, changes("changed after", "late", event.FieldOutput))
	l.write(changes("changed before", "newer", event.FieldOutput))
	next := l.cfg
	next.Generation, next.Partitions, next.PartitionsNew = 2, 0, 3
	info, err := kafka.EnsureTopics(t.Context(), next, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	next.Partitions = info.Partitions
	l.cfg, l.producer = next, kafkatest.NewProducer(t, next)
	l.write(changes("changed after", "newer", event.FieldOutput))
	got := l.replay(kafka.ReplayOptions{}, outcomes{kafka.ReplaySent: {unknown: 1}, kafka.ReplaySuperseded: {unknown: 2}})
	if len(got) == 1 && string(got[0].Key) != "free" {
		t.Errorf("replayed %q, want free", got[0].Key)
	}
}
