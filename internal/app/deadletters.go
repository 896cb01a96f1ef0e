package app

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
)

// DeadLetters selects dead letters.
type DeadLetters struct {
	// From is the number of the first one.
	From int64
	// Reason is that of all; empty for any.
	Reason event.Code
	// LettersMax is the most that are read; 0 for all there are now.
	LettersMax int
}

// ReadDeadLetters calls fn for each dead letter that is selected, in order, and
// says whether it was replayed. An error of fn ends it.
func ReadDeadLetters(ctx context.Context, cfg kafka.Config, selected DeadLetters, log *slog.Logger, fn func(l kafka.StoredLetter, replayed bool) error) error {
	letters, err := kafka.NewDeadLetters(cfg, log)
	if err != nil {
		return err
	}
	defer letters.Close()
	replayed, err := letters.Replayed(ctx, selected.From)
	if err != nil {
		return err
	}
	n := 0
	return letters.Read(ctx, selected.From, func(l kafka.StoredLetter) error {
		if selected.Reason != "" && l.Letter.Reason != selected.Reason || selected.LettersMax > 0 && n >= selected.LettersMax {
			return nil
		}
		n++
		return fn(l, replayed(l.Seq))
	})
}

// ReplayDeadLetters sends dead letters to the events topic again, and returns
// what became of them: also beside an error, but nil if none was looked at.
func ReplayDeadLetters(ctx context.Context, cfg kafka.Config, options kafka.ReplayOptions, log *slog.Logger) (*kafka.ReplayReport, error) {
	letters, err := kafka.NewDeadLetters(cfg, log)
	if err != nil {
		return nil, err
	}
	defer letters.Close()
	generations, err := kafka.Generations(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	if n := len(generations); n > 0 && generations[n-1].Number > cfg.Generation {
		return nil, kafka.GenerationOver(cfg.Generation, generations[n-1].Number)
	}
	topics, err := kafka.FindTopics(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	cfg.Partitions, cfg.TopicID = topics.Partitions, topics.ID
	// A later generation may begin while letters are sent.
	fence, err := kafka.NewFence(cfg, log)
	if err != nil {
		return nil, err
	}
	defer fence.Close()
	cfg.Producer.Fence = fence
	producer, err := kafka.NewProducer(cfg, log, prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := closing(ctx, producer.Close); err != nil {
			log.Warn("producer not closed", "error", err)
		}
	}()
	report, err := letters.Replay(ctx, producer, options)
	return &report, err
}
