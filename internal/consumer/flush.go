package consumer

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fault"
	"github.com/sluicehq/sluice/internal/record"
)

// Steps of a flush, as the log and the metrics name them.
const (
	stepLookup = "look up rows"
	stepSend   = "send dead letters"
	stepInsert = "insert rows"
	stepCommit = "commit offsets"
)

// flush applies the batch: dead letters, then rows, then the offsets. Each step
// is tried until it succeeds; the only error is that of ctx.
func (c *Consumer) flush(ctx context.Context, b *batch) error {
	start := time.Now()
	clear(c.sent)
	c.refused.begin()
	if err := c.refuse(ctx, b.poison); err != nil {
		return err
	}
	if err := c.apply(ctx, b.items); err != nil {
		return err
	}
	if err := c.saveRefusals(ctx); err != nil {
		return err
	}
	fault.Point(fault.Inserted)
	if err := c.try(ctx, stepCommit, func() error { return c.source.Commit(ctx, b.next) }); err != nil {
		return err
	}
	fault.Point(fault.Committed)
	c.metrics.flushed(b, start, c.cache.Bytes())
	return nil
}

// apply writes the rows of the items. Records that the fold refuses go to the dead
// letters before any row is written; otherwise a delete among the rows would make a
// replay take a refused update before it for one without effect. Where the database
// refuses the data itself, apply halves the items until the one record at fault is
// found. Where the rows to look up are too large for the memory, it halves the items
// until they are not.
func (c *Consumer) apply(ctx context.Context, items []item) error {
	if len(items) == 0 {
		return nil
	}
	var tooLarge bool
	err := c.try(ctx, stepLookup, func() error {
		err := c.resolve(ctx, items)
		if tooLarge = len(items) > 1 && errors.Is(err, event.ErrQueryTooLarge); tooLarge {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	if tooLarge {
		return c.applyHalves(ctx, items)
	}
	if err := c.refuse(ctx, c.fold.refused); err != nil {
		return err
	}
	fault.Point(fault.Refused)
	rows := &c.fold.rows
	if c.fold.afterRefusal {
		if err := c.saveRefusals(ctx); err != nil {
			return err
		}
	}
	if rows.Len() > 0 {
		insertStart := time.Now()
		var rejected error
		err := c.try(ctx, stepInsert, func() error {
			err := c.store.Insert(ctx, rows)
			if errors.Is(err, event.ErrRejected) {
				rejected, err = err, nil
			}
			return err
		})
		if err != nil {
			return err
		}
		if rejected != nil {
			return c.bisect(ctx, items, rejected)
		}
		c.metrics.inserted(rows, insertStart)
	}
	c.cacheRows()
	c.metrics.noEffect.Add(float64(c.fold.noEffect))
	return nil
}

// bisect finds the record that the database refuses.
func (c *Consumer) bisect(ctx context.Context, items []item, cause error) error {
	if len(items) == 1 {
		c.log.Error("record rejected by the database", "partition", items[0].record.Partition,
			"offset", items[0].record.Offset, "error", cause)
		if err := c.markRefused(ctx, &items[0]); err != nil {
			return err
		}
		return c.refuse(ctx, []record.DeadLetter{{
			Record: *items[0].record, Reason: event.CodeRejectedByStore,
			Detail: "the database refused the row of this record",
		}})
	}
	return c.applyHalves(ctx, items)
}

// applyHalves applies the items in two steps, in log order.
func (c *Consumer) applyHalves(ctx context.Context, items []item) error {
	half := len(items) / 2
	if err := c.apply(ctx, items[:half]); err != nil {
		return err
	}
	return c.apply(ctx, items[half:])
}

// refuse sends those of the letters that this flush has not sent yet.
func (c *Consumer) refuse(ctx context.Context, letters []record.DeadLetter) error {
	letters = slices.DeleteFunc(letters, func(l record.DeadLetter) bool {
		_, ok := c.sent[l.Record.Receipt()]
		return ok
	})
	if len(letters) == 0 {
		return nil
	}
	if err := c.try(ctx, stepSend, func() error { return c.letters.Send(ctx, letters) }); err != nil {
		return err
	}
	for _, l := range letters {
		c.sent[l.Record.Receipt()] = struct{}{}
		c.metrics.deadLetters.WithLabelValues(string(l.Reason)).Inc()
	}
	return nil
}

// try calls step until it succeeds or ctx ends, with a growing pause between
// the tries, and no fetching meanwhile. Its only error is that of ctx: any other
// would leave a batch behind that the next one's commit passes over.
func (c *Consumer) try(ctx context.Context, what string, step func() error) error {
	for delay, tries := c.cfg.RetryDelayMin, 1; ; tries++ {
		err := step()
		if err == nil {
			if tries > 1 {
				c.source.Resume()
				c.log.Info("step succeeded after retries", "step", what, "tries", tries)
			}
			return nil
		}
		if ctx.Err() != nil {
			if tries > 1 {
				c.source.Resume()
			}
			return ctx.Err()
		}
		c.metrics.retries.WithLabelValues(what).Inc()
		c.log.Warn("step did not succeed, trying again", "step", what, "tries", tries, "delay", delay, "error", err)
		if tries == 1 {
			c.source.Pause()
		}
		// Full jitter on the upper half, so that consumers do not return in step.
		pause := time.NewTimer(delay/2 + rand.N(delay/2+1)) //nolint:gosec // jitter needs no secrecy
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
		delay = min(2*delay, c.cfg.RetryDelayMax)
	}
}

func deadLetter(rec *record.Record, err error) record.DeadLetter {
	l := record.DeadLetter{Record: *rec, Reason: event.CodeBadRecord, Detail: err.Error()}
	var e *event.Error
	if errors.As(err, &e) {
		l.Reason = e.Code
	}
	return l
}
