package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/bench/workload"
	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/consumer"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
	"github.com/sluicehq/sluice/internal/record"
)

const (
	// insertersMax is how many inserts at a time are tried. More only wait for
	// each other on the machines that this is run on.
	insertersMax = 2
	// generation is that of the topics that are made here.
	generation = 1

	limitDatabase = "sluice_limit"
	limitTopic    = ".limit"
)

// MeasureLimits does the parts of Sluice's work on the creates of the load
// alone, on the system of the load, once that is at rest: it inserts their
// rows, produces their records, and sends their requests to a server that
// discards them. Of a load of more than eventsMax creates it takes the first
// eventsMax. Rows and records are made before the clock starts, in portions
// whose times are added up; what inserts and merges leave to do in between is
// not counted, so that the limits are rather too high than too low.
//
// Each part is verified by what is there afterwards, or is an error. What it
// makes, it removes.
func MeasureLimits(ctx context.Context, s *System, cfg LoadConfig, eventsMax int) (*Limits, error) {
	cfg = cfg.creates(eventsMax)
	plan, err := planOf(cfg)
	if err != nil {
		return nil, err
	}
	var limits Limits
	for _, part := range []struct {
		name    string
		measure func() (time.Duration, error)
		rate    *float64
	}{
		{"insert", func() (time.Duration, error) { return insertAlone(ctx, s, plan) }, &limits.InsertPerSecond},
		{"produce", func() (time.Duration, error) { return produceAlone(ctx, s, plan) }, &limits.ProducePerSecond},
		{"discard", func() (time.Duration, error) { return discardAlone(ctx, cfg, plan) }, &limits.DiscardPerSecond},
	} {
		took, err := part.measure()
		if err != nil {
			return nil, fmt.Errorf("limit of %s: %w", part.name, err)
		}
		*part.rate = float64(plan.Events) / took.Seconds()
	}
	return &limits, nil
}

// creates is a load of the first creates alone.
func (c LoadConfig) creates(eventsMax int) LoadConfig {
	c.Events, c.Updates, c.Deletes = min(c.Events, eventsMax), 0, 0
	return c
}

// creates makes the writes of a plan's creates, a block at a time.
type creates struct {
	plan *workload.Plan
	next int
	body []byte
}

// block returns the next writes, as many as the consumer flushes at a time; none
// at the end.
func (c *creates) block() ([]event.Write, error) {
	bounds := consumer.DefaultConfig()
	parser := body.Parser{Rules: &event.Rules{EventNames: event.DefaultEventNames()}}
	var writes []event.Write
	for size := 0; c.next < c.plan.Events && len(writes) < bounds.BatchRecordsMax && size < bounds.BatchBytesMax; c.next++ {
		c.body = c.plan.AppendCreate(c.body[:0], c.next)
		w, err := parser.ParseCreate(c.body, time.Now())
		if err != nil {
			return nil, fmt.Errorf("create %d: %w", c.next, err)
		}
		// They alias the body, which with embeddings is mostly those.
		w.Metadata, w.Input.Data, w.Output.Data = bytes.Clone(w.Metadata), bytes.Clone(w.Input.Data), bytes.Clone(w.Output.Data)
		size += len(w.Metadata) + len(w.Input.Data) + len(w.Output.Data) + len(w.InputEmbeddings) + len(w.OutputEmbeddings)
		writes = append(writes, w)
	}
	return writes, nil
}

// AppendRows appends the rows that the consumer makes of a create at the offset,
// of the first generation.
func AppendRows(rows *event.Rows, w *event.Write, offset int64) {
	at := event.MakePosition(generation, offset)
	version := event.MakeVersion(event.ClassCreate, at)
	rows.Cores = append(rows.Cores, event.Core{
		ID: w.ID, ConversationID: w.ConversationID, EventName: w.EventName, Metadata: string(w.Metadata), Error: w.Error,
		Latency: w.Latency, HasLatency: w.Set.Has(event.FieldLatency) && !w.Null.Has(event.FieldLatency),
		Created: at, Version: version,
	})
	for i, content := range [...]event.Content{w.Input, w.Output} {
		if content.Kind != event.KindNull {
			rows.Contents = append(rows.Contents, event.ContentRow{ID: w.ID, Field: event.FieldInput + event.Field(i), Content: content, Version: version})
		}
	}
	for i, vector := range [...]event.Vector{w.InputEmbeddings, w.OutputEmbeddings} {
		if len(vector) > 0 {
			rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: w.ID, Field: event.FieldInputEmbeddings + event.Field(i), Vector: vector, Version: version})
		}
	}
}

// rowCounts are the rows that creates leave in the tables.
type rowCounts struct{ events, contents, embeddings int }

const countRows = "SELECT (SELECT count() FROM events), (SELECT count() FROM event_contents), (SELECT count() FROM event_embeddings)"

// String is the answer to countRows.
func (n rowCounts) String() string {
	return fmt.Sprintf("%d\t%d\t%d", n.events, n.contents, n.embeddings)
}

func (n *rowCounts) add(rows *event.Rows) {
	n.events += len(rows.Cores)
	n.contents += len(rows.Contents)
	n.embeddings += len(rows.Embeddings)
}

// insertAlone returns the better time of one inserter and several.
func insertAlone(ctx context.Context, s *System, plan *workload.Plan) (best time.Duration, err error) {
	for inserters := 1; inserters <= insertersMax; inserters++ {
		store, drop, err := emptyDatabase(ctx, s, limitDatabase)
		if err != nil {
			return 0, err
		}
		took, want, err := insertPlan(ctx, store, plan, inserters)
		if err == nil {
			err = checkRows(ctx, s, limitDatabase, want)
		}
		if err = errors.Join(err, drop()); err != nil {
			return 0, err
		}
		if best == 0 || took < best {
			best = took
		}
	}
	return best, nil
}

func insertPlan(ctx context.Context, store *clickhouse.Store, plan *workload.Plan, inserters int) (took time.Duration, n rowCounts, err error) {
	from := creates{plan: plan}
	for n.events < plan.Events {
		var blocks []*event.Rows
		for range inserters {
			writes, err := from.block()
			if err != nil {
				return 0, n, err
			}
			rows := new(event.Rows)
			for i := range writes {
				AppendRows(rows, &writes[i], int64(n.events+i))
			}
			n.add(rows)
			blocks = append(blocks, rows)
		}
		start := time.Now()
		g, ctx := errgroup.WithContext(ctx)
		for _, rows := range blocks {
			g.Go(func() error { return store.Insert(ctx, rows) })
		}
		if err := g.Wait(); err != nil {
			return 0, n, err
		}
		took += time.Since(start)
	}
	return took, n, nil
}

// emptyDatabase makes Sluice's tables in a new database of the engine.
func emptyDatabase(ctx context.Context, s *System, name string) (store *clickhouse.Store, drop func() error, err error) {
	if _, err := s.Query(ctx, "system", "DROP DATABASE IF EXISTS "+name+" SYNC"); err != nil {
		return nil, nil, err
	}
	if store, err = clickhouse.New(s.ClickHouse(name), s.log, nil); err != nil {
		return nil, nil, err
	}
	drop = func() error {
		store.Close()
		_, err := s.Query(context.WithoutCancel(ctx), "system", "DROP DATABASE IF EXISTS "+name+" SYNC")
		return err
	}
	if _, err := store.Migrate(ctx); err != nil {
		return nil, nil, errors.Join(err, drop())
	}
	return store, drop, nil
}

func checkRows(ctx context.Context, s *System, database string, want rowCounts) error {
	got, err := s.Query(ctx, database, countRows)
	if err == nil && got != want.String() {
		err = fmt.Errorf("%w: %q rows, want %q", workload.ErrDifferent, got, want)
	}
	return err
}

func produceAlone(ctx context.Context, s *System, plan *workload.Plan) (time.Duration, error) {
	topic, err := newTopic(ctx, s, limitTopic)
	if err != nil {
		return 0, err
	}
	took, _, err := topic.fill(ctx, plan)
	return took, errors.Join(err, topic.remove(ctx))
}

// topic is an events topic of its own, made like Sluice's.
type topic struct {
	cfg    kafka.Config
	client *kgo.Client
}

// newTopic makes the topic. Remove it.
func newTopic(ctx context.Context, s *System, suffix string) (*topic, error) {
	cfg := kafka.Config{Brokers: s.Brokers(), Generation: generation}.WithDefaults()
	cfg.TopicPrefix += suffix
	if len(s.cfg.Brokers) == 0 {
		cfg.PartitionsNew = broker.Partitions
	}
	made, err := kafka.EnsureTopics(ctx, cfg, s.log)
	if err != nil {
		return nil, err
	}
	cfg.Partitions = made.Partitions
	client, err := kgo.NewClient(append(kafka.ProducerOptions(&cfg), kgo.SeedBrokers(cfg.Brokers...))...)
	return &topic{cfg: cfg, client: client}, err
}

func (t *topic) remove(ctx context.Context) error {
	defer t.client.Close()
	deleted, err := kadm.NewClient(t.client).DeleteTopics(context.WithoutCancel(ctx), t.cfg.EventsTopic(), t.cfg.DeadLetterTopic())
	return errors.Join(err, deleted.Error())
}

// fill produces the creates of the plan, verifies that the brokers have them,
// and returns the time that producing took and the rows that they make.
func (t *topic) fill(ctx context.Context, plan *workload.Plan) (took time.Duration, n rowCounts, err error) {
	from := creates{plan: plan}
	for n.events < plan.Events {
		writes, err := from.block()
		if err != nil {
			return 0, n, err
		}
		records := make([]*kgo.Record, len(writes))
		var rows event.Rows
		for i := range writes {
			records[i] = recordOf(&writes[i])
			AppendRows(&rows, &writes[i], 0)
		}
		n.add(&rows)
		start := time.Now()
		if err := t.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
			return 0, n, err
		}
		took += time.Since(start)
	}
	ends, err := kadm.NewClient(t.client).ListEndOffsets(ctx, t.cfg.EventsTopic())
	if err = errors.Join(err, ends.Error()); err != nil {
		return 0, n, err
	}
	var written int64
	ends.Each(func(o kadm.ListedOffset) { written += o.Offset })
	if written != int64(plan.Events) {
		return 0, n, fmt.Errorf("%w: the topic has %d records, want %d", workload.ErrDifferent, written, plan.Events)
	}
	return took, n, nil
}

// recordOf is the record that Sluice writes of a write by a minted id.
func recordOf(w *event.Write) *kgo.Record {
	return &kgo.Record{
		Key: w.ID.AppendText(nil), Value: record.AppendWrite(nil, w),
		Headers: []kgo.RecordHeader{kafka.VersionHeader(record.FormatVersion)},
	}
}

// discardAlone sends the requests of the creates to a net/http server in this
// process, which they share the processors with in any case.
func discardAlone(ctx context.Context, cfg LoadConfig, plan *workload.Plan) (_ time.Duration, err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	d := discarder{answer: answerTo(plan, cfg.Batch)}
	server := &http.Server{Handler: &d, ReadHeaderTimeout: readyTimeout}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		err = errors.Join(err, server.Close())
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			err = errors.Join(err, ended)
		}
	}()
	l := load{cfg: cfg, plan: plan}
	requests := (plan.Events + cfg.Batch - 1) / cfg.Batch
	to := workload.Target{URL: &url.URL{Scheme: "http", Host: listener.Addr().String()}}
	sent, err := workload.Send(ctx, to, cfg.Connections, requests, func(r *workload.Request, i int) {
		l.creates(r, i*cfg.Batch, min(plan.Events, (i+1)*cfg.Batch))
	})
	if err != nil {
		return 0, err
	}
	if got := d.bytes.Load(); got != sent.Bytes {
		return 0, fmt.Errorf("%w: the server read %d bytes of %d", workload.ErrDifferent, got, sent.Bytes)
	}
	return sent.Acked.Sub(sent.Begun), nil
}

// discarder reads and discards every body, and gives the same answer to all.
type discarder struct {
	answer string
	bytes  atomic.Int64
}

func (d *discarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	d.bytes.Add(n)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(d.answer)))
	w.WriteHeader(http.StatusAccepted)
	_, _ = io.WriteString(w, d.answer) // the client sees that it is cut off
}

// answerTo is an answer of the form and length of Sluice's.
func answerTo(plan *workload.Plan, batch int) string {
	item := fmt.Sprintf(`{"id":"%s","receipt":"1.10.123456"}`, plan.ID(0))
	if batch == 1 {
		return item
	}
	return `{"results":[` + strings.TrimSuffix(strings.Repeat(item+",", batch), ",") + `]}`
}
