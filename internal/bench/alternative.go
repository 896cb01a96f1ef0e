package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluicehq/sluice/internal/bench/workload"
)

const (
	// drainTimeout bounds the draining of the topic by one of the two.
	drainTimeout = 5 * time.Minute

	// drainAttemptsMax bounds how often the Kafka engine drains the topic with
	// one setting. It inserts at least once, so an attempt can leave rows twice.
	drainAttemptsMax = 3

	alternativeTopic = ".alternative"
	sluiceDatabase   = "sluice_drained"
	engineDatabase   = "kafka_engine_drained"
)

// engineSetting is how a Kafka table is set up: consumers, each with a thread
// of its own, that insert after so many rows or milliseconds.
type engineSetting struct{ consumers, blockRows, flushMillis int }

// engineSettings are those that are tried. The first rows are the engine's own
// bounds, in time that is short enough not to wait for at the topic's end.
func engineSettings() []engineSetting {
	return []engineSetting{{1, 65_536, 500}, {1, 262_144, 1000}, {2, 65_536, 500}, {2, 131_072, 1000}}
}

func (e engineSetting) String() string {
	return fmt.Sprintf("kafka_num_consumers=%d kafka_max_block_size=%d kafka_flush_interval_ms=%d", e.consumers, e.blockRows, e.flushMillis)
}

// MeasureAlternative fills a topic with the creates of the load, at most
// eventsMax, and measures how fast "sluice consume" and ClickHouse's Kafka
// table engine drain it, each into tables of its own of the same schema. The
// clock runs from the moment that the consumer group is formed until all rows
// are visible. Both must leave the same rows, or it is an error. Of several
// settings of the Kafka engine, the best counts. An attempt of the Kafka engine
// that leaves other rows than the topic has is made again, at most
// drainAttemptsMax times in all. What it makes, it removes.
//
// The engine's message broker pool has one thread by Sluice's own settings;
// start the system with [AlternativeSettings] for the engine to have two.
func MeasureAlternative(ctx context.Context, s *System, cfg LoadConfig, eventsMax int) (_ *Alternative, err error) {
	plan, err := planOf(cfg.creates(eventsMax))
	if err != nil {
		return nil, err
	}
	t, err := newTopic(ctx, s, alternativeTopic)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.remove(ctx)) }()
	_, want, err := t.fill(ctx, plan)
	if err != nil {
		return nil, err
	}
	d := drain{system: s, topic: t, want: want}
	_, drop, err := emptyDatabase(ctx, s, sluiceDatabase)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, drop()) }()
	ours, err := d.sluice(ctx)
	if err != nil {
		return nil, fmt.Errorf("drain by sluice: %w", err)
	}
	best, with, err := d.engineBest(ctx)
	if err != nil {
		return nil, fmt.Errorf("drain by the Kafka engine: %w", err)
	}
	events := float64(plan.Events)
	return &Alternative{
		Events: plan.Events, SluicePerSecond: events / ours.Seconds(), KafkaEnginePerSecond: events / best.Seconds(),
		How: "from the consumer group's forming until all rows are visible, both from one topic of Protobuf records into tables of the same schema; " +
			"Kafka engine: ProtobufSingle, materialized views, " + with.String() + ", the best of " + fmt.Sprint(len(engineSettings())) + " settings",
	}, nil
}

// AlternativeSettings are the server settings that the Kafka engine needs to
// be at its best.
func AlternativeSettings() map[string]string {
	return map[string]string{"background_message_broker_schedule_pool_size": "4"}
}

// drain empties a topic into tables.
type drain struct {
	system *System
	topic  *topic
	want   rowCounts
	groups int
}

// newGroup names a consumer group that has no offsets yet.
func (d *drain) newGroup() string {
	d.groups++
	return fmt.Sprintf("%s-%d", d.topic.cfg.TopicPrefix, d.groups)
}

func (d *drain) sluice(ctx context.Context) (took time.Duration, err error) {
	group := d.newGroup()
	if err := d.system.child(
		"consume", "--clickhouse-url", d.system.clickhouseURL(sluiceDatabase), "--kafka-brokers", strings.Join(d.system.Brokers(), ","),
		"--kafka-topic", d.topic.cfg.TopicPrefix, "--kafka-group", group, "--metrics-listen", "",
	); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.system.stopChild("consume")) }()
	return d.wait(ctx, group, sluiceDatabase)
}

// engineBest returns the shortest time of the settings, and which it was.
func (d *drain) engineBest(ctx context.Context) (best time.Duration, with engineSetting, err error) {
	for _, setting := range engineSettings() {
		var took time.Duration
		for attempt := 1; ; attempt++ {
			if took, err = d.engine(ctx, setting); err == nil {
				break
			}
			if attempt == drainAttemptsMax || !errors.Is(err, workload.ErrDifferent) {
				return 0, with, fmt.Errorf("%s: attempt %d: %w", setting, attempt, err)
			}
			d.system.log.Warn("kafka engine left other rows than the topic has, and drains it again", "setting", setting.String(), "error", err)
		}
		d.system.log.Info("kafka engine drained the topic", "setting", setting.String(), "duration", took)
		if best == 0 || took < best {
			best, with = took, setting
		}
	}
	return best, with, nil
}

func (d *drain) engine(ctx context.Context, setting engineSetting) (took time.Duration, err error) {
	_, drop, err := emptyDatabase(ctx, d.system, engineDatabase)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, drop()) }()
	group := d.newGroup()
	statements := append([]string{d.queue(group, setting)}, views(d.want.embeddings > 0)...)
	// Consuming begins with the first view: it must not have the queue before
	// the others are there.
	slices.Reverse(statements[1:])
	for _, sql := range statements {
		if _, err := d.system.Query(ctx, engineDatabase, sql); err != nil {
			return 0, err
		}
	}
	if took, err = d.wait(ctx, group, engineDatabase); err != nil {
		return 0, err
	}
	return took, d.compare(ctx)
}

// wait returns the time from the group's forming until all rows are visible. It
// returns [workload.ErrDifferent] if the group has committed the whole topic and
// the tables have other rows.
func (d *drain) wait(ctx context.Context, group, database string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	admin := kadm.NewClient(d.topic.client)
	var state string
	if err := poll(ctx, func() (bool, error) {
		groups, err := admin.DescribeGroups(ctx, group)
		if err != nil {
			return false, err
		}
		state = groups[group].State
		return state == "Stable", nil
	}); err != nil {
		return 0, fmt.Errorf("wait for the consumer group %s, which is in state %q: %w", group, state, err)
	}
	begun := time.Now()
	var committed int64
	var rows string
	if err := poll(ctx, func() (bool, error) {
		// Offsets are committed after their rows are inserted, so they are read first.
		var err error
		if committed, err = d.committed(ctx, admin, group); err != nil {
			return false, err
		}
		if rows, err = d.system.Query(ctx, database, countRows); err != nil || rows == d.want.String() {
			return err == nil, err
		}
		if committed >= int64(d.want.events) {
			return false, workload.ErrDifferent
		}
		return false, nil
	}); err != nil {
		return 0, fmt.Errorf("wait for %q rows, have %q, and %d of %d records committed: %w", d.want, rows, committed, d.want.events, err)
	}
	return time.Since(begun), nil
}

// committed returns how many of the topic's records the group has committed.
func (d *drain) committed(ctx context.Context, admin *kadm.Client, group string) (n int64, err error) {
	offsets, err := admin.FetchOffsetsForTopics(ctx, group, d.topic.cfg.EventsTopic())
	if err == nil {
		err = offsets.Error()
	}
	offsets.Each(func(o kadm.OffsetResponse) { n += max(o.At, 0) })
	return n, err
}

// compare checks that both have left the same rows.
func (d *drain) compare(ctx context.Context) error {
	for _, table := range []string{"events", "event_contents", "event_embeddings"} {
		var sums [2]string
		for i, database := range []string{sluiceDatabase, engineDatabase} {
			var err error
			sums[i], err = d.system.Query(ctx, database, "SELECT count(), groupBitXor(sipHash64(toString(tuple(*)))) FROM "+table)
			if err != nil {
				return err
			}
		}
		if sums[0] != sums[1] {
			return fmt.Errorf("%w: %s has %q of Sluice, %q of the Kafka engine", workload.ErrDifferent, table, sums[0], sums[1])
		}
	}
	return nil
}

// engineSchema is record/write.proto, as much of it as a create without an alias has.
const engineSchema = `syntax = "proto3";
message Write {
  bytes id = 2;
  string conversation_id = 5;
  string event_name = 7;
  bytes metadata = 8;
  optional string error = 9;
  optional double latency = 10;
  Content input = 11;
  Content output = 12;
  repeated float input_embeddings = 13;
  repeated float output_embeddings = 14;
}
message Content {
  uint32 kind = 1;
  bytes data = 2;
}`

func (d *drain) queue(group string, setting engineSetting) string {
	embeddings := ""
	if d.want.embeddings > 0 {
		embeddings = "input_embeddings Array(Float32), output_embeddings Array(Float32),"
	}
	return fmt.Sprintf(`CREATE TABLE queue
(
    id String,
    conversation_id String,
    event_name String,
    metadata String,
    error Nullable(String),
    latency Nullable(Float64),
    %s
    input Tuple(kind UInt8, data String),
    output Tuple(kind UInt8, data String)
)
ENGINE = Kafka
SETTINGS
    kafka_broker_list = '%s', kafka_topic_list = '%s', kafka_group_name = '%s',
    kafka_format = 'ProtobufSingle', format_schema_source = 'string', format_schema = '%s', format_schema_message_name = 'Write',
    kafka_num_consumers = %d, kafka_thread_per_consumer = 1,
    kafka_max_block_size = %d, kafka_poll_max_batch_size = %[7]d, kafka_flush_interval_ms = %[8]d, kafka_poll_timeout_ms = 50`,
		embeddings, strings.Join(d.system.Brokers(), ","), d.topic.cfg.EventsTopic(), group, engineSchema,
		setting.consumers, setting.blockRows, setting.flushMillis)
}

// views turn the queue's columns into the rows of the tables, that of the
// events last. See [event.ID] and [event.MakeVersion] for what they compute.
func views(embeddings bool) []string {
	const with = `
WITH
    reverse(substring(id, 1, 8)) AS high_bytes,
    reverse(substring(id, 9, 8)) AS low_bytes,
    reinterpretAsUInt64(high_bytes) AS high,
    bitOr(bitShiftLeft(toUInt64(1), 48), _offset) AS position
SELECT
    toUInt32(bitAnd(bitShiftRight(reinterpretAsUInt64(low_bytes), 38), 0xFFFFFF)) AS conversation_hash,
    fromUnixTimestamp64Micro(toInt64(bitShiftRight(high, 16) * 1000 + bitAnd(high, 0x3FF)), 'UTC') AS timestamp,
    reinterpretAsUUID(concat(high_bytes, low_bytes)) AS uuid,
    bitXor(position, 0x3FFFFFFFFFFFFFFF) AS version,
    0 AS deleted,
    `
	// The column id is the bytes, so the UUID gets its name outside.
	wide := func(name, table, columns, outer, items, condition string) string {
		return "CREATE MATERIALIZED VIEW " + name + " TO " + table + " AS SELECT conversation_hash, timestamp, uuid AS id, version, deleted, " + outer +
			" FROM (" + with + columns + " FROM queue " + items + " WHERE " + condition + ")"
	}
	all := []string{
		wide("to_events", "events",
			"conversation_id, event_name, error, latency, metadata, position AS created",
			"conversation_id, event_name, error, latency, metadata, created, '' AS alias", "", "1"),
		wide("to_contents", "event_contents",
			"item.1 AS field, item.2 AS kind, item.3 AS content", "CAST(field, 'Enum8(\\'input\\' = 1, \\'output\\' = 2)') AS field, kind, content",
			"ARRAY JOIN [(1, input.kind, input.data), (2, output.kind, output.data)] AS item", "item.2 != 0"),
	}
	if embeddings {
		all = append(all, wide("to_embeddings", "event_embeddings",
			"item.1 AS field, item.2 AS vector", "CAST(field, 'Enum8(\\'input\\' = 1, \\'output\\' = 2)') AS field, vector",
			"ARRAY JOIN [(1, input_embeddings), (2, output_embeddings)] AS item", "notEmpty(item.2)"))
	}
	return all
}
