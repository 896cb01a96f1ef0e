package kafka

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

const (
	// replayBatchLetters and replayBatchBytes bound what is sent at a time.
	replayBatchLetters = 500
	replayBatchBytes   = 16 << 20
	// replayLettersMax is the most letters of one replay, which holds the ids of all
	// their events in memory.
	replayLettersMax = 1 << 20
	// fieldsMax is the most fields that an [event.Fields] can name.
	fieldsMax = 16

	// headerReplayed marks a record of the dead-letter topic that is not a letter.
	// Its value lists the letters that were replayed, for example 3-7,9.
	headerReplayed = "sluice-replayed"
	// headerReplayOf is the receipt of the write that a record repeats, on a
	// replayed record and on a dead letter of one.
	headerReplayOf = "sluice-replay-of"
)

// ReplayOptions select the dead letters for [DeadLetters.Replay]. The zero value
// selects all that were not replayed before.
type ReplayOptions struct {
	// From is the place of the first letter.
	From int64
	// Reason, if set, selects only letters with this reason.
	Reason event.Code
	// LimitLetters is the most letters to send; 0 is no limit.
	LimitLetters int
	// Again also selects letters that were replayed before.
	Again bool
	// Overwrite sends updates although a newer update has changed the same
	// fields, or although the log does not show whether one has.
	Overwrite bool
}

// ReplayOutcome is what a replay did with a dead letter.
type ReplayOutcome string

// The outcomes. Letters that are held back can be replayed later; the others are done.
const (
	// ReplaySent: written to the events topic again.
	ReplaySent ReplayOutcome = "sent"
	// ReplaySuperseded: held back, because a newer update has changed the same fields.
	ReplaySuperseded ReplayOutcome = "superseded"
	// ReplayUncertain: held back, because the part of the log is gone that would show
	// whether a newer update has changed the same fields.
	ReplayUncertain ReplayOutcome = "uncertain"
	// ReplayUnreadable: held back, because this build, and so a consumer of this
	// build, cannot read a write from it.
	ReplayUnreadable ReplayOutcome = "unreadable"
	// ReplayDeleted: skipped, because its event was deleted since.
	ReplayDeleted ReplayOutcome = "deleted"
	// ReplayCopy: skipped, because it repeats another letter: the same write was
	// refused twice, after consumers were set back.
	ReplayCopy ReplayOutcome = "copy"
	// ReplayEarlier: skipped, because it was replayed before.
	ReplayEarlier ReplayOutcome = "earlier"
)

// ReplayReport says what became of the letters that were picked.
type ReplayReport struct {
	// Letters counts them by outcome and reason.
	Letters map[ReplayOutcome]map[event.Code]int
	// Overtaken counts the sent updates that were written after a newer update of the
	// same fields, because that update came while they were sent.
	Overtaken int
	// More says that letters are left, because there are too many for one replay.
	More bool
}

// Count returns the number of letters with the outcome.
func (r *ReplayReport) Count(o ReplayOutcome) int {
	n := 0
	for _, of := range r.Letters[o] {
		n += of
	}
	return n
}

func (r *ReplayReport) add(o ReplayOutcome, reason event.Code) {
	if r.Letters == nil {
		r.Letters = make(map[ReplayOutcome]map[event.Code]int)
	}
	if r.Letters[o] == nil {
		r.Letters[o] = make(map[event.Code]int)
	}
	r.Letters[o][reason]++
}

// Replay sends dead letters to the events topic again, as new writes of the
// producer, oldest letter first, up to the end that the dead-letter topic has when
// Replay is called.
//
// The dead-letter topic records which letters were replayed, so that the next
// Replay continues after them. A write that is refused once more becomes a new
// letter.
//
// An update is sent only if no newer update in the log has changed one of its
// fields. Updates that were refused themselves do not count. To find out, Replay
// reads the log from the oldest letter on. It misses an update that is written in
// the few milliseconds between reading and sending; [ReplayReport.Overtaken]
// counts these.
//
// After an error, the report is right except for the letters of the last batch. A
// Replay that ends after sending a batch and before recording it sends these
// letters again next time, in the same order, which changes nothing.
func (d *DeadLetters) Replay(ctx context.Context, p *Producer, opts ReplayOptions) (ReplayReport, error) {
	r := &replay{
		letters: d, producer: p, opts: opts,
		refused: make(map[event.Receipt]struct{}), chosen: make(map[event.Receipt]struct{}),
		events: make(map[string]*replayEvent), sending: make(map[string]event.Receipt),
	}
	err := r.run(ctx)
	return r.report, err
}

// replay is one run of [DeadLetters.Replay].
type replay struct {
	letters  *DeadLetters
	producer *Producer
	opts     ReplayOptions
	report   ReplayReport

	// done are the places of the letters that were replayed before.
	done placeSet
	// end is the place that this replay ends before.
	end int64
	// refused are the receipts of all dead letters.
	refused map[event.Receipt]struct{}
	// chosen are the writes that were replayed before or are by this replay.
	chosen map[event.Receipt]struct{}
	// events has the events of the picked letters, by their records' key.
	events map[string]*replayEvent
	// scan reads the log. It is nil if the replay does not need the log.
	scan *logScan
	// sending has the batch that was just sent: the receipt by the record's key.
	sending map[string]event.Receipt

	batch      []StoredLetter
	batchBytes int
	marks      []int64
	left       int
}

// replayEvent is what the log shows about an event.
type replayEvent struct {
	// newest is, by field, the place of the newest update that changed it.
	newest  [fieldsMax]event.Position
	deleted bool
}

func (e *replayEvent) updated(fields event.Fields, at event.Position) {
	for f := range event.Field(fieldsMax) {
		if fields.Has(f) {
			e.newest[f] = max(e.newest[f], at)
		}
	}
}

func (e *replayEvent) updatedAfter(fields event.Fields, at event.Position) bool {
	for f := range event.Field(fieldsMax) {
		if fields.Has(f) && e.newest[f] > at {
			return true
		}
	}
	return false
}

// original returns the receipt of the write that the record repeats, or its own
// receipt if it repeats none.
func original(r *record.Record) event.Receipt {
	if r.ReplayOf != (event.Receipt{}) {
		return r.ReplayOf
	}
	return r.Receipt()
}

func positionOf(r event.Receipt) event.Position { return event.MakePosition(r.Generation, r.Offset) }

// readLetter reads the write of a letter.
func readLetter(l *record.DeadLetter) (event.Write, error) {
	r := l.Record
	r.AppendTime = time.Now() // as it will be
	return record.Read(&r)
}

func (r *replay) picks(l *StoredLetter) bool {
	return l.Seq >= r.opts.From && (r.opts.Reason == "" || l.Letter.Reason == r.opts.Reason)
}

func (r *replay) run(ctx context.Context) error {
	if err := r.index(ctx); err != nil {
		return err
	}
	defer func() {
		if r.scan != nil {
			r.scan.close()
		}
	}()
	r.left = r.opts.LimitLetters
	if r.left <= 0 {
		r.left = math.MaxInt
	}
	err := r.letters.Read(ctx, 0, func(l StoredLetter) error {
		if l.Seq >= r.end || r.left == 0 {
			return errStop
		}
		return r.take(ctx, l)
	})
	if err != nil {
		return err
	}
	return r.flush(ctx)
}

// index reads the dead-letter topic: first which letters were replayed, then which
// records were refused and which events the selected letters belong to. It finds
// where in the log the scan has to begin.
func (r *replay) index(ctx context.Context) error {
	var err error
	if r.done, err = r.letters.replayed(ctx, 0); err != nil {
		return err
	}
	from := make(map[logPartition]int64)
	letters, cut := 0, int64(math.MaxInt64)
	end, err := r.letters.read(ctx, 0, func(rec *kgo.Record) error {
		l, err := parseLetter(rec)
		if err != nil {
			return nil //nolint:nilerr // Read says so, later
		}
		r.refused[l.Record.Receipt()] = struct{}{}
		stored := StoredLetter{Seq: rec.Offset, Letter: l}
		if r.opts.Overwrite || !r.picks(&stored) || r.done.has(rec.Offset) && !r.opts.Again {
			return nil
		}
		w, err := readLetter(&l)
		if err != nil {
			return nil //nolint:nilerr // it is held back, later
		}
		if letters == replayLettersMax {
			cut = min(cut, rec.Offset)
			return nil
		}
		letters++
		if _, ok := r.events[string(l.Record.Key)]; !ok {
			r.events[string(l.Record.Key)] = new(replayEvent)
		}
		if w.Op == event.OpDelete {
			return nil
		}
		at := original(&l.Record)
		place := logPartition{at.Generation, at.Partition}
		if begin, ok := from[place]; !ok || at.Offset < begin {
			from[place] = at.Offset
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.end, r.report.More = min(end, cut), cut < end
	if len(from) == 0 {
		return nil
	}
	r.scan, err = newLogScan(ctx, r.producer.cfg, from, r.letters.log)
	return err
}

// take adds one letter to the batch, or reports why not.
func (r *replay) take(ctx context.Context, l StoredLetter) error {
	rec, reason := &l.Letter.Record, l.Letter.Reason
	receipt := rec.Receipt()
	earlier := r.done.has(l.Seq)
	switch {
	case earlier && !r.opts.Again:
		r.chosen[receipt] = struct{}{}
		if r.picks(&l) {
			r.report.add(ReplayEarlier, reason)
		}
		return nil
	case !r.picks(&l):
		return nil
	}
	if _, ok := r.chosen[receipt]; ok {
		r.report.add(ReplayCopy, reason)
		r.marks = append(r.marks, l.Seq)
		return nil
	}
	if _, err := readLetter(&l.Letter); err != nil {
		r.report.add(ReplayUnreadable, reason)
		return nil //nolint:nilerr // a letter that cannot be read is no failure of the replay
	}
	r.chosen[receipt] = struct{}{}
	r.batch = append(r.batch, l)
	r.batchBytes += len(rec.Key) + len(rec.Value)
	if len(r.batch) < min(replayBatchLetters, r.left) && r.batchBytes < replayBatchBytes {
		return nil
	}
	return r.flush(ctx)
}

// flush sends the letters of the batch that may be sent.
func (r *replay) flush(ctx context.Context) error {
	if r.scan != nil && len(r.batch) > 0 {
		if err := r.scan.advance(ctx, r.observe); err != nil {
			return err
		}
	}
	var send []record.DeadLetter
	for i := range r.batch {
		l := &r.batch[i]
		outcome := r.judge(&l.Letter)
		if outcome == ReplaySent {
			send = append(send, l.Letter) // reported once it is acknowledged
		} else {
			r.report.add(outcome, l.Letter.Reason)
		}
		if outcome == ReplaySent || outcome == ReplayDeleted {
			r.marks = append(r.marks, l.Seq)
		}
	}
	clear(r.batch)
	r.batch, r.batchBytes = r.batch[:0], 0
	for i, ack := range r.producer.Replay(ctx, send) {
		if ack.Err != nil {
			return fmt.Errorf("replay %s: %w", send[i].Record.Receipt(), ack.Err)
		}
		r.report.add(ReplaySent, send[i].Reason)
		r.left--
		r.sending[string(send[i].Record.Key)] = ack.Receipt
	}
	if err := r.letters.markReplayed(ctx, r.marks); err != nil {
		return err
	}
	r.marks = r.marks[:0]
	if r.scan != nil && len(send) > 0 {
		// An update that this finds after the last look and before the sent records was
		// written while they were sent: it is counted as overtaken.
		if err := r.scan.advance(ctx, r.observe); err != nil {
			return err
		}
	}
	clear(r.sending)
	return nil
}

// judge decides whether the write of a letter may be sent.
func (r *replay) judge(l *record.DeadLetter) ReplayOutcome {
	w, _ := readLetter(l) // take has read it before
	e := r.events[string(l.Record.Key)]
	if e == nil || w.Op == event.OpDelete {
		return ReplaySent
	}
	if e.deleted {
		return ReplayDeleted
	}
	if w.Op != event.OpUpdate {
		return ReplaySent
	}
	at := original(&l.Record)
	switch {
	case e.updatedAfter(w.Set, positionOf(at)):
		return ReplaySuperseded
	case !r.scan.complete(at):
		return ReplayUncertain
	}
	e.updated(w.Set, positionOf(at))
	return ReplaySent
}

// observe records the update or delete of a record of the log.
func (r *replay) observe(rec *record.Record) {
	e := r.events[string(rec.Key)]
	if e == nil {
		return
	}
	if _, ok := r.refused[rec.Receipt()]; ok {
		return
	}
	w, err := record.Read(rec)
	if err != nil {
		return
	}
	switch w.Op {
	case event.OpCreate:
	case event.OpDelete:
		e.deleted = true
	case event.OpUpdate:
		at := positionOf(original(rec))
		sent, ok := r.sending[string(rec.Key)]
		if ok && rec.Generation == sent.Generation && rec.Offset < sent.Offset && rec.ReplayOf == (event.Receipt{}) {
			r.report.Overtaken++
		}
		e.updated(w.Set, at)
	}
}
