//go:build faults

package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/record"
)

// produce writes records to a topic as no Sluice would, and waits for them.
func (s *system) produce(t *testing.T, topic string, records []*kgo.Record, opts ...kgo.Opt) {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(s.kafka.Brokers...), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), startBound)
	defer cancel()
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatalf("produce to %s: %v", topic, err)
	}
}

// requireRefusal waits for a process that will not go on: it exits 1, and what
// it says at last has all of the words.
func requireRefusal(t *testing.T, p *process, words ...string) {
	t.Helper()
	if code := p.wait(t, startBound); code != 1 {
		t.Errorf("sluice %s exited %d, want 1", p.name, code)
	}
	text := p.log.tail(logTailBytes)
	// Of "dlq", the name goes on with its own command.
	end := regexp.MustCompile(`(?s)(?:^|\n)sluice ` + p.name + `[a-z ]*: (.*)`).FindStringSubmatch(text)
	if end == nil {
		t.Fatalf("sluice %s gives no reason at its end:\n%s", p.name, text)
	}
	said := end[1]
	for _, word := range words {
		if !strings.Contains(said, word) {
			t.Errorf("sluice %s says %q, which has no %q", p.name, said, word)
		}
	}
	t.Logf("sluice %s: %s", p.name, strings.TrimSpace(said))
}

// secret is in the poison. No log and no detail may show it.
const secret = "payload-that-nobody-may-log"

// poison is a record that somebody wrote straight to the topic.
type poison struct {
	name   string
	record *kgo.Record
	// reason is that of its dead letter; empty where only [record.Read]
	// can tell whether it has one.
	reason event.Code
}

func versionHeaders(values ...string) []kgo.RecordHeader {
	var headers []kgo.RecordHeader
	for _, v := range values {
		headers = append(headers, kgo.RecordHeader{Key: kafka.VersionHeader(1).Key, Value: []byte(v)})
	}
	return headers
}

// someWrite is a valid write that sets every field it may, of an event of its
// own with a minted id.
func someWrite(op event.Op) event.Write {
	const conversation = "poisoned " + secret
	w := event.Write{Op: op, ID: event.NewID(time.Now().UnixMicro(), conversation)}
	if op == event.OpDelete {
		return w
	}
	w.Set = event.CoreFields.With(event.FieldInput).With(event.FieldOutput).With(event.FieldInputEmbeddings).With(event.FieldOutputEmbeddings)
	w.EventName, w.Metadata, w.Error, w.Latency = "event_a", []byte(`{"poisoned":true}`), secret, 1.5
	w.Input = event.Content{Kind: event.KindString, Data: []byte(secret)}
	w.Output = event.Content{Kind: event.KindJSON, Data: []byte(`{"of":[1,2]}`)}
	w.InputEmbeddings, w.OutputEmbeddings = event.VectorOf(1, 2, 3), event.VectorOf(4, 5)
	if op == event.OpCreate {
		w.ConversationID = conversation
	}
	return w
}

// withAlias makes the write one by a caller's own id.
func withAlias(w event.Write, alias string) event.Write {
	w.Alias = alias
	if w.ID = w.ID.AsInternal(); w.Op != event.OpCreate {
		w.ID = event.ID{}
	}
	return w
}

func recordOf(w event.Write) *kgo.Record {
	return &kgo.Record{Key: []byte(w.Ref().String()), Value: record.AppendWrite(nil, &w), Headers: versionHeaders("1")}
}

// badRecords are valid writes in envelopes that are not.
func badRecords() []poison {
	all := []poison{{name: "far too long", record: &kgo.Record{
		// Its batch fits when it is compressed, as nothing does that Sluice writes.
		Key: []byte(ourIDs + "long"), Value: make([]byte, 8<<20), Headers: versionHeaders("1"),
	}, reason: event.CodeBadRecord}}
	for _, bad := range []struct {
		name   string
		reason event.Code
		spoil  func(r *kgo.Record)
	}{
		{"no header", event.CodeBadRecord, func(r *kgo.Record) { r.Headers = nil }},
		{"no version header", event.CodeBadRecord, func(r *kgo.Record) { r.Headers[0].Key = "version" }},
		{"version 0", event.CodeBadRecord, func(r *kgo.Record) { r.Headers = versionHeaders("0") }},
		{"version 2", event.CodeUnsupportedVersion, func(r *kgo.Record) { r.Headers = versionHeaders("2") }},
		{"version 999", event.CodeUnsupportedVersion, func(r *kgo.Record) { r.Headers = versionHeaders("999") }},
		{"version x", event.CodeBadRecord, func(r *kgo.Record) { r.Headers = versionHeaders("x") }},
		{"version of no bytes", event.CodeBadRecord, func(r *kgo.Record) { r.Headers = versionHeaders("") }},
		{"version beyond integers", event.CodeBadRecord, func(r *kgo.Record) { r.Headers = versionHeaders("99999999999999999999") }},
		{"two versions", event.CodeUnsupportedVersion, func(r *kgo.Record) { r.Headers = versionHeaders("2", "1") }},
		{"the headers of a dead letter", event.CodeUnsupportedVersion, func(r *kgo.Record) {
			r.Headers = versionHeaders("3")
			for _, name := range []string{"reason", "detail", "topic", "generation", "partition", "offset"} {
				r.Headers = append(r.Headers, kgo.RecordHeader{Key: "sluice-" + name, Value: []byte("7")})
			}
		}},
		{"no key", event.CodeBadRecord, func(r *kgo.Record) { r.Key = nil }},
		{"empty key", event.CodeBadRecord, func(r *kgo.Record) { r.Key = []byte{} }},
		{"key of another event", event.CodeBadRecord, func(r *kgo.Record) { r.Key = recordOf(someWrite(event.OpDelete)).Key }},
		{"key in capitals", event.CodeBadRecord, func(r *kgo.Record) { r.Key = bytes.ToUpper(append(r.Key, 'a')) }},
		{"long key", event.CodeBadRecord, func(r *kgo.Record) { r.Key = bytes.Repeat([]byte{'k'}, 8<<10) }},
		{"no value", event.CodeBadRecord, func(r *kgo.Record) { r.Value = nil }},
		{"empty value", event.CodeBadRecord, func(r *kgo.Record) { r.Value = []byte{} }},
		{"neither key nor value", event.CodeBadRecord, func(r *kgo.Record) { r.Key, r.Value = nil, nil }},
		{"JSON", event.CodeBadRecord, func(r *kgo.Record) { r.Value = []byte(`{"conversation_id":"` + secret + `"}`) }},
		{"unfinished", event.CodeBadRecord, func(r *kgo.Record) { r.Value = r.Value[:len(r.Value)-1] }},
		{"op 0 at its end", event.CodeBadRecord, func(r *kgo.Record) { r.Value = append(r.Value, 1<<3, 0) }},
		{"op beyond an enum", event.CodeBadRecord, func(r *kgo.Record) { r.Value = append(r.Value, 1<<3, 0xff, 0xff, 0xff, 0xff, 7) }},
		{"embeddings of 5 bytes", event.CodeBadRecord, func(r *kgo.Record) { r.Value = append(r.Value, 13<<3|2, 5, 0, 0, 0, 0, 0) }},
		{"id of 15 bytes", event.CodeBadRecord, func(r *kgo.Record) { r.Value = append(append(r.Value, 2<<3|2, 15), make([]byte, 15)...) }},
		{"groups without an end", event.CodeBadRecord, func(r *kgo.Record) { r.Value = bytes.Repeat([]byte{15<<3 | 3}, 4<<10) }},
		{"the longest value", event.CodeBadRecord, func(r *kgo.Record) { r.Value = make([]byte, kafka.RecordBytesMax) }},
	} {
		r := recordOf(someWrite(event.OpCreate))
		bad.spoil(r)
		all = append(all, poison{bad.name, r, bad.reason})
	}
	return all
}

// badWrites are envelopes as they should be with writes that no API accepts.
func badWrites() []poison {
	infinity := float32(math.Inf(1))
	embeddings := func(w *event.Write, v event.Vector) { w.OutputEmbeddings = v }
	at := func(w *event.Write, micros int64) {
		w.ID = event.MakeID(micros, event.ConversationHash(w.ConversationID), 1)
	}
	var all []poison
	for _, bad := range []struct {
		name  string
		op    event.Op
		spoil func(w *event.Write)
	}{
		{"no op", event.OpCreate, func(w *event.Write) { w.Op = 0 }},
		{"unknown op", event.OpUpdate, func(w *event.Write) { w.Op = 4 }},
		{"latency not a number", event.OpCreate, func(w *event.Write) { w.Latency = math.NaN() }},
		{"latency infinite", event.OpUpdate, func(w *event.Write) { w.Latency = math.Inf(1) }},
		{"latency negative", event.OpCreate, func(w *event.Write) { w.Latency = -1 }},
		{"embedding infinite", event.OpCreate, func(w *event.Write) { embeddings(w, event.VectorOf(1, infinity)) }},
		{"embedding not a number", event.OpUpdate, func(w *event.Write) { embeddings(w, event.VectorOf(float32(math.NaN()))) }},
		{"embedding of 4097 dimensions", event.OpCreate, func(w *event.Write) {
			embeddings(w, make(event.Vector, 4*(event.EmbeddingDimensionsMax+1)))
		}},
		{"id of another conversation", event.OpCreate, func(w *event.Write) { w.ConversationID += "!" }},
		{"id of the last century", event.OpCreate, func(w *event.Write) { at(w, event.TimestampMin-1) }},
		{"id far ahead", event.OpCreate, func(w *event.Write) { at(w, time.Now().AddDate(0, 1, 0).UnixMicro()) }},
		{"id at the end of time", event.OpDelete, func(w *event.Write) { at(w, (1<<48-1)*1000) }},
		{"id of 1000 microseconds", event.OpCreate, func(w *event.Write) { w.ID[6], w.ID[7] = w.ID[6]|3, 0xe8 }},
		{"id that is a UUIDv4", event.OpCreate, func(w *event.Write) { w.ID[6] = w.ID[6]&0xf | 0x40 }},
		{"no id", event.OpUpdate, func(w *event.Write) { w.ID = event.ID{} }},
		{"internal id", event.OpCreate, func(w *event.Write) { w.ID = w.ID.AsInternal() }},
		{"alias on a public id", event.OpCreate, func(w *event.Write) { w.Alias = ourIDs + "public" }},
		{"alias beside an id", event.OpDelete, func(w *event.Write) { w.Alias = ourIDs + "beside" }},
		{"alias that is a minted id", event.OpUpdate, func(w *event.Write) { *w = withAlias(*w, w.ID.String()) }},
		{"alias with a control character", event.OpUpdate, func(w *event.Write) { *w = withAlias(*w, ourIDs+"\x07") }},
		{"alias too long", event.OpUpdate, func(w *event.Write) { *w = withAlias(*w, strings.Repeat("a", event.AliasBytesMax+1)) }},
		{"alias said to be fresh", event.OpCreate, func(w *event.Write) { *w = withAlias(*w, ourIDs+"fresh"); w.Fresh = true }},
		{"update said to be fresh", event.OpUpdate, func(w *event.Write) { w.Fresh = true }},
		{"no conversation", event.OpCreate, func(w *event.Write) { w.ConversationID = "" }},
		{"conversation too long", event.OpCreate, func(w *event.Write) {
			w.ConversationID = strings.Repeat("c", event.ConversationIDBytesMax+1)
			at(w, time.Now().UnixMicro())
		}},
		{"conversation not UTF-8", event.OpCreate, func(w *event.Write) { w.ConversationID = "\xff"; at(w, time.Now().UnixMicro()) }},
		{"conversation on an update", event.OpUpdate, func(w *event.Write) { w.ConversationID = secret }},
		{"create without a name", event.OpCreate, func(w *event.Write) { w.Set &^= 1 << event.FieldEventName }},
		{"create that clears", event.OpCreate, func(w *event.Write) { w.Null = w.Null.With(event.FieldError); w.Error = "" }},
		{"update of nothing", event.OpUpdate, func(w *event.Write) { w.Set = 0 }},
		{"update that clears the name", event.OpUpdate, func(w *event.Write) { w.Null = w.Null.With(event.FieldEventName) }},
		{"delete that sets", event.OpDelete, func(w *event.Write) { w.Set, w.Latency = w.Set.With(event.FieldLatency), 1 }},
		{"name too long", event.OpUpdate, func(w *event.Write) { w.EventName = strings.Repeat("n", event.EventNameBytesMax+1) }},
		{"name not UTF-8", event.OpUpdate, func(w *event.Write) { w.EventName = "\xc0\x80" }},
		{"error not UTF-8", event.OpUpdate, func(w *event.Write) { w.Error = secret + "\xed\xa0\x80" }},
		{"error empty", event.OpUpdate, func(w *event.Write) { w.Error = "" }},
		{"metadata no object", event.OpCreate, func(w *event.Write) { w.Metadata = []byte(`["` + secret + `"]`) }},
		{"metadata no JSON", event.OpUpdate, func(w *event.Write) { w.Metadata = []byte(`{"a":` + secret + `}`) }},
		{"metadata with a name twice", event.OpUpdate, func(w *event.Write) { w.Metadata = []byte(`{"a":1,"a":2}`) }},
		{"metadata not compact", event.OpUpdate, func(w *event.Write) { w.Metadata = []byte(`{"a": 1}`) }},
		{"metadata beyond a double", event.OpUpdate, func(w *event.Write) { w.Metadata = []byte(`{"a":1e999}`) }},
		{"metadata too long", event.OpUpdate, func(w *event.Write) {
			w.Metadata = fmt.Appendf(nil, `{"a":%q}`, strings.Repeat("m", event.MetadataBytesMax))
		}},
		{"input not UTF-8", event.OpUpdate, func(w *event.Write) { w.Input.Data = []byte(secret + "\xff") }},
		{"input of an unknown kind", event.OpUpdate, func(w *event.Write) { w.Input.Kind = 3 }},
		{"input without a kind", event.OpUpdate, func(w *event.Write) { w.Input.Kind = event.KindNull }},
		{"output no JSON", event.OpCreate, func(w *event.Write) { w.Output.Data = []byte(secret) }},
		{"output too deep", event.OpCreate, func(w *event.Write) {
			w.Output.Data = []byte(strings.Repeat("[", event.DepthMax) + strings.Repeat("]", event.DepthMax))
		}},
		{"output that is a string of the wrong kind", event.OpUpdate, func(w *event.Write) { w.Output.Data = []byte(`"` + secret + `"`) }},
	} {
		w := someWrite(bad.op)
		bad.spoil(&w)
		all = append(all, poison{bad.name, recordOf(w), event.CodeBadRecord})
	}
	return all
}

const (
	randomRecords = 200
	mutants       = 400
	// hosts are the events that the mutated writes are of.
	hosts = 12
	// floodRecords is more than one Send of the dead letters' client may buffer.
	floodRecords = 30_000
)

// randomPoison are records of random bytes.
func randomPoison(random *rand.Rand) []poison {
	all := make([]poison, randomRecords)
	for i := range all {
		all[i] = poison{"random bytes", &kgo.Record{
			Key: randomBytes(random, random.IntN(40)), Value: randomBytes(random, random.IntN(600)), Headers: versionHeaders("1"),
		}, ""}
	}
	return all
}

// mutatedWrites are writes of a few events, most of them damaged, and the
// events' ids. Some still are writes afterwards, and then have to count.
func mutatedWrites(random *rand.Rand) (all []poison, ids map[string]struct{}) {
	ids = make(map[string]struct{})
	var writes []*kgo.Record
	for i := range hosts {
		create := someWrite(event.OpCreate)
		alias := fmt.Sprintf("%shost %d", ourIDs, i)
		if i%2 == 0 {
			create = withAlias(create, alias)
		}
		for _, op := range []event.Op{event.OpCreate, event.OpUpdate, event.OpDelete} {
			w := someWrite(op)
			w.ID = create.ID
			if create.Alias != "" {
				w = withAlias(w, alias)
			}
			r := recordOf(w)
			ids[string(r.Key)] = struct{}{}
			writes = append(writes, r)
			if op == event.OpCreate && i%3 > 0 { // the others begin with a mutant
				all = append(all, poison{"create of a host", r, ""})
			}
		}
	}
	for len(all) < mutants {
		r := *writes[random.IntN(len(writes))]
		r.Value = mutate(random, r.Value, writes)
		var w event.Write
		if record.DecodeWrite(&w, r.Value) == nil && w.Fresh {
			// It says that nothing of its id came before it, which only the one
			// who minted the id knows; nobody can check that it lies.
			continue
		}
		all = append(all, poison{"mutant", &r, ""})
	}
	return all, ids
}

// mutate damages the value of a record in one to three places.
func mutate(random *rand.Rand, value []byte, others []*kgo.Record) []byte {
	value = bytes.Clone(value)
	for range 1 + random.IntN(3) {
		at := random.IntN(len(value) + 1)
		switch kind := random.IntN(8); {
		case kind < 4 && at < len(value):
			value[at] ^= 1 << random.IntN(8)
		case kind == 4:
			value = value[:at]
		case kind == 5:
			value = slices.Insert(value, at, randomBytes(random, 1+random.IntN(4))...)
		case kind == 6 && at < len(value):
			value = slices.Delete(value, at, min(len(value), at+1+random.IntN(4)))
		default:
			other := others[random.IntN(len(others))].Value
			value = append(value[:at], other[random.IntN(len(other)):]...)
		}
	}
	return value
}

// TestFaultPoison writes records that are no writes straight to the topic,
// among those of a load. Each ends in the dead letters, and nothing else happens.
func TestFaultPoison(t *testing.T) {
	t.Parallel()
	t.Run("kafka", func(t *testing.T) {
		s := newSharedSystem(t)
		testPoison(t, s, s.runAPI(t), s.runConsumer(t), s.runConsumer(t))
	})
	t.Run("embedded", func(t *testing.T) {
		s := newEmbeddedSystem(t)
		testPoison(t, s, s.runServe(t))
	})
}

func testPoison(t *testing.T, s *system, processes ...*process) {
	random := newRandom(t)
	all := slices.Concat(badRecords(), badWrites(), randomPoison(random))
	mutated, ids := mutatedWrites(random)
	all = append(all, mutated...)
	s.history.Foreign = func(id string) bool {
		_, ok := ids[id]
		return ok
	}
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	s.client().waitReady(t)
	stop := s.load(random.Uint64(), 4)
	defer stop()
	for chunk := range slices.Chunk(all, 60) {
		s.waitForWrites(t, 60)
		var records []*kgo.Record
		for _, p := range chunk {
			records = append(records, p.record)
		}
		s.produce(t, s.kafka.EventsTopic(), records, kgo.ProducerBatchMaxBytes(64<<20))
	}
	// A batch may be nothing but poison, and more than any client buffers.
	flood := make([]*kgo.Record, floodRecords)
	for i := range flood {
		flood[i] = &kgo.Record{Key: fmt.Append(nil, i), Value: fmt.Append(nil, "flood ", i)}
		all = append(all, poison{"flood", flood[i], event.CodeBadRecord})
	}
	s.produce(t, s.kafka.EventsTopic(), flood, kgo.MaxBufferedRecords(floodRecords))
	// Nor does what is no dead letter stop those who follow the dead letters.
	s.produce(t, s.kafka.DeadLetterTopic(), []*kgo.Record{{Value: []byte(secret)}, {Headers: all[0].record.Headers}})
	s.waitForWrites(t, 100)
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
	requireRunning(t, processes...)
	s.checkPoison(t, all)
	for _, p := range processes {
		if bytes.Contains(p.log.bytes(), []byte(secret)) {
			t.Errorf("sluice %s has logged a payload", p.name)
		}
	}
}

// checkPoison looks for the dead letters of all that is poison.
func (s *system) checkPoison(t *testing.T, all []poison) {
	t.Helper()
	log := s.readLog(t)
	records := make(map[event.Receipt]*record.Record)
	for i := range log.Records {
		records[log.Records[i].Receipt()] = &log.Records[i]
	}
	letters := make(map[event.Receipt][]record.DeadLetter)
	for _, l := range log.Letters {
		letters[l.Record.Receipt()] = append(letters[l.Record.Receipt()], l)
	}
	counts := make(map[event.Code]int)
	for _, p := range all {
		at := event.Receipt{Generation: 1, Partition: p.record.Partition, Offset: p.record.Offset}
		r := records[at]
		if r == nil || !bytes.Equal(r.Key, p.record.Key) || !bytes.Equal(r.Value, p.record.Value) {
			t.Fatalf("%s: %s is another record", p.name, at)
		}
		_, err := record.Read(r)
		if err == nil {
			counts[""]++
			if p.reason != "" {
				t.Errorf("%s: is a valid write", p.name)
			}
			continue // that of its fold is for the verdict
		}
		var bad *event.Error
		if !errors.As(err, &bad) {
			t.Fatal(err)
		}
		counts[bad.Code]++
		if p.reason != "" && bad.Code != p.reason {
			t.Errorf("%s: the reason is %s, want %s", p.name, bad.Code, p.reason)
		}
		if len(letters[at]) == 0 {
			t.Errorf("%s: %s has no dead letter", p.name, at)
		}
		for _, l := range letters[at] {
			if err := differs(&l, r, bad); err != nil {
				t.Errorf("%s: the dead letter of %s: %v", p.name, at, err)
			}
		}
	}
	t.Logf("%d of %d records were valid writes, %d bad, %d of another version", counts[""], len(all),
		counts[event.CodeBadRecord], counts[event.CodeUnsupportedVersion])
}

// differs compares a dead letter with what it should say of the record.
func differs(l *record.DeadLetter, r *record.Record, bad *event.Error) error {
	var errs []error
	if l.Reason != bad.Code || l.Detail != bad.Error() && !strings.HasPrefix(l.Detail, bad.Error()) {
		errs = append(errs, fmt.Errorf("says %s: %s, want %s: %w", l.Reason, l.Detail, bad.Code, bad))
	}
	if strings.Contains(l.Detail, secret) {
		errs = append(errs, fmt.Errorf("shows a payload: %s", l.Detail))
	}
	value := r.Value
	if len(value) > kafka.RecordBytesMax { // no letter can be as long
		value = nil
	}
	if !bytes.Equal(l.Record.Key, r.Key) || !bytes.Equal(l.Record.Value, value) || l.Record.Version != r.Version {
		errs = append(errs, fmt.Errorf("has a key of %d bytes, a value of %d and version %d, want %d, %d and %d",
			len(l.Record.Key), len(l.Record.Value), l.Record.Version, len(r.Key), len(value), r.Version))
	}
	return errors.Join(errs...)
}

// startDLQ starts sluice dlq on the brokers.
func (s *system) startDLQ(t *testing.T, args ...string) *process {
	t.Helper()
	cfg := s.kafka.WithDefaults()
	return start(t, append(append([]string{"dlq"}, args...), "--kafka-brokers", strings.Join(cfg.Brokers, ","),
		"--kafka-topic", cfg.TopicPrefix, "--kafka-group", cfg.Group)...)
}

// dlq runs sluice dlq and returns what it prints.
func (s *system) dlq(t *testing.T, args ...string) string {
	t.Helper()
	p := s.startDLQ(t, args...)
	if code := p.wait(t, startBound); code != 0 {
		t.Fatalf("sluice dlq %s exited %d", strings.Join(args, " "), code)
	}
	return string(p.out.bytes())
}

// replay replays dead letters, and wants that many sent, and after that these
// lines about the others.
func (s *system) replay(t *testing.T, n int, others []string, args ...string) {
	t.Helper()
	want := fmt.Sprintf("dead letters replayed: %d\n", n)
	for _, line := range others {
		want += line + "\n"
	}
	if got := s.dlq(t, append([]string{"replay"}, args...)...); got != want {
		t.Errorf("sluice dlq replay %s printed %q, want %q", strings.Join(args, " "), got, want)
	}
}

// replayedBefore is what a replay says of letters that it leaves out for that.
func replayedBefore(n int, reason event.Code) []string {
	return []string{fmt.Sprintf("left out %d %s: replayed before (--again replays them)", n, reason)}
}

// writeBatch sends a batch, waits until it is applied, and wants the item with
// an id of codes refused with that code, and all others applied.
func (s *system) writeBatch(t *testing.T, items []map[string]any, codes map[string]string) {
	t.Helper()
	body, err := json.Marshal(items)
	if err != nil {
		t.Fatal(err)
	}
	a, err := s.client().do(http.MethodPost, "/events", body, "wait=30")
	if err != nil {
		t.Fatal(err)
	}
	var batch struct{ Results []result }
	if err := json.Unmarshal(a.body, &batch); err != nil || len(batch.Results) != len(items) {
		t.Fatalf("POST /events: status %d, error %v: %.500s", a.status, err, a.body)
	}
	refused := 0
	for i, r := range batch.Results {
		code := ""
		if r.Error != nil {
			code = r.Error.Code
			refused++
		}
		if id := items[i]["id"].(string); code != codes[id] {
			t.Errorf("the write of %s: %+v, want code %q", id, r, codes[id])
		}
	}
	want := http.StatusMultiStatus
	switch refused {
	case 0:
		want = http.StatusOK
	case len(items):
		want = batch.Results[0].Error.Status
	}
	if a.status != want {
		t.Errorf("POST /events: status %d, want %d", a.status, want)
	}
}

// requireOutputs waits until those events of a conversation that are named have
// these outputs.
func (s *system) requireOutputs(t *testing.T, conversation string, want map[string]string) {
	t.Helper()
	eventually(t, startBound, "the events of "+conversation+" to have their outputs", func() error {
		const page = 500
		events, err := s.client().conversation(conversation, page, false)
		if err != nil {
			return err
		}
		got := make(map[string]string)
		for _, e := range events {
			if id := e.text("id"); want[id] != "" {
				got[id] = e.text("output")
			}
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
}

// TestFaultDeadLetterReplay has writes refused for each of the reasons there
// are, takes the reason away where that can be done, and replays them.
func TestFaultDeadLetterReplay(t *testing.T) {
	s := newSharedSystem(t)
	s.history.Foreign = func(string) bool { return true }
	processes := []*process{s.runAPI(t), s.runConsumer(t)}
	s.client().waitReady(t)
	sent := 0 // to the events topic
	t.Run("rejected by the database", func(t *testing.T) { sent += s.testRejected(t) })
	t.Run("unknown event", func(t *testing.T) { sent += s.testUnknown(t) })
	t.Run("poison", func(t *testing.T) { sent += s.testReplayedPoison(t) })
	requireRunning(t, processes...)

	// What the database refused never came about.
	s.drain(t)
	log := s.readLog(t)
	if len(log.Records) != sent {
		t.Errorf("the log has %d records, want the %d that were sent: something goes round", len(log.Records), sent)
	}
	rejected := make(map[event.Receipt]struct{})
	log.Letters = slices.DeleteFunc(log.Letters, func(l record.DeadLetter) bool {
		if l.Reason != event.CodeRejectedByStore {
			return false
		}
		rejected[l.Record.Receipt()] = struct{}{}
		return true
	})
	log.Rejected = rejected
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tables, err := s.tables(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("log: %d records and %d rejected ones, %d other dead letters; tables: %s", len(log.Records), len(rejected), len(log.Letters), tables)
	if err := s.history.Check(log, tables); err != nil {
		t.Error(err)
	}
}

const (
	neighbours = 300
	// refusedMarker is what the database refuses to store, for a while.
	refusedMarker = "content that the database refuses"
)

// testRejected has ClickHouse refuse some of a batch for what is in it.
func (s *system) testRejected(t *testing.T) (sent int) {
	const conversation = "c"
	var creates, items []map[string]any
	refused, applied, all := make(map[string]string), make(map[string]string), make(map[string]string)
	for i := range neighbours {
		create := func(id, output string) map[string]any {
			return map[string]any{"id": id, "conversation_id": conversation, "event_name": "event_a", "output": output}
		}
		updated, created := fmt.Sprintf("%sneighbour %d", ourIDs, i), event.NewID(time.Now().UnixMicro(), conversation).String()
		output := fmt.Sprint("output ", i)
		if i%40 == 7 {
			output = refusedMarker + output
			refused[updated], refused[created] = string(event.CodeRejectedByStore), string(event.CodeRejectedByStore)
			applied[updated] = "at first"
		} else {
			applied[updated], applied[created] = output, output
		}
		all[updated], all[created] = output, output
		creates = append(creates, create(updated, "at first"))
		items = append(items, map[string]any{"op": "update", "id": updated, "output": output}, create(created, output))
	}
	s.writeBatch(t, creates, nil)
	s.sql(t, "ALTER TABLE event_contents ADD CONSTRAINT marker CHECK content NOT LIKE '%"+refusedMarker+"%'")
	s.writeBatch(t, items, refused)
	s.requireOutputs(t, conversation, applied)
	reason := []string{"--reason", string(event.CodeRejectedByStore)}
	if got := s.dlq(t, append([]string{"list"}, reason...)...); strings.Count(got, "\n") != len(refused) || strings.Contains(got, refusedMarker) {
		t.Errorf("dlq list printed %s, want %d letters without what is in them", got, len(refused))
	}
	// Before the database is mended they come back; then they are applied.
	s.replay(t, len(refused), nil, reason...)
	s.drain(t)
	s.requireOutputs(t, conversation, applied)
	s.sql(t, "ALTER TABLE event_contents DROP CONSTRAINT marker")
	s.replay(t, len(refused), replayedBefore(len(refused), event.CodeRejectedByStore), reason...)
	s.requireOutputs(t, conversation, all)
	s.replay(t, 0, replayedBefore(2*len(refused), event.CodeRejectedByStore), reason...)
	return len(creates) + len(items) + 2*len(refused)
}

// lateWrites are updates of events, and the creates that they come before.
func lateWrites(n int) (updates, creates []map[string]any, codes, early, late map[string]string) {
	codes, early, late = make(map[string]string), make(map[string]string), make(map[string]string)
	for i := range n {
		id := fmt.Sprintf("%slate %d", ourIDs, i)
		if i%2 == 0 {
			id = event.NewID(time.Now().UnixMicro(), lateConversation).String()
		}
		early[id], late[id] = fmt.Sprint("early ", i), fmt.Sprint("late ", i)
		codes[id] = string(event.CodeUnknownEvent)
		updates = append(updates, map[string]any{"op": "update", "id": id, "output": late[id]})
		creates = append(creates, map[string]any{
			"id": id, "conversation_id": lateConversation, "event_name": "event_c", "output": early[id],
		})
	}
	return updates, creates, codes, early, late
}

const lateConversation = "late"

// testUnknown updates events before they are created.
func (s *system) testUnknown(t *testing.T) (sent int) {
	updates, creates, codes, early, late := lateWrites(20)
	reason := []string{"--reason", string(event.CodeUnknownEvent)}
	s.writeBatch(t, updates, codes)
	s.replay(t, len(updates), nil, reason...) // still too early
	s.drain(t)
	s.writeBatch(t, creates, nil)
	s.requireOutputs(t, lateConversation, early)
	s.replay(t, len(updates), replayedBefore(len(updates), event.CodeUnknownEvent), reason...)
	s.requireOutputs(t, lateConversation, late)
	sent = 3*len(updates) + len(creates)
	return sent + s.testNothingNewerIsOverwritten(t, reason)
}

// testNothingNewerIsOverwritten has an update refused whose event then comes
// about and is updated: replays leave that newer update alone until they are
// told to overwrite it.
func (s *system) testNothingNewerIsOverwritten(t *testing.T, reason []string) (sent int) {
	const id, conversation = ourIDs + "changed since", "changed since"
	write := func(op, output string, codes map[string]string) {
		item := map[string]any{"id": id, "output": output}
		if op == "update" {
			item["op"] = op
		} else {
			item["conversation_id"], item["event_name"] = conversation, "event_a"
		}
		s.writeBatch(t, []map[string]any{item}, codes)
		sent++
	}
	write("update", "old", map[string]string{id: string(event.CodeUnknownEvent)})
	write("create", "first", nil)
	write("update", "new", nil)
	from := fmt.Sprint(s.lastLetter(t))
	held := []string{"held back 1 unknown_event: a newer update has changed the same fields (--overwrite replays them)"}
	for range 2 {
		s.replay(t, 0, held, append(reason, "--from", from)...)
		s.drain(t)
		s.requireOutputs(t, conversation, map[string]string{id: "new"})
	}
	s.replay(t, 1, nil, append(reason, "--from", from, "--overwrite")...)
	s.requireOutputs(t, conversation, map[string]string{id: "old"})
	return sent + 1
}

// lastLetter is the number of the newest dead letter.
func (s *system) lastLetter(t *testing.T) int64 {
	t.Helper()
	var last int64
	for line := range strings.Lines(s.dlq(t, "list")) {
		var letter struct{ Number int64 }
		if err := json.Unmarshal([]byte(line), &letter); err != nil {
			t.Fatalf("dlq list printed %q: %v", line, err)
		}
		last = letter.Number
	}
	return last
}

// testReplayedPoison replays what no fix makes a write of: it is held back, so
// that no replay adds to it.
func (s *system) testReplayedPoison(t *testing.T) (sent int) {
	all := badWrites()
	// What a reader corrects in passing is no less poison.
	contradiction := recordOf(someWrite(event.OpUpdate))
	contradiction.Value = append(contradiction.Value, 6<<3, byte(event.FieldError)+1) // cleared
	all = append(all, poison{"a field set and cleared", contradiction, event.CodeBadRecord})
	for _, p := range badRecords() {
		if len(p.record.Value) <= kafka.RecordBytesMax { // which Sluice could have written
			all = append(all, p)
		}
	}
	var records []*kgo.Record
	reasons := make(map[event.Code]int)
	for _, p := range all {
		records = append(records, p.record)
		reasons[p.reason]++
	}
	s.produce(t, s.kafka.EventsTopic(), records, kgo.ProducerBatchMaxBytes(64<<20))
	s.drain(t)
	s.checkPoison(t, all)
	copies := func() map[string]int {
		n := make(map[string]int)
		for _, l := range s.readLog(t).Letters {
			if l.Reason == event.CodeBadRecord || l.Reason == event.CodeUnsupportedVersion {
				n[fmt.Sprintf("%s of version %d: %q %q", l.Reason, l.Record.Version, l.Record.Key, l.Record.Value)]++
			}
		}
		return n
	}
	before := copies()
	for range 2 {
		for reason, n := range reasons {
			s.replay(t, 0, []string{fmt.Sprintf("held back %d %s: unreadable for this version of sluice", n, reason)},
				"--reason", string(reason), "--again", "--overwrite")
		}
		s.drain(t)
	}
	if diff := gocmp.Diff(before, copies()); diff != "" {
		t.Errorf("letters after the replays: %s", diff)
	}
	return len(all)
}

// TestFaultDuplicates sets the consumers back to the first record again and
// again while a load runs, and at its end once more, so that every record is
// delivered at least twice.
func TestFaultDuplicates(t *testing.T) {
	t.Parallel()
	t.Run("kafka", func(t *testing.T) {
		s := newSharedSystem(t)
		s.runAPI(t)
		const consumers = 2
		s.testDuplicates(t, func() (stop func(rewind func())) {
			var running []*process
			for range consumers {
				running = append(running, s.runConsumer(t))
			}
			return func(rewind func()) {
				for _, p := range running {
					p.kill()
				}
				rewind() // once their sessions are over
			}
		})
	})
	t.Run("embedded", func(t *testing.T) {
		s := newEmbeddedSystem(t)
		s.testDuplicates(t, func() (stop func(rewind func())) {
			p := s.runServe(t)
			return func(rewind func()) {
				p.kill()
				s.embeddedBroker(t, rewind)
			}
		})
	})
}

// testDuplicates has start start the consumers, and what it returns kill them
// and have the offsets set back while none runs.
func (s *system) testDuplicates(t *testing.T, start func() (stop func(rewind func()))) {
	random := newRandom(t)
	again := int64(0)
	rewind := func() {
		s.setBack(t)
		lag, err := s.lag(t)
		if err != nil {
			t.Fatal(err)
		}
		again += lag
	}
	stopConsumers := start()
	stop := s.load(random.Uint64(), 4)
	defer stop()
	const rewinds = 3 // while the load runs
	for i := range rewinds {
		s.waitForWrites(t, 300)
		if i%2 == 0 {
			// Every other time they are set back in the middle of a replay.
			s.drainTo(t, 200)
		}
		stopConsumers(rewind)
		stopConsumers = start()
	}
	s.waitForWrites(t, 300)
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
	stopConsumers(rewind)
	start()
	if err := s.verdict(t); err != nil {
		t.Errorf("after all was delivered once more: %v", err)
	}
	t.Logf("%d records were delivered again, in %d goes", again, rewinds+1)
}

// drainTo waits until at most so many records are not applied.
func (s *system) drainTo(t *testing.T, most int64) {
	t.Helper()
	eventually(t, drainBound, "the consumers to come near the end of the log", func() error {
		lag, err := s.lag(t)
		if err == nil && lag > most {
			err = fmt.Errorf("%d records are left", lag)
		}
		return err
	})
}

// TestFaultPartitionCount adds partitions to the live topic, and then makes it
// anew, as an operator might who does not know what hangs on them.
func TestFaultPartitionCount(t *testing.T) {
	t.Parallel()
	const more = 4
	random := newRandom(t)
	s := newKafkaSystem(t, 1)
	updates, creates, codes, early, _ := lateWrites(20)
	s.history.Foreign = func(id string) bool { return codes[id] != "" }
	topic, count := s.kafka.EventsTopic(), s.kafka.WithDefaults().PartitionsNew
	api, consumer := s.runAPI(t), s.runConsumer(t)
	c := s.client()
	c.waitReady(t)
	s.writeBatch(t, updates, codes)
	stop := s.load(random.Uint64(), 4)
	defer stop()
	s.waitForWrites(t, 300)

	err := s.admin(t, func(ctx context.Context, adm *kadm.Client) error {
		created, err := adm.CreatePartitions(ctx, more, topic)
		return cmp.Or(err, created.Error())
	})
	if err != nil {
		t.Fatal(err)
	}
	// A broker that comes back makes its clients ask what the topic is like.
	s.broker.Kill(0)
	if err := s.broker.Restart(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, startBound, "the consumer to have the new partitions", func() error {
		if !regexp.MustCompile(fmt.Sprintf(`partitions assigned.*\b%d\b`, count+more-1)).Match(consumer.log.bytes()) {
			return errors.New("it has not")
		}
		return nil
	})
	counts := []string{topic, strconv.Itoa(count), strconv.Itoa(count + more)}
	eventually(t, startBound, "/readyz to tell", func() error {
		a, err := c.do(http.MethodGet, "/readyz", nil, "")
		if err == nil && (a.status != http.StatusServiceUnavailable || !bytes.Contains(a.body, []byte(`"kafka":"unavailable"`))) {
			err = fmt.Errorf("status %d: %s", a.status, a.body)
		}
		for _, word := range append(counts, "not ready") { // which only the log says
			if err == nil && !bytes.Contains(api.log.bytes(), []byte(word)) {
				err = fmt.Errorf("the log does not say %q", word)
			}
		}
		return err
	})
	// Where a write goes is what it was. Who does not know that refuses to write.
	s.waitForWrites(t, 600)
	s.writeBatch(t, creates, nil)
	replay := s.startDLQ(t, "replay", "--reason", string(event.CodeUnknownEvent), "--limit", strconv.Itoa(len(updates)))
	requireRefusal(t, replay, topic, strconv.Itoa(count+more), "partition")
	s.requireOutputs(t, lateConversation, early)
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
	for _, r := range s.readLog(t).Records {
		if int(r.Partition) >= count {
			t.Fatalf("record %s is in a new partition", r.Receipt())
		}
	}
	requireRunning(t, api, consumer)
	start := func(words ...string) {
		t.Helper()
		requireRefusal(t, s.run(t, nil, "api", "--listen", "127.0.0.1:0"), words...)
		requireRefusal(t, s.runConsumer(t), words...)
	}
	start(counts...)

	// Another topic of the name: its offsets, and so the versions, begin again.
	s.recreateTopic(t)
	acknowledged, ended := s.acknowledged(), s.history.Ended()
	stop = s.load(random.Uint64(), 4)
	defer stop()
	eventually(t, startBound, "writes to be answered", func() error {
		if n := s.history.Ended() - ended; n < 40 {
			return fmt.Errorf("%d were", n)
		}
		return nil
	})
	stop()
	if n := s.acknowledged() - acknowledged; n != 0 {
		t.Errorf("%d writes were acknowledged, at places that others have", n)
	}
	if a, err := c.do(http.MethodGet, "/readyz", nil, ""); err != nil || a.status != http.StatusServiceUnavailable {
		t.Errorf("/readyz: status %d, error %v, of a log that cannot be written to", a.status, err)
	}
	api.stop(t)
	start(topic, "offsets begin again")
}

// recreateTopic deletes the events topic, and makes it again as Sluice would.
func (s *system) recreateTopic(t *testing.T) {
	t.Helper()
	topic := s.kafka.EventsTopic()
	err := s.admin(t, func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.DeleteTopic(ctx, topic)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startBound)
	defer cancel()
	if _, err := kafka.EnsureTopics(ctx, s.kafka, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
}

// places are what the group has committed and where the log ends, by partition.
type places struct{ committed, ends map[int32]int64 }

func (s *system) places(t *testing.T) places {
	t.Helper()
	p := places{make(map[int32]int64), make(map[int32]int64)}
	topic := s.kafka.EventsTopic()
	eventually(t, startBound, "the offsets", func() error {
		return s.admin(t, func(ctx context.Context, adm *kadm.Client) error {
			ends, err := adm.ListEndOffsets(ctx, topic)
			if err = cmp.Or(err, ends.Error()); err != nil {
				return err
			}
			commits, err := adm.FetchOffsets(ctx, s.kafka.WithDefaults().Group)
			if err = cmp.Or(err, commits.Error()); err != nil {
				return err
			}
			ends.Each(func(o kadm.ListedOffset) {
				p.ends[o.Partition] = o.Offset
				if c, ok := commits.Lookup(topic, o.Partition); ok {
					p.committed[o.Partition] = max(0, c.At)
				}
			})
			return nil
		})
	})
	return p
}

// behind is the partition that the group is the furthest behind in.
func (p places) behind() int32 {
	var most int32
	for partition, end := range p.ends {
		if end-p.committed[partition] > p.ends[most]-p.committed[most] {
			most = partition
		}
	}
	return most
}

// expire removes the records of a partition before the offset, as retention does.
func (s *system) expire(t *testing.T, partition int32, until int64) {
	t.Helper()
	topic := s.kafka.EventsTopic()
	err := s.admin(t, func(ctx context.Context, adm *kadm.Client) error {
		var until1 kadm.Offsets
		until1.AddOffset(topic, partition, until, -1)
		deleted, err := adm.DeleteRecords(ctx, until1)
		return cmp.Or(err, deleted.Error())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// skip has the group give up what is missing, as an operator does. No consumer
// must run; one that was killed is a member for a while.
func (s *system) skip(t *testing.T, partition int32, to int64) {
	t.Helper()
	cfg := s.kafka.WithDefaults()
	flags := []string{"--all", "--kafka-brokers", strings.Join(cfg.Brokers, ","), "--kafka-topic", cfg.TopicPrefix, "--kafka-group", cfg.Group}
	eventually(t, startBound, "the refusal to give up what is missing unasked", func() error {
		p := start(t, append([]string{"offsets", "rewind"}, flags...)...)
		if code := p.wait(t, startBound); code != 1 || !bytes.Contains(p.log.bytes(), []byte("--accept-loss goes on without them")) {
			return fmt.Errorf("exit code %d: %s", code, p.log.tail(300))
		}
		return nil
	})
	eventually(t, startBound, "the group to give up what is missing", func() error {
		p := start(t, append([]string{"offsets", "rewind", "--accept-loss"}, flags...)...)
		if code := p.wait(t, startBound); code != 0 {
			return fmt.Errorf("exit code %d: %s", code, p.log.tail(300))
		}
		return nil
	})
	if at := s.places(t).committed[partition]; at != to {
		t.Errorf("the group is at offset %d of partition %d, want %d", at, partition, to)
	}
}

// TestFaultRetention has records expire before they were consumed. Where they
// are is said, and nothing behind them is consumed.
func TestFaultRetention(t *testing.T) {
	t.Parallel()
	t.Run("kafka", testRetentionKafka)
	t.Run("embedded", func(t *testing.T) {
		const records = 200
		s := newEmbeddedSystem(t)
		p := s.runServe(t)
		s.client().waitReady(t)
		s.createMany(t, records)
		p.kill()
		s.embeddedBroker(t, func() {
			s.setBack(t) // by itself, the consumer falls behind no further than this
			s.expire(t, 0, records/2)
		})
		for range 2 {
			requireRefusal(t, s.runServe(t), s.missing(0), fmt.Sprintf("offset 0 and the log begins at %d", records/2))
		}
		s.embeddedBroker(t, func() { s.requireStuck(t, 0, 0, 0) })
	})
}

// createMany creates events in one request, and does not wait for them.
func (s *system) createMany(t *testing.T, n int) {
	t.Helper()
	line := []byte(`{"conversation_id":"many","event_name":"event_a"}`)
	if _, err := s.client().post(slices.Repeat([][]byte{line}, n)); err != nil {
		t.Fatal(err)
	}
}

// requireStuck requires that the group has committed no offset of the partition
// but those given.
func (s *system) requireStuck(t *testing.T, partition int32, from, to int64) {
	t.Helper()
	if now := s.places(t).committed[partition]; now < from || now > to {
		t.Errorf("the group has committed offset %d of partition %d, want %d to %d", now, partition, from, to)
	}
}

// missing is what a process says that finds records of a partition missing.
func (s *system) missing(partition int32) string {
	return fmt.Sprintf("records are missing from the log: topic %s partition %d: ", s.kafka.EventsTopic(), partition)
}

func testRetentionKafka(t *testing.T) {
	s := newSharedSystem(t)
	s.runAPI(t)
	waitReadiness(t, s.client(), readiness{"not_ready", "ok", "schema_missing", "ok", "unavailable"})
	s.createMany(t, 200)
	p := s.runConsumer(t)
	s.drain(t)
	t.Run("consumer down", func(t *testing.T) {
		p.kill()
		s.createMany(t, 600)
		at := s.places(t)
		gap := at.behind()
		from, until := at.committed[gap], (at.committed[gap]+at.ends[gap]+1)/2
		s.expire(t, gap, until)
		for range 2 {
			requireRefusal(t, s.runConsumer(t), s.missing(gap), fmt.Sprintf("offset %d and the log begins at %d", from, until))
			s.requireStuck(t, gap, from, from)
		}
		s.skip(t, gap, until)
		p = s.runConsumer(t)
		s.drain(t)
	})
	for _, stopped := range []struct {
		name    string
		session time.Duration
	}{
		{"consumer stopped for longer than its session", sessionTimeout},
		{"consumer stopped for less than its session", 30 * time.Second},
	} {
		t.Run(stopped.name, func(t *testing.T) {
			p.kill()
			s.flags[slices.Index(s.flags, "--kafka-session-timeout")+1] = stopped.session.String()
			p = s.runConsumer(t)
			s.awaitPartitions(t, p)
			s.drain(t)
			if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			// The answer to its last fetch, which has the first of these, it has got.
			for range 3 {
				s.createMany(t, 200)
			}
			at := s.places(t)
			gap := at.behind()
			from, until := at.committed[gap], at.ends[gap]
			s.expire(t, gap, until)
			s.createMany(t, 600)
			if stopped.session == sessionTimeout {
				eventually(t, startBound, "the group to be without it", func() error { return s.emptyGroup(t) })
			}
			if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			requireRefusal(t, p, s.missing(gap), "offset ")
			s.requireStuck(t, gap, from, until-1)
			s.skip(t, gap, until)
			p = s.runConsumer(t)
			s.drain(t)
		})
	}
}

// emptyGroup returns nil when the consumers' group has no members.
func (s *system) emptyGroup(t *testing.T) error {
	t.Helper()
	group := s.kafka.WithDefaults().Group
	return s.admin(t, func(ctx context.Context, adm *kadm.Client) error {
		described, err := adm.DescribeGroups(ctx, group)
		if err = cmp.Or(err, described.Error()); err != nil {
			return err
		}
		if state := described[group].State; state != "Empty" {
			return fmt.Errorf("it is %s", state)
		}
		return nil
	})
}

// TestFaultEmbeddedDisk fills the disk of an embedded broker, and damages its
// files as a crash might, and as none can.
func TestFaultEmbeddedDisk(t *testing.T) {
	t.Parallel()
	t.Run("full", testFullDisk)
	t.Run("torn", testTorn)
}

// filler creates large events until it is stopped.
type filler struct {
	stop func()

	mu sync.Mutex
	// acknowledged are the events that an answer said are in the log, statuses
	// how often each was answered.
	acknowledged []string
	statuses     map[int]int
	errs         []error
}

const (
	fillerClients = 3
	fillerBytes   = 12 << 10
)

func (s *system) fill(random *rand.Rand) *filler {
	f := &filler{statuses: make(map[int]int)}
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for i := range fillerClients {
		own := rand.New(rand.NewPCG(random.Uint64(), 0))
		clients.Go(func() {
			c := s.client()
			defer c.http.CloseIdleConnections()
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprintf("%sfill %d %d", ourIDs, i, n)
				body, err := json.Marshal(map[string]any{
					"id": id, "conversation_id": "fill", "event_name": "event_a", "input": randomBytes(own, fillerBytes),
				})
				if err != nil {
					panic("BUG: " + err.Error())
				}
				a, err := c.do(http.MethodPost, "/event", body, "")
				if err != nil { // nobody listens
					<-time.After(50 * time.Millisecond)
					continue
				}
				f.add(id, a)
			}
		})
	}
	f.stop = func() { cancel(); clients.Wait() }
	return f
}

func (f *filler) add(id string, a answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.statuses[a.status]++
	switch a.status {
	case http.StatusAccepted:
		f.acknowledged = append(f.acknowledged, id)
	case http.StatusServiceUnavailable:
		if a.header.Get("Retry-After") == "" || !bytes.Contains(a.body, []byte(`"unavailable"`)) {
			f.errs = append(f.errs, fmt.Errorf("a 503 with Retry-After %q says %s", a.header.Get("Retry-After"), a.body))
		}
	default:
		f.errs = append(f.errs, fmt.Errorf("status %d: %s", a.status, a.body))
	}
}

func testFullDisk(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	s := newEmbeddedSystem(t)
	s.history.Foreign = isOurs
	resize := mountSmall(t, filepath.Join(s.dir, "kafka"), "6m")
	p := s.runServe(t)
	s.client().waitReady(t)
	stop := s.load(random.Uint64(), 4)
	defer stop()
	filling := s.fill(random)
	defer filling.stop()
	// It ends, and whoever starts it again without making room gets no further.
	const full = "no space left on device"
	requireRefusal(t, p, full)
	p = s.runServe(t)
	eventually(t, startBound, "the disk to be full", func() error {
		if !bytes.Contains(p.log.bytes(), []byte(full)) {
			return errors.New("it has room")
		}
		return nil
	})
	if err := resize("256m"); err != nil {
		t.Fatal(err)
	}
	requireRefusal(t, p, full)
	p = s.runServe(t)
	s.client().waitReady(t)
	filling.stop()
	s.waitForWrites(t, 200)
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
	requireRunning(t, p)
	for _, err := range filling.errs {
		t.Error(err)
	}
	if filling.statuses[http.StatusServiceUnavailable] == 0 {
		t.Error("nobody was told that the log is unavailable")
	}
	t.Logf("large events by status: %v", filling.statuses)
	for _, id := range filling.acknowledged {
		if a, err := s.client().do(http.MethodGet, eventPath(id), nil, ""); err != nil || a.status != http.StatusOK {
			t.Errorf("%s, which was acknowledged: status %d, error %v", id, a.status, err)
		}
	}
	s.requireCommitted(t, p)
}

// requireCommitted kills the process, which has applied all, and requires that
// the group's commits outlive it.
func (s *system) requireCommitted(t *testing.T, p *process) {
	t.Helper()
	p.kill()
	s.embeddedBroker(t, func() {
		if lag, err := s.lag(t); err != nil || lag != 0 {
			t.Errorf("%d records are to be applied again, error %v", lag, err)
		}
	})
}

// brokerFile is the path of a file of the embedded broker's data.
func (s *system) brokerFile(elem ...string) string {
	return filepath.Join(append([]string{s.dir, "kafka", "data"}, elem...)...)
}

// newestSegment is the file that the broker writes records to.
func (s *system) newestSegment(t *testing.T) string {
	t.Helper()
	paths, err := filepath.Glob(s.brokerFile("partitions", s.kafka.EventsTopic()+"-0", "*.dat"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("segments %q, error %v", paths, err)
	}
	base := func(path string) int {
		n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ".dat"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return slices.MaxFunc(paths, func(a, b string) int { return cmp.Compare(base(a), base(b)) })
}

// change replaces what is in a file.
func change(t *testing.T, path string, do func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, do(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// batches cuts a segment into its batches of records.
func batches(segment []byte) (all [][]byte) {
	for len(segment) > 0 {
		// An offset of 8 bytes, and the length of what follows.
		n := 12 + int(binary.BigEndian.Uint32(segment[8:]))
		all = append(all, segment[:n])
		segment = segment[n:]
	}
	return all
}

func lastBatch(segment []byte) []byte {
	all := batches(segment)
	return all[len(all)-1]
}

// testTorn kills a broker while it is written to, and damages its files: first
// as a crash can, behind what was acknowledged, then in what was.
func testTorn(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	s := newEmbeddedSystem(t)
	p := s.runServe(t)
	stop := s.load(random.Uint64(), 4)
	defer stop()
	segment := func() string { return s.newestSegment(t) }
	for _, torn := range []struct {
		name string
		file func() string
		tear func(b []byte) []byte
	}{
		{"half a batch", segment, func(b []byte) []byte {
			batch := lastBatch(b)
			return append(b, batch[:len(batch)/2]...)
		}},
		{"a batch but for its last byte", segment, func(b []byte) []byte {
			batch := lastBatch(b)
			return append(b, batch[:len(batch)-1]...)
		}},
		{"a batch of the wrong bytes", segment, func(b []byte) []byte {
			batch := bytes.Clone(lastBatch(b))
			batch[len(batch)-1]++
			return append(b, batch...)
		}},
		{"random bytes", segment, func(b []byte) []byte { return append(b, randomBytes(random, 300)...) }},
		{"zeros", segment, func(b []byte) []byte { return append(b, make([]byte, 4<<10)...) }},
		{"half a commit", func() string { return s.brokerFile("groups.log") }, func(b []byte) []byte { return append(b, b[:20]...) }},
	} {
		s.waitForWrites(t, 150)
		p.kill()
		change(t, torn.file(), torn.tear)
		p = s.runServe(t)
		s.client().waitReady(t)
		s.waitForWrites(t, 50)
		if !bytes.Contains(p.log.bytes(), []byte("corrupt")) {
			t.Errorf("%s: the log does not tell of it", torn.name)
		}
	}
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
	s.requireCommitted(t, p)

	// What was acknowledged and is gone is not passed over, and nothing takes its place.
	whole := t.TempDir()
	data := s.brokerFile()
	if err := os.CopyFS(whole, os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(whole))); err != nil {
			t.Fatal(err)
		}
	}
	for _, cut := range []struct {
		name string
		cut  func(b []byte) []byte
	}{
		{"the last byte cut off", func(b []byte) []byte { return b[:len(b)-1] }},
		{"a bit flipped", func(b []byte) []byte {
			all := batches(b)
			batch := all[len(all)/2]
			batch[len(batch)-1] ^= 4 // the checksum is not of a batch's offset and length
			return b
		}},
		{"empty", func([]byte) []byte { return nil }},
	} {
		t.Run(cut.name, func(t *testing.T) {
			defer restore()
			change(t, segment(), cut.cut)
			acknowledged := s.acknowledged()
			stop := s.load(random.Uint64(), 4)
			defer stop()
			for range 3 {
				requireRefusal(t, s.runServe(t), s.missing(0), "the log ends at")
			}
			stop()
			if n := s.acknowledged() - acknowledged; n != 0 {
				t.Errorf("%d writes were acknowledged, at places that others have", n)
			}
		})
	}
	s.runServe(t)
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
}
