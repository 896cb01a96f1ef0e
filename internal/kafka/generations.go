package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/sluicehq/sluice/internal/event"
)

// Generation is an events topic that exists.
type Generation struct {
	Number int
	Topic  string
	// Pending is the number of its records that the group has not committed.
	Pending int64
	// Used says that something was written to it at some time.
	Used bool
}

// Generations returns all events topics under the prefix, the oldest first. It
// ignores the generation and the partitions of cfg.
func Generations(ctx context.Context, cfg Config, log *slog.Logger) ([]Generation, error) {
	cl, err := newClient(&cfg, log)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	topics, err := adm.ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var generations []Generation
	for _, topic := range topics.Names() {
		digits, ok := strings.CutPrefix(topic, cfg.TopicPrefix+".g")
		n, err := strconv.Atoi(digits)
		if !ok || err != nil || n < 1 || n > event.GenerationMax || strconv.Itoa(n) != digits || topics[topic].Err != nil {
			continue
		}
		partitions, err := readOffsets(ctx, adm, cfg.Group, topic)
		if err != nil {
			return nil, err
		}
		g := Generation{Number: n, Topic: topic}
		for _, p := range partitions {
			g.Pending += p.End - max(p.First, p.Committed)
			g.Used = g.Used || p.End > 0
		}
		generations = append(generations, g)
	}
	slices.SortFunc(generations, func(a, b Generation) int { return cmp.Compare(a.Number, b.Number) })
	return generations, nil
}

// Untouched reports whether the brokers show no trace of an installation under
// the prefix: no topic of events or dead letters, and no commits of the group.
func Untouched(ctx context.Context, cfg Config, log *slog.Logger) (bool, error) {
	generations, err := Generations(ctx, cfg, log)
	if err != nil || len(generations) > 0 {
		return false, err
	}
	cfg = cfg.WithDefaults()
	cl, err := newClient(&cfg, log)
	if err != nil {
		return false, err
	}
	defer cl.Close()
	adm, letters := kadm.NewClient(cl), cfg.DeadLetterTopic()
	topics, err := adm.ListTopics(ctx, letters)
	if err != nil {
		return false, fmt.Errorf("read topic %s: %w", letters, err)
	}
	if err := topics[letters].Err; !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return false, err
	}
	commits, err := adm.FetchOffsets(ctx, cfg.Group)
	if err == nil {
		err = commits.Error()
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return false, fmt.Errorf("read the commits of group %s: %w", cfg.Group, err)
	}
	for topic := range commits {
		if strings.HasPrefix(topic, cfg.TopicPrefix+".g") {
			return false, nil
		}
	}
	return true, nil
}

const (
	// drainPatience is how long [BeginGeneration] waits for the consumers of
	// earlier generations while they apply nothing.
	drainPatience = 5 * time.Second
	drainInterval = 250 * time.Millisecond
)

// BeginGeneration creates the topics of the configured generation and returns when
// the generation may be written and applied: no process acknowledges writes to an
// earlier generation any more, and everything acknowledged there is applied.
// Several processes may call it, and it may be called again after an error.
//
// The new topic tells the processes of earlier generations to stop; see [Fence].
// It is created if the earlier generations are applied or have consumers that
// apply them. Otherwise nothing is created, and the error wraps [ErrNotDrained].
// The error also wraps it, with the topic created, if these consumers have
// applied nothing for 5 s.
//
// BeginGeneration waits for [FenceWait], unless there is no earlier topic.
func BeginGeneration(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg = cfg.WithDefaults()
	pending, err := earlierGenerations(ctx, cfg, log)
	if err != nil {
		return err
	}
	if pending.records > 0 {
		members, err := groupMembers(ctx, cfg, log)
		if err != nil {
			return err
		}
		if members == 0 {
			return pending.err(&cfg)
		}
	}
	if _, err := EnsureTopics(ctx, cfg, log); err != nil || !pending.topics {
		return err
	}
	log.Info("a topic generation begins, once no process acknowledges writes to earlier ones, and these are applied",
		"generation", cfg.Generation, "wait", FenceWait)
	if !pause(ctx, FenceWait) {
		return ctx.Err()
	}
	least, since := int64(-1), time.Now()
	for {
		if pending, err = earlierGenerations(ctx, cfg, log); err != nil {
			return err
		}
		if pending.records == 0 {
			return nil
		}
		if least < 0 || pending.records < least {
			least, since = pending.records, time.Now()
		}
		if time.Since(since) > drainPatience {
			return pending.err(&cfg)
		}
		if !pause(ctx, drainInterval) {
			return errors.Join(pending.err(&cfg), ctx.Err())
		}
	}
}

// undrained describes the records of earlier generations that are not applied.
type undrained struct {
	topics  bool // whether there are earlier topics
	records int64
	in      []string // the topics that have them
}

func (u *undrained) err(cfg *Config) error {
	return fmt.Errorf("generation %d: %w: group %q has not applied %d records of %s; consumers of that generation do, and an API that was left on it may have written them",
		cfg.Generation, ErrNotDrained, cfg.Group, u.records, strings.Join(u.in, ", "))
}

func earlierGenerations(ctx context.Context, cfg Config, log *slog.Logger) (u undrained, err error) {
	generations, err := Generations(ctx, cfg, log)
	if err != nil {
		return u, err
	}
	last := 0
	for _, g := range generations {
		if g.Number > cfg.Generation {
			return u, GenerationOver(cfg.Generation, generations[len(generations)-1].Number)
		}
		if g.Number == cfg.Generation {
			continue
		}
		u.topics, last = true, g.Number
		if g.Pending > 0 {
			u.records += g.Pending
			u.in = append(u.in, g.Topic)
		}
	}
	if u.topics && cfg.Generation-last > GenerationsAhead {
		return u, fmt.Errorf("%w: %d is there, and processes on it look for generations up to %d; %d was asked for",
			ErrGenerationGap, last, last+GenerationsAhead, cfg.Generation)
	}
	return u, nil
}

// groupMembers is the number of consumers in the group.
func groupMembers(ctx context.Context, cfg Config, log *slog.Logger) (int, error) {
	cl, err := newClient(&cfg, log)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	return members(ctx, kadm.NewClient(cl), cfg.Group)
}
