package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/sluicehq/sluice/internal/app"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/record"
)

type dlqCmd struct {
	List   dlqListCmd   `cmd:"" help:"List the dead letters, as a JSON object for each: reason, place in the log, time, but not the contents."`
	Replay dlqReplayCmd `cmd:"" help:"Send the dead letters to the events topic again, as new writes, each letter once. A write that is refused again becomes a new dead letter. An update is held back if a newer update has changed the same fields."`
}

// dlqSelection picks dead letters.
type dlqSelection struct {
	From   int64  `help:"Number of the first dead letter, as \"sluice dlq list\" prints it." default:"0"`
	Reason string `help:"Take only dead letters with this reason, such as unknown_event." placeholder:"REASON"`
	Limit  int    `help:"Maximum number of dead letters. 0 takes all that exist when the command begins." default:"0"`
}

type dlqListCmd struct {
	brokerFlags
	dlqSelection
}

// Run lists dead letters.
func (c *dlqListCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	out := json.NewEncoder(e.stdout)
	selection := app.DeadLetters{From: c.From, Reason: event.Code(c.Reason), LettersMax: c.Limit}
	return app.ReadDeadLetters(ctx, cfg, selection, e.log, func(l kafka.StoredLetter, replayed bool) error {
		return out.Encode(struct {
			Number   int64      `json:"number"`
			Time     time.Time  `json:"time"`
			Reason   event.Code `json:"reason"`
			Detail   string     `json:"detail"`
			ID       string     `json:"id"`
			Receipt  string     `json:"receipt"`
			Last     string     `json:"last_receipt,omitempty"`
			Bytes    int        `json:"bytes"`
			Replayed bool       `json:"replayed"`
		}{
			l.Seq, l.At, l.Letter.Reason, l.Letter.Detail, string(l.Letter.Record.Key),
			l.Letter.Record.Receipt().String(), lastReceipt(&l.Letter), len(l.Letter.Record.Value), replayed,
		})
	})
}

// lastReceipt is the receipt of the last record that the letter stands for, where
// there are several.
func lastReceipt(l *record.DeadLetter) string {
	if l.LastOffset <= l.Record.Offset {
		return ""
	}
	r := l.Record.Receipt()
	r.Offset = l.LastOffset
	return r.String()
}

type dlqReplayCmd struct {
	brokerFlags
	dlqSelection
	Again     bool `help:"Also replay letters that were replayed before."`
	Overwrite bool `help:"Also replay updates if a newer update has changed the same fields, or if the log no longer shows whether one has."`
}

// Run replays dead letters.
func (c *dlqReplayCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	report, err := app.ReplayDeadLetters(ctx, cfg, kafka.ReplayOptions{
		From: c.From, Reason: event.Code(c.Reason), LimitLetters: c.Limit, Again: c.Again, Overwrite: c.Overwrite,
	}, e.log)
	if report == nil {
		return err
	}
	return errors.Join(err, printReplay(e.stdout, report))
}

// printReplay says what became of the letters, a line for each outcome and reason.
func printReplay(out io.Writer, report *kafka.ReplayReport) error {
	_, err := fmt.Fprintf(out, "dead letters replayed: %d\n", report.Count(kafka.ReplaySent))
	for _, o := range []struct {
		outcome kafka.ReplayOutcome
		format  string
	}{
		{kafka.ReplaySuperseded, "held back %d %s: a newer update has changed the same fields (--overwrite replays them)\n"},
		{kafka.ReplayUncertain, "held back %d %s: the log no longer shows whether a newer update has changed the same fields (--overwrite replays them)\n"},
		{kafka.ReplayUnreadable, "held back %d %s: unreadable for this version of sluice\n"},
		{kafka.ReplayDeleted, "left out %d %s: the event was deleted since\n"},
		{kafka.ReplayCopy, "left out %d %s: another dead letter has the same write\n"},
		{kafka.ReplayEarlier, "left out %d %s: replayed before (--again replays them)\n"},
	} {
		of := report.Letters[o.outcome]
		for _, reason := range slices.Sorted(maps.Keys(of)) {
			_, printErr := fmt.Fprintf(out, o.format, of[reason], reason)
			err = errors.Join(err, printErr)
		}
	}
	if report.Overtaken > 0 {
		_, printErr := fmt.Fprintf(out, "%d newer updates came while dead letters were sent, and were overwritten\n", report.Overtaken)
		err = errors.Join(err, printErr)
	}
	if report.More {
		_, printErr := fmt.Fprintln(out, "there are more dead letters than one replay takes; run it again")
		err = errors.Join(err, printErr)
	}
	return err
}
