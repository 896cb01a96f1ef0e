package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// fenceInterval is the pause between two looks at the topics.
	fenceInterval = 2 * time.Second
	// fenceLease is how long writes may be acknowledged after the beginning of a
	// look that found no later generation.
	fenceLease = 5 * time.Second
	// FenceWait is how long after the topic of a generation was made the last
	// write to an earlier generation may be acknowledged: fenceLease, and what
	// brokers may need to learn of a new topic.
	FenceWait = fenceLease + 3*time.Second
	// GenerationsAhead is how many generations after its own a [Fence] looks for.
	GenerationsAhead = 16
)

// Fence says whether writes to an events topic may still be acknowledged. They may
// not once the topic of a later generation exists, because no consumer needs to
// apply the earlier generation any more. They may not either if the topic was
// deleted and created again.
//
// An answer holds for fenceLease. A producer with a fence asks it after the brokers
// have acknowledged a write and before the caller hears of it, even if the process
// was suspended in between. So a process that begins a generation creates the
// topic, waits for [FenceWait], and then finds every acknowledged write of the
// earlier generations before the ends of their topics.
//
// A Fence is safe for concurrent use. Close it with [Fence.Close].
type Fence struct {
	topic   string
	topicID string
	later   []string // the topics of the generations after it
	number  int
	cl      *kgo.Client
	log     *slog.Logger

	// base is when the fence was made.
	base time.Time
	// until and untilWall say until when the last look holds; the earlier one
	// counts. until is the time since base, which stands still while the machine is
	// suspended. untilWall is a Unix time, which may be set. Both are nanoseconds.
	until, untilWall atomic.Int64
	// looking is held by the one look under way.
	looking chan struct{}
	stopped atomic.Pointer[error]
	closed  chan struct{} // when stopped is set
	blind   atomic.Bool   // it has warned that it cannot look
}

// NewFence returns a fence for the events topic of cfg, which should have the
// TopicID. It does not connect.
func NewFence(cfg Config, log *slog.Logger) (*Fence, error) {
	cfg = cfg.WithDefaults()
	cl, err := newClient(&cfg, log, clientMetrics(&cfg, "fence"))
	if err != nil {
		return nil, err
	}
	f := &Fence{
		topic: cfg.EventsTopic(), topicID: cfg.TopicID, number: cfg.Generation, cl: cl, log: log,
		base: time.Now(), looking: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	for n := cfg.Generation + 1; n <= min(cfg.Generation+GenerationsAhead, event.GenerationMax); n++ {
		c := cfg
		c.Generation = n
		f.later = append(f.later, c.EventsTopic())
	}
	return f, nil
}

// Run looks at the topics every two seconds until ctx ends.
func (f *Fence) Run(ctx context.Context) error {
	for failing := false; ctx.Err() == nil && f.Err() == nil; {
		bounded, cancel := context.WithTimeout(ctx, requestTimeout)
		err := f.look(bounded)
		cancel()
		if failed := err != nil && f.Err() == nil && ctx.Err() == nil; failed != failing {
			if failing = failed; failed {
				f.log.Warn("cannot look for later generations; writes are acknowledged only if that succeeds", "topic", f.topic, "error", err)
			} else {
				f.log.Info("later generations are looked for again", "topic", f.topic)
			}
		}
		select {
		case <-time.After(fenceInterval):
		case <-f.closed:
		case <-ctx.Done():
		}
	}
	<-ctx.Done()
	return nil
}

// Stop ends the acknowledging of writes, for a reason that the fence cannot see by
// itself. The first reason counts and is logged.
func (f *Fence) Stop(reason error) {
	reason = fmt.Errorf("%w: %w", event.ErrWritesStopped, reason)
	if f.stopped.CompareAndSwap(nil, &reason) {
		close(f.closed)
		f.log.Error("this process takes no more writes; it still serves reads, until it is stopped", "topic", f.topic, "error", reason)
	}
}

// Err returns why no write is acknowledged any more, which is final and wraps
// [event.ErrWritesStopped]. It returns nil as long as there is no reason.
func (f *Fence) Err() error {
	if reason := f.stopped.Load(); reason != nil {
		return *reason
	}
	return nil
}

// Allow returns nil if a write that the brokers have acknowledged may be
// acknowledged to its caller. If the last look does not hold any more, Allow looks
// again, until ctx ends.
func (f *Fence) Allow(ctx context.Context) error {
	for {
		if err := f.Err(); err != nil {
			return err
		}
		now := time.Now()
		if now.Sub(f.base) < time.Duration(f.until.Load()) && now.UnixNano() < f.untilWall.Load() {
			return nil
		}
		if err := f.look(ctx); err != nil {
			return err
		}
	}
}

// look asks the brokers for the topics once. If another look is under way, it waits
// for that one.
func (f *Fence) look(ctx context.Context) error {
	since := time.Since(f.base)
	select {
	case f.looking <- struct{}{}:
		defer func() { <-f.looking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if time.Duration(f.until.Load()) >= since+fenceLease {
		return nil // another look has begun since
	}
	begun := time.Now()
	over, err := f.find(ctx)
	switch {
	case err != nil:
		return err
	case over != nil:
		f.Stop(over)
		return f.Err()
	}
	f.untilWall.Store(begun.Add(fenceLease).UnixNano())
	f.until.Store(int64(begun.Sub(f.base) + fenceLease))
	return nil
}

// find asks the brokers, not the client's cache. over is why no write may be
// acknowledged any more, nil if there is no reason. err says that the brokers gave
// no answer.
func (f *Fence) find(ctx context.Context) (over, err error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range append([]string{f.topic}, f.later...) {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = &name
		req.Topics = append(req.Topics, topic)
	}
	resp, err := req.RequestWith(ctx, f.cl)
	if err != nil {
		return nil, fmt.Errorf("read the topics after %s: %w", f.topic, err)
	}
	last := 0
	for i := range resp.Topics {
		topic := &resp.Topics[i]
		if topic.Topic == nil {
			continue
		}
		answer := kerr.ErrorForCode(topic.ErrorCode)
		switch {
		case *topic.Topic == f.topic:
			err = answer
			if id := kadm.TopicID(topic.TopicID).String(); answer == nil && f.topicID != "" && id != f.topicID {
				over = fmt.Errorf("%w: %s has the id %s, expected %s: it was made anew", ErrTopicMismatch, f.topic, id, f.topicID)
			}
		case errors.Is(answer, kerr.UnknownTopicOrPartition):
		case errors.Is(answer, kerr.TopicAuthorizationFailed):
			if !f.blind.Swap(true) {
				f.log.Warn("the brokers do not let this process see the topics of later generations, so it would not notice one; allow it to describe all topics of the prefix",
					"topic", *topic.Topic)
			}
		default:
			last = max(last, f.number+slices.Index(f.later, *topic.Topic)+1)
		}
	}
	switch {
	case last > 0:
		return GenerationOver(f.number, last), nil
	case over != nil:
		return over, nil
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.TopicAuthorizationFailed):
		return nil, fmt.Errorf("read topic %s: %w", f.topic, err)
	}
	return nil, nil // a topic without a leader is there all the same
}

// CheckGeneration returns an error that wraps [ErrGenerationOver] if a later
// generation has begun, that is, if its topic exists.
func CheckGeneration(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg.TopicID, cfg.ClientMetrics = "", nil
	f, err := NewFence(cfg, log)
	if err != nil {
		return err
	}
	defer f.Close()
	over, err := f.find(ctx)
	if over == nil && errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil // its own topic is yet to be made
	}
	return errors.Join(over, err)
}

// GenerationOver returns the error for a write to a generation after a later one has
// begun. It wraps [ErrGenerationOver].
func GenerationOver(generation, last int) error {
	return fmt.Errorf("generation %d: %w; give --kafka-generation=%s", generation, ErrGenerationOver, strconv.Itoa(last))
}

// Close closes the fence's connections.
func (f *Fence) Close() { f.cl.Close() }
