package consumer

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// world is a consumer with all that it talks to, in memory and in the fake time
// of a synctest bubble. What the consumer does is in the journal, in order.
type world struct {
	t        *testing.T
	consumer *Consumer
	cancel   context.CancelFunc
	result   chan error
	ended    bool
	start    time.Time

	polls chan []record.Chunk
	fatal chan error
	next  map[int32]int64 // the offset of the next record to feed

	mu        sync.Mutex
	journal   []string
	committed map[int32]int64
	cores     map[event.ID]event.Core
	aliases   map[string]event.AliasRow
	inserts   []event.Rows
	letters   []record.DeadLetter
	pauses    int // more Pauses than Resumes

	// Hooks are called before the step, which does not happen where they return
	// an error. They must not be set while the consumer runs, but for nil ones
	// that read what the test changes under mu.
	onInsert, onSend, onCommit, onLookup func(ctx context.Context, try int) error
	// refuse says that the database refuses the row.
	refuse func(core event.Core) bool
	tries  map[string]int
	// refusedMax bounds what the store says of refused creates.
	refusedMax int
	// occupancy is of a table whose every minute has rows, where it is nil.
	occupancy *event.Occupancy
	// occupancyErr is what the question for it ends with; windows are what was
	// asked about.
	occupancyErr error
	windows      [][2]int64
}

// run gives the test a running consumer, which it stops at the end.
func run(t *testing.T, test func(w *world)) {
	runWith(t, func(*world, *Config) {}, test)
}

func runWith(t *testing.T, prepare func(w *world, cfg *Config), test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, result: make(chan error, 1), start: time.Now(),
			polls: make(chan []record.Chunk, 1000), fatal: make(chan error, 1), next: make(map[int32]int64),
			committed: make(map[int32]int64), cores: make(map[event.ID]event.Core), aliases: make(map[string]event.AliasRow),
			tries: make(map[string]int), refusedMax: 1 << 30,
		}
		cfg := DefaultConfig()
		prepare(w, &cfg)
		c, err := New(cfg, (*fakeSource)(w), (*fakeStore)(w), (*fakeLetters)(w), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		w.consumer = c
		ctx, cancel := context.WithCancel(t.Context())
		w.cancel = cancel
		go func() { w.result <- c.Run(ctx) }()
		test(w)
		cancel()
		if err := w.stopped(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// stopped waits for the end of Run, and returns what it returned; nil when
// called again.
func (w *world) stopped() error {
	w.t.Helper()
	if w.ended {
		return nil
	}
	w.ended = true
	select {
	case err := <-w.result:
		return err
	case <-time.After(time.Hour):
		w.t.Fatal("the consumer does not stop")
		return nil
	}
}

// feed has the next poll return the writes as one chunk of partition 0.
func (w *world) feed(writes ...event.Write) { w.feedChunk(0, 1, writes...) }

func (w *world) feedChunk(partition int32, epoch int64, writes ...event.Write) {
	var records []record.Record
	for _, write := range writes {
		records = append(records, recordOf(write, partition, w.next[partition]+int64(len(records))))
	}
	w.feedRecords(epoch, records...)
}

func (w *world) feedRecords(epoch int64, records ...record.Record) {
	last := records[len(records)-1]
	w.next[last.Partition] = last.Offset + 1
	w.polls <- []record.Chunk{{Partition: last.Partition, Epoch: epoch, Records: records}}
}

// skip leaves a gap, so that the next write of partition 0 has the offset.
func (w *world) skip(offset int64) { w.next[0] = offset }

// advance lets time pass, and waits for what happens in it to have happened.
func (w *world) advance(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// apply feeds the writes as one batch of their own and waits for it.
func (w *world) apply(writes ...event.Write) {
	w.t.Helper()
	w.feed(writes...)
	w.advance(time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.committed[0] != w.next[0] {
		w.t.Fatalf("committed %d, want %d; journal:\n%s", w.committed[0], w.next[0], w.journal)
	}
}

// take returns the journal and empties it.
func (w *world) take() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	journal := w.journal
	w.journal = nil
	return journal
}

// rows returns what the latest insert brought.
func (w *world) rows() event.Rows {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.inserts) == 0 {
		w.t.Fatal("nothing was inserted")
	}
	return w.inserts[len(w.inserts)-1]
}

// core is the newest core row of the n-th event.
func (w *world) core(n uint64) event.Core {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cores[testID(n)]
}

func (w *world) commits() map[int32]int64 {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.committed)
}

// refusals are the dead letters' reasons, as "partition/offset reason".
func (w *world) refusals() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, l := range w.letters {
		out = append(out, fmt.Sprintf("%d/%d %s", l.Record.Partition, l.Record.Offset, l.Reason))
	}
	return out
}

// note adds to the journal. w.mu is held.
func (w *world) note(format string, args ...any) {
	w.journal = append(w.journal, fmt.Sprintf(format, args...))
}

// hook counts the try and calls the hook, if there is one.
func (w *world) hook(ctx context.Context, step string, hook func(context.Context, int) error) error {
	w.mu.Lock()
	w.tries[step]++
	try := w.tries[step]
	w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if hook == nil {
		return nil
	}
	if err := hook(ctx, try); err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.note("%s fails", step)
		return err
	}
	return nil
}

type fakeSource world

func (s *fakeSource) Poll(ctx context.Context, recordsMax int) ([]record.Chunk, error) {
	if recordsMax <= 0 {
		panic("BUG: poll for no records")
	}
	select {
	case chunks := <-s.polls:
		return chunks, nil
	case err := <-s.fatal:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *fakeSource) Commit(ctx context.Context, next map[int32]int64) error {
	w := (*world)(s)
	if err := w.hook(ctx, "commit", w.onCommit); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("commit %v", next)
	maps.Copy(w.committed, next)
	return nil
}

func (s *fakeSource) Pause() {
	w := (*world)(s)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pauses++
	w.note("pause")
}

func (s *fakeSource) Resume() {
	w := (*world)(s)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pauses--
	w.note("resume")
}

type fakeStore world

// names are the numbers of the ids, as testID took them, in order.
func names(ids []event.ID) []uint64 {
	var out []uint64
	for _, id := range ids {
		for n := range uint64(1000) {
			if testID(n) == id || testID(n).AsInternal() == id {
				out = append(out, n)
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

func (s *fakeStore) Cores(ctx context.Context, ids []event.ID) (map[event.ID]event.Core, error) {
	w := (*world)(s)
	if err := w.hook(ctx, "cores", w.onLookup); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("cores %v", names(ids))
	found := make(map[event.ID]event.Core)
	for _, id := range ids {
		if core, ok := w.cores[id]; ok {
			found[id] = core
		}
	}
	return found, nil
}

func (s *fakeStore) CoreStates(ctx context.Context, ids []event.ID) (map[event.ID]event.Core, error) {
	w := (*world)(s)
	if err := w.hook(ctx, "states", w.onLookup); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("states %v", names(ids))
	found := make(map[event.ID]event.Core)
	for _, id := range ids {
		if core, ok := w.cores[id]; ok {
			found[id] = event.Core{
				ID: id, Alias: core.Alias, Created: core.Created, Version: core.Version, Deleted: core.Deleted,
			}
		}
	}
	return found, nil
}

func (s *fakeStore) Aliases(ctx context.Context, aliases []string) (map[string]event.AliasRow, error) {
	w := (*world)(s)
	if err := w.hook(ctx, "aliases", w.onLookup); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("aliases %v", aliases)
	found := make(map[string]event.AliasRow)
	for _, alias := range aliases {
		if row, ok := w.aliases[alias]; ok {
			found[alias] = row
		}
	}
	return found, nil
}

func (s *fakeStore) Insert(ctx context.Context, rows *event.Rows) error {
	w := (*world)(s)
	if rows.Len() == 0 {
		panic("BUG: insert of no rows")
	}
	if err := w.hook(ctx, "insert", w.onInsert); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, core := range rows.Cores {
		if w.refuse != nil && w.refuse(core) {
			w.note("insert refused")
			w.putAliases(rows.Aliases) // which were inserted before
			return fmt.Errorf("insert %d rows: %w", rows.Len(), event.ErrRejected)
		}
	}
	w.note("insert %d", rows.Len())
	kept := event.Rows{
		Cores: slices.Clone(rows.Cores), Contents: slices.Clone(rows.Contents),
		Embeddings: slices.Clone(rows.Embeddings), Aliases: slices.Clone(rows.Aliases),
	}
	for i := range kept.Contents {
		kept.Contents[i].Content.Data = bytes.Clone(kept.Contents[i].Content.Data)
	}
	w.inserts = append(w.inserts, kept)
	for _, core := range rows.Cores {
		if core.Version >= w.cores[core.ID].Version {
			w.cores[core.ID] = core
		}
	}
	w.putAliases(rows.Aliases)
	return nil
}

func (w *world) putAliases(rows []event.AliasRow) {
	for _, row := range rows {
		if row.Version >= w.aliases[row.Alias].Version {
			w.aliases[row.Alias] = row
		}
	}
}

func (s *fakeStore) Refused(ctx context.Context, rowsMax int) (refused []event.AliasRow, more bool, err error) {
	w := (*world)(s)
	if err := w.hook(ctx, "refused", nil); err != nil {
		return nil, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, row := range w.aliases {
		if row.Refused && row.Alias == event.RefusalAlias(row.ID) {
			refused = append(refused, row)
		}
	}
	if rowsMax = min(rowsMax, w.refusedMax); len(refused) > rowsMax {
		return refused[:rowsMax], true, nil
	}
	return refused, false, nil
}

type fakeLetters world

func (s *fakeLetters) Send(ctx context.Context, letters []record.DeadLetter) error {
	w := (*world)(s)
	if len(letters) == 0 {
		panic("BUG: send no letters")
	}
	if err := w.hook(ctx, "send", w.onSend); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("send %d", len(letters))
	w.letters = append(w.letters, letters...)
	return nil
}

// Occupancy says that every minute has rows, unless the test says otherwise.
func (s *fakeStore) Occupancy(_ context.Context, since, until int64) (event.Occupancy, error) {
	w := (*world)(s)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tries["occupancy"]++
	w.windows = append(w.windows, [2]int64{since, until})
	if w.occupancyErr != nil {
		return event.Occupancy{}, w.occupancyErr
	}
	if w.occupancy != nil {
		o := *w.occupancy
		o.SinceMicros, o.UntilMicros = since, until
		return o, nil
	}
	return event.Occupancy{LastMicros: 1 << 62, SinceMicros: 1 << 62}, nil
}
