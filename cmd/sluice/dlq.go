package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
)

// replayBatch is how many dead letters are replayed at a time.
const replayBatch = 500

type dlqCmd struct {
	List   dlqListCmd   `cmd:"" help:"List dead letters, a JSON object each: why, from where, since when. Not what is in them."`
	Replay dlqReplayCmd `cmd:"" help:"Send dead letters to the events topic again, as new writes. Those that are still refused come back."`
}

// dlqSelection picks dead letters.
type dlqSelection struct {
	From   int64  `help:"First dead letter, by its number." default:"0"`
	Reason string `help:"Only those with this reason, such as unknown_event." placeholder:"REASON"`
	Limit  int    `help:"Most dead letters; 0 for all there are now." default:"0"`
}

func (s *dlqSelection) each(ctx context.Context, letters *kafka.DeadLetters, fn func(kafka.StoredLetter) error) error {
	n := 0
	return letters.Read(ctx, s.From, func(l kafka.StoredLetter) error {
		if s.Reason != "" && l.Letter.Reason != event.Code(s.Reason) || s.Limit > 0 && n >= s.Limit {
			return nil
		}
		n++
		return fn(l)
	})
}

type dlqListCmd struct {
	brokerFlags
	dlqSelection
}

// Run lists dead letters.
func (c *dlqListCmd) Run(ctx context.Context, e *env) error {
	letters, err := c.open(e)
	if err != nil {
		return err
	}
	defer letters.Close()
	out := json.NewEncoder(e.stdout)
	return c.each(ctx, letters, func(l kafka.StoredLetter) error {
		return out.Encode(struct {
			Number  int64      `json:"number"`
			Time    time.Time  `json:"time"`
			Reason  event.Code `json:"reason"`
			Detail  string     `json:"detail"`
			ID      string     `json:"id"`
			Receipt string     `json:"receipt"`
			Bytes   int        `json:"bytes"`
		}{
			l.Seq, l.At, l.Letter.Reason, l.Letter.Detail, string(l.Letter.Record.Key),
			l.Letter.Record.Receipt().String(), len(l.Letter.Record.Value),
		})
	})
}

type dlqReplayCmd struct {
	brokerFlags
	dlqSelection
}

// Run replays dead letters.
func (c *dlqReplayCmd) Run(ctx context.Context, e *env) error {
	letters, err := c.open(e)
	if err != nil {
		return err
	}
	defer letters.Close()
	cfg, err := c.config()
	if err != nil {
		return err
	}
	generations, err := kafka.Generations(ctx, cfg, e.log)
	if err != nil {
		return err
	}
	if n := len(generations); n > 0 && generations[n-1].Number > cfg.Generation {
		return generationOver(cfg.Generation, generations[n-1].Number)
	}
	topics, err := kafka.FindTopics(ctx, cfg, e.log)
	if err != nil {
		return err
	}
	cfg.Partitions = topics.Partitions
	producer, err := kafka.NewProducer(cfg, e.log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	defer func() {
		if err := closing(ctx, producer.Close); err != nil {
			e.log.Warn("producer not closed", "error", err)
		}
	}()
	var batch []event.DeadLetter
	replayed := 0
	flush := func() error {
		for i, ack := range producer.Replay(ctx, batch) {
			if ack.Err != nil {
				return fmt.Errorf("replay %s: %w", batch[i].Record.Receipt(), ack.Err)
			}
			replayed++
		}
		batch = batch[:0]
		return nil
	}
	err = c.each(ctx, letters, func(l kafka.StoredLetter) error {
		batch = append(batch, l.Letter)
		if len(batch) < replayBatch {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if _, printErr := fmt.Fprintf(e.stdout, "replayed %d dead letters\n", replayed); err == nil {
		err = printErr
	}
	return err
}

// open connects to the dead-letter topic.
func (f *brokerFlags) open(e *env) (*kafka.DeadLetters, error) {
	cfg, err := f.config()
	if err != nil {
		return nil, err
	}
	return kafka.NewDeadLetters(cfg, e.log)
}
