package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

const (
	// replayBatchLetters and replayBatchBytes bound what is sent at a time.
	replayBatchLetters = 500
	replayBatchBytes   = 16 << 20
	// replayLettersMax is the most letters that one replay takes: it knows the
	// ids of all their events at once.
	replayLettersMax = 1 << 20
	// fieldsMax is the most fields that an [event.Fields] can name.
	fieldsMax = 16

	// headerReplayed marks a record of the dead-letter topic that is no letter:
	// its value lists the letters that were replayed, as in 3-7,9.
	headerReplayed = "sluice-replayed"
	// headerReplayOf is the receipt of the write that a record repeats, on a
	// replayed record and on a dead letter of one.
	headerReplayOf = "sluice-replay-of"
)

// ReplayOptions pick the dead letters of [DeadLetters.Replay]. The zero value
// picks all that were not replayed before.
type ReplayOptions struct {
	// From is the place of the first letter.
	From int64
	// Reason, where set, leaves out letters with another one.
	Reason event.Code
	// LimitLetters is the most letters to send; 0 is no limit.
	LimitLetters int
	// Again takes letters that were replayed before, too.
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
	// ReplaySuperseded: held back, as a newer update has changed the same fields.
	ReplaySuperseded ReplayOutcome = "superseded"
	// ReplayUncertain: held back, as the log is not there any more that would
	// show whether a newer update has changed the same fields.
	ReplayUncertain ReplayOutcome = "uncertain"
	// ReplayUnreadable: held back, as this build reads no write in it, and so no
	// consumer of this build would.
	ReplayUnreadable ReplayOutcome = "unreadable"
	// ReplayDeleted: left out, as its event was deleted since.
	ReplayDeleted ReplayOutcome = "deleted"
	// ReplayCopy: left out, as it repeats another letter: the same write was
	// refused twice, after consumers were set back.
	ReplayCopy ReplayOutcome = "copy"
	// ReplayEarlier: left out, as it was replayed before.
	ReplayEarlier ReplayOutcome = "earlier"
)

// ReplayReport says what became of the letters that were picked.
type ReplayReport struct {
	// Letters counts them by outcome and reason.
	Letters map[ReplayOutcome]map[event.Code]int
	// Overtaken counts those of the sent updates that were written just after a
	// newer update of the same fields, which came while they were sent.
	Overtaken int
	// More is whether letters are left because there are too many for one replay.
	More bool
}

// Count is the number of letters with the outcome.
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

// Replay sends dead letters to the events topic again by the producer, as new
// writes, oldest letter first, up to the end that the dead-letter topic has when
// Replay is called.
//
// The dead-letter topic remembers what was replayed, so that the next Replay
// goes on behind it. Letters that are refused once more come back as new letters.
//
// An update is sent only if no newer update in the log has changed one of its
// fields; updates that were refused themselves do not count. The log is read for
// that, from the oldest letter on. An update that comes in the few milliseconds
// between that look and the sending is not seen; [ReplayReport.Overtaken] tells.
//
// The report is right after an error too, but for letters of the last batch. A
// Replay that ended between sending a batch and remembering it sends these
// letters again, in the same order, which changes nothing.
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
	// scan reads the log; nil where nothing has to be known of it.
	scan *logScan
	// sending has the batch that was just sent: the receipt by the record's key.
	sending map[string]event.Receipt

	batch      []StoredLetter
	batchBytes int
	marks      []int64
	left       int
}

// replayEvent is what the log says of an event.
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

// original is the receipt of the write that the record repeats, or its own.
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

// index reads the dead-letter topic: what was replayed, then what was refused
// and which events the picked letters are of. It finds the places in the log
// that the scan has to begin at.
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

// take decides about one letter.
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

// flush sends those letters of the batch that may be sent.
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
		// What this finds behind the last look and before what was sent is overtaken.
		if err := r.scan.advance(ctx, r.observe); err != nil {
			return err
		}
	}
	clear(r.sending)
	return nil
}

// judge says whether the write of a letter may be sent.
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

// observe takes a record of the log into account.
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

// markReplayed remembers that the letters at the places were replayed.
func (d *DeadLetters) markReplayed(ctx context.Context, places []int64) error {
	if len(places) == 0 {
		return nil
	}
	return d.send(ctx, []*kgo.Record{{
		Topic: d.topic, Value: appendPlaces(nil, places),
		Headers: []kgo.RecordHeader{{Key: headerReplayed, Value: []byte("1")}},
	}})
}

// Replayed returns a function that says whether the letter at a place, from the
// given one on, was replayed before Replayed was called.
func (d *DeadLetters) Replayed(ctx context.Context, from int64) (func(place int64) bool, error) {
	done, err := d.replayed(ctx, from)
	return done.has, err
}

func (d *DeadLetters) replayed(ctx context.Context, from int64) (placeSet, error) {
	done := make(placeSet)
	_, err := d.read(ctx, from, func(rec *kgo.Record) error {
		if !isReplayed(rec) {
			return nil
		}
		return done.addList(rec)
	})
	return done, err
}

// isReplayed reports whether the record of the dead-letter topic is no letter,
// but lists letters that were replayed.
func isReplayed(r *kgo.Record) bool {
	return slices.ContainsFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == headerReplayed })
}

// appendPlaces appends the places as text, such as 3-7,9. It sorts them.
func appendPlaces(b []byte, places []int64) []byte {
	slices.Sort(places)
	for i := 0; i < len(places); {
		first := places[i]
		last := first
		for i++; i < len(places) && places[i] <= last+1; i++ {
			last = places[i]
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, first, 10)
		if last > first {
			b = strconv.AppendInt(append(b, '-'), last, 10)
		}
	}
	return b
}

// placeSet is a set of places in the dead-letter topic, 64 of them a word.
type placeSet map[int64]uint64

func (s placeSet) has(place int64) bool { return s[place>>6]>>(place&63)&1 != 0 }

var errBadPlaces = errors.New("the list of replayed letters is malformed")

// addList adds the places that the record lists, which are before its own.
func (s placeSet) addList(r *kgo.Record) error {
	for part := range strings.SplitSeq(string(r.Value), ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.ParseInt(first, 10, 64)
		to := from
		if err == nil && isRange {
			to, err = strconv.ParseInt(last, 10, 64)
		}
		if err != nil || from < 0 || to < from || to >= r.Offset {
			return fmt.Errorf("topic %s offset %d: %w", r.Topic, r.Offset, errBadPlaces)
		}
		for place := from; place <= to; place++ {
			s[place>>6] |= 1 << (place & 63)
		}
	}
	return nil
}

// logPartition is a partition of the events topic of a generation.
type logPartition struct {
	generation int
	partition  int32
}

// logScan reads the log from given places on, up to where it ends by and by.
type logScan struct {
	cfg Config
	cl  *kgo.Client
	adm *kadm.Client
	// topics are the names, by generation, of the topics that exist.
	topics map[int]string
	// starts are the offsets that partitions begin at, next what is read next.
	starts, next map[logPartition]int64
	generations  map[string]int
}

// newLogScan returns a scan that begins at the offsets, and reads the topics of
// all later generations whole. Close it.
func newLogScan(ctx context.Context, cfg Config, from map[logPartition]int64, log *slog.Logger) (*logScan, error) {
	s := &logScan{
		cfg: cfg, topics: make(map[int]string), generations: make(map[string]int),
		starts: make(map[logPartition]int64), next: make(map[logPartition]int64),
	}
	cl, err := newClient(&cfg, log,
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.KeepControlRecords(), // they have offsets too
		kgo.FetchMaxBytes(int32(cfg.Consumer.FetchBytesMax)),
		kgo.FetchMaxPartitionBytes(int32(cfg.Consumer.PartitionBytesMax)),
	)
	if err != nil {
		return nil, err
	}
	s.cl, s.adm = cl, kadm.NewClient(cl)
	if err := s.begin(ctx, from); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *logScan) begin(ctx context.Context, from map[logPartition]int64) error {
	oldest := s.cfg.Generation
	for p := range from {
		oldest = min(oldest, p.generation)
	}
	there, err := s.adm.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	for g := oldest; g <= s.cfg.Generation; g++ {
		cfg := s.cfg
		cfg.Generation = g
		if topic := cfg.EventsTopic(); there.Has(topic) && there[topic].Err == nil {
			s.topics[g], s.generations[topic] = topic, g
		}
	}
	if len(s.topics) == 0 {
		return nil
	}
	starts, err := s.adm.ListStartOffsets(ctx, slices.Collect(maps.Values(s.topics))...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("list start offsets: %w", err)
	}
	consume := make(map[string]map[int32]kgo.Offset)
	starts.Each(func(o kadm.ListedOffset) {
		p := logPartition{s.generations[o.Topic], o.Partition}
		s.starts[p] = o.Offset
		at, ok := from[p]
		switch {
		case p.generation > oldest:
			at = o.Offset
		case !ok:
			return
		}
		s.next[p] = max(at, o.Offset)
		if consume[o.Topic] == nil {
			consume[o.Topic] = make(map[int32]kgo.Offset)
		}
		consume[o.Topic][o.Partition] = kgo.NewOffset().At(s.next[p])
	})
	s.cl.AddConsumePartitions(consume)
	return nil
}

// complete reports whether the log has everything that came after the receipt
// in its partition, and in the generations since.
func (s *logScan) complete(at event.Receipt) bool {
	for g := at.Generation; g <= s.cfg.Generation; g++ {
		if s.topics[g] == "" {
			return false
		}
	}
	for p, start := range s.starts {
		switch {
		case p.generation == at.Generation && p.partition == at.Partition && start > at.Offset+1,
			p.generation > at.Generation && start > 0:
			return false
		}
	}
	return true
}

// advance calls fn with the records from where it stopped before up to where the
// log ends when advance is called. Records of one partition come in order.
func (s *logScan) advance(ctx context.Context, fn func(*record.Record)) error {
	if len(s.next) == 0 {
		return nil
	}
	ends, err := s.adm.ListEndOffsets(ctx, slices.Collect(maps.Values(s.topics))...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list end offsets: %w", err)
	}
	behind := func() bool {
		for p, next := range s.next {
			if end, _ := ends.Lookup(s.topics[p.generation], p.partition); next < end.Offset {
				return true
			}
		}
		return false
	}
	for behind() {
		fetches := s.cl.PollRecords(ctx, 10_000)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			generation := s.generations[r.Topic]
			s.next[logPartition{generation, r.Partition}] = r.Offset + 1
			if !r.Attrs.IsControl() {
				rec := newRecord(generation, r)
				fn(&rec)
			}
		})
	}
	return nil
}

func (s *logScan) close() { s.cl.Close() }
