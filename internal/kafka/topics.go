package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

const (
	// settleTimeout bounds how long a new topic may take to have its leaders.
	settleTimeout = 15 * time.Second
	// requestTimeout bounds one question to the brokers.
	requestTimeout = 5 * time.Second
)

// TopicInfo describes the events topic, as the brokers have it.
type TopicInfo struct {
	Topic      string
	Generation int
	// ID is the topic's own, which changes when a topic is deleted and made
	// again under the same name.
	ID                string
	Partitions        int
	ReplicationFactor int
	DeadLetterTopic   string
}

type topicSpec struct {
	name string
	// partitions is 0 for any number, partitionsNew that of a new topic.
	partitions, partitionsNew int
	retention                 time.Duration
	bytesMax                  int
}

// topicSpecs are those of the events and the dead letters.
func (c *Config) topicSpecs() (events, letters topicSpec) {
	events = topicSpec{c.EventsTopic(), c.Partitions, c.Partitions, c.Retention, topicBytesMax}
	events.partitionsNew = cmp.Or(events.partitionsNew, c.PartitionsNew)
	return events, topicSpec{c.DeadLetterTopic(), 1, 1, c.DeadLetterRetention, deadLetterBytesMax}
}

// EnsureTopics creates the topics that do not exist, and checks those that do.
// Several processes may call it at once. The error wraps [ErrTopicMismatch] if a
// topic has other partitions, timestamps, another clean-up policy or a shorter
// longest record than required.
func EnsureTopics(ctx context.Context, cfg Config, log *slog.Logger) (TopicInfo, error) {
	cl, err := newClient(&cfg, log)
	if err != nil {
		return TopicInfo{}, err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	events, letters := cfg.topicSpecs()
	for _, spec := range []topicSpec{events, letters} {
		if err := createTopic(ctx, adm, spec, cfg.ReplicationFactor); err != nil {
			return TopicInfo{}, fmt.Errorf("create topic %s: %w", spec.name, err)
		}
	}
	return findTopics(ctx, &cfg, adm)
}

// errPartitionsUnknown is the error of a client that needs the number of partitions.
var errPartitionsUnknown = errors.New("partitions: required; EnsureTopics and FindTopics tell it")

// FindTopics is [EnsureTopics], but creates nothing.
func FindTopics(ctx context.Context, cfg Config, log *slog.Logger) (TopicInfo, error) {
	cl, err := newClient(&cfg, log)
	if err != nil {
		return TopicInfo{}, err
	}
	defer cl.Close()
	return findTopics(ctx, &cfg, kadm.NewClient(cl))
}

func findTopics(ctx context.Context, cfg *Config, adm *kadm.Client) (TopicInfo, error) {
	events, letters := cfg.topicSpecs()
	detail, err := checkTopic(ctx, adm, events)
	if err == nil {
		_, err = checkTopic(ctx, adm, letters)
	}
	if err != nil {
		return TopicInfo{}, err
	}
	return TopicInfo{
		Topic: events.name, Generation: cfg.Generation, ID: detail.ID.String(),
		Partitions: len(detail.Partitions), ReplicationFactor: detail.Partitions.NumReplicas(),
		DeadLetterTopic: letters.name,
	}, nil
}

// CheckCommits checks that the events topic still has every offset that the
// consumer group has committed. Otherwise the error wraps [ErrDataLoss]: new
// writes would get offsets, and so versions, that other writes had before.
func CheckCommits(ctx context.Context, cfg Config, log *slog.Logger) error {
	cl, err := newClient(&cfg, log)
	if err != nil {
		return err
	}
	defer cl.Close()
	topic := cfg.EventsTopic()
	partitions, err := readOffsets(ctx, kadm.NewClient(cl), cfg.Group, topic)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range partitions {
		if p.Committed > p.End {
			errs = append(errs, lostError(topic, p.Partition, "group %q is at offset %d and the log ends at %d", cfg.Group, p.Committed, p.End))
		}
	}
	return errors.Join(errs...)
}

func createTopic(ctx context.Context, adm *kadm.Client, spec topicSpec, replicas int) error {
	details, err := adm.ListTopics(ctx, spec.name)
	if err != nil {
		return err
	}
	if d := details[spec.name]; d.Err == nil {
		return nil
	} else if !errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
		return d.Err
	}
	if replicas == 0 {
		replicas = 1
		brokers, err := adm.ListBrokers(ctx)
		if err != nil {
			return fmt.Errorf("list brokers: %w", err)
		}
		if len(brokers) >= 3 {
			replicas = 3
		}
	}
	// With three replicas a write is on two machines before it is acknowledged,
	// and one machine may be down.
	insync := max(1, replicas-1)
	configs := map[string]*string{
		"cleanup.policy":         kadm.StringPtr("delete"),
		"retention.ms":           kadm.StringPtr(strconv.FormatInt(spec.retention.Milliseconds(), 10)),
		"message.timestamp.type": kadm.StringPtr("LogAppendTime"),
		"max.message.bytes":      kadm.StringPtr(strconv.Itoa(spec.bytesMax)),
		"min.insync.replicas":    kadm.StringPtr(strconv.Itoa(insync)),
	}
	_, err = adm.CreateTopic(ctx, int32(spec.partitionsNew), int16(replicas), configs, spec.name)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return err
	}
	return nil
}

// checkTopic waits until the topic has its leaders, and checks it.
func checkTopic(ctx context.Context, adm *kadm.Client, spec topicSpec) (kadm.TopicDetail, error) {
	detail, err := settle(ctx, adm, spec.name)
	if err != nil {
		return detail, fmt.Errorf("describe topic %s: %w", spec.name, err)
	}
	if n := len(detail.Partitions); spec.partitions != 0 && n != spec.partitions {
		return detail, fmt.Errorf("%w: %s has %d partitions, expected %d: the order of an event's writes depends on their number",
			ErrTopicMismatch, spec.name, n, spec.partitions)
	}
	described, err := adm.DescribeTopicConfigs(ctx, spec.name)
	if err != nil {
		return detail, fmt.Errorf("describe configs of topic %s: %w", spec.name, err)
	}
	rc, err := described.On(spec.name, nil)
	if err == nil {
		err = rc.Err
	}
	if err != nil {
		return detail, fmt.Errorf("describe configs of topic %s: %w", spec.name, err)
	}
	values := make(map[string]string)
	for _, c := range rc.Configs {
		values[c.Key] = c.MaybeValue()
	}
	var errs []error
	for key, want := range map[string]string{"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete"} {
		if got := values[key]; got != want {
			errs = append(errs, fmt.Errorf("%w: %s has %s=%s, must be %s", ErrTopicMismatch, spec.name, key, got, want))
		}
	}
	if n, err := strconv.Atoi(values["max.message.bytes"]); err != nil || n < spec.bytesMax {
		errs = append(errs, fmt.Errorf("%w: %s has max.message.bytes=%s, must be at least %d",
			ErrTopicMismatch, spec.name, values["max.message.bytes"], spec.bytesMax))
	}
	return detail, errors.Join(errs...)
}

// settle reads the topic until every partition has a leader. The brokers learn
// of a new topic one after the other.
func settle(ctx context.Context, adm *kadm.Client, topic string) (kadm.TopicDetail, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for {
		details, err := adm.ListTopics(ctx, topic)
		if err != nil {
			return kadm.TopicDetail{}, err
		}
		d := details[topic]
		err = d.Err
		for _, p := range d.Partitions {
			if err == nil && p.Leader < 0 {
				err = fmt.Errorf("partition %d has no leader", p.Partition)
			}
			if err == nil {
				err = p.Err
			}
		}
		if err == nil && len(d.Partitions) > 0 {
			return d, nil
		}
		if !pause(ctx, 50*time.Millisecond) {
			return d, errors.Join(err, ctx.Err())
		}
	}
}

// pause waits for d. It reports false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
