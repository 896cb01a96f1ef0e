package consumer

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

func TestConfigValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(cfg *Config)
		want   []string
	}{
		{name: "the defaults", change: func(*Config) {}},
		{"all zero", func(cfg *Config) { *cfg = Config{} }, []string{
			"BatchRecordsMax: must be above 0", "BatchBytesMax: must be above 0", "PollBytesMax: must be above 0",
			"FlushDelayQuiet: must be above 0", "FlushDelayBusy: must be above 0", "BusyRecords: must be above 0",
			"RecentBytesMax: must be above 0", "RetryDelayMin: must be above 0", "RetryDelayMax: must be above 0",
			"StopTimeout: must be above 0",
		}},
		{"negative", func(cfg *Config) { cfg.StopTimeout = -1 }, []string{"StopTimeout: must be above 0"}},
		{"delays the wrong way round", func(cfg *Config) {
			cfg.FlushDelayQuiet, cfg.FlushDelayBusy = 2, 1
			cfg.RetryDelayMin, cfg.RetryDelayMax = 2, 1
		}, []string{
			"FlushDelayBusy: must not be below FlushDelayQuiet", "RetryDelayMax: must not be below RetryDelayMin",
		}},
		{"equal delays", func(cfg *Config) {
			cfg.FlushDelayQuiet, cfg.FlushDelayBusy = 1, 1
			cfg.RetryDelayMin, cfg.RetryDelayMax = 1, 1
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := DefaultConfig()
			tt.change(&cfg)
			var got []string
			if err := cfg.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
			c, err := New(cfg, nil, nil, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			if (err == nil) != (tt.want == nil) || (c == nil) != (err != nil) {
				t.Errorf("new: %v, %v", c, err)
			}
		})
	}
}

// stuck makes inserts wait until they are let through, one by one, by sending
// to the channel it returns.
func stuck(w *world) chan<- struct{} {
	through := make(chan struct{})
	w.onInsert = func(ctx context.Context, _ int) error {
		w.mu.Lock()
		w.note("inserting")
		w.mu.Unlock()
		select {
		case <-through:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return through
}

func (w *world) expect(want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.take(), cmpopts.EquateEmpty()); diff != "" {
		w.t.Errorf("journal (-want +got):\n%s", diff)
	}
}

// creates are n of them, from the given one on.
func creates(from uint64, n int) []event.Write {
	var writes []event.Write
	for range n {
		writes = append(writes, create(fresh, id(from)))
		from++
	}
	return writes
}

func TestFlushWhenQuiet(t *testing.T) {
	run(t, func(w *world) {
		w.advance(time.Hour)
		w.expect()
		w.feed(create(fresh))
		w.advance(59 * time.Millisecond)
		w.feed(create(fresh, id(2))) // does not put the first one off
		w.expect()
		w.advance(time.Millisecond)
		w.expect("insert 2", "commit map[0:2]")
		w.advance(time.Hour)
		w.expect()
	})
}

// After a slow flush the next records wait four times as long as it took, and
// no longer than those of a busy batch.
func TestFlushWhenSlow(t *testing.T) {
	for _, tt := range []struct{ took, wait time.Duration }{
		{10 * time.Millisecond, 60 * time.Millisecond},
		{50 * time.Millisecond, 200 * time.Millisecond},
		{time.Second, 400 * time.Millisecond},
	} {
		t.Run(tt.took.String(), func(t *testing.T) {
			var through chan<- struct{}
			runWith(t, func(w *world, _ *Config) { through = stuck(w) }, func(w *world) {
				w.feed(create(fresh))
				w.advance(60 * time.Millisecond)
				w.expect("inserting")
				w.advance(tt.took)
				through <- struct{}{}
				w.expect("insert 1", "commit map[0:1]")
				w.feed(create(fresh, id(2)))
				w.advance(tt.wait - time.Millisecond)
				w.expect()
				w.advance(time.Millisecond)
				w.expect("inserting")
				through <- struct{}{}
				w.expect("insert 1", "commit map[0:2]")
			})
		})
	}
}

func TestFlushWhenBusy(t *testing.T) {
	runWith(t, func(_ *world, cfg *Config) { cfg.BusyRecords = 10 }, func(w *world) {
		for n := range uint64(10) {
			w.feed(creates(5*n, 5)...)
			w.advance(40 * time.Millisecond)
			if n < 9 {
				w.expect()
			}
		}
		w.expect("insert 50", "commit map[0:50]")
	})
}

// A busy batch does not wait for records that do not come.
func TestFlushWhenBusyNoMore(t *testing.T) {
	runWith(t, func(_ *world, cfg *Config) { cfg.BusyRecords = 10 }, func(w *world) {
		w.feed(creates(0, 5)...)
		w.advance(30 * time.Millisecond)
		w.feed(creates(5, 5)...)
		w.advance(59 * time.Millisecond)
		w.expect()
		w.advance(time.Millisecond)
		w.expect("insert 10", "commit map[0:10]")
	})
}

func TestFlushWhenFull(t *testing.T) {
	tests := map[string]func(cfg *Config){
		"of records": func(cfg *Config) { cfg.BatchRecordsMax = 10 },
		"of bytes":   func(cfg *Config) { cfg.BatchBytesMax = 10 * recordBytes },
	}
	for name, limit := range tests {
		t.Run(name, func(t *testing.T) {
			runWith(t, func(_ *world, cfg *Config) { limit(cfg) }, func(w *world) {
				w.feed(creates(0, 5)...)
				w.expect()
				w.feed(creates(5, 5)...)
				w.expect("insert 10", "commit map[0:10]")
				if passed := time.Since(w.start); passed != 0 {
					t.Errorf("it took %v", passed)
				}
			})
		})
	}
}

// Poison fills a batch as good records do.
func TestFlushWhenFullOfPoison(t *testing.T) {
	runWith(t, func(_ *world, cfg *Config) { cfg.BatchRecordsMax = 2 }, func(w *world) {
		records := []record.Record{recordOf(create(), 0, 0), recordOf(create(), 0, 1)}
		records[0].Version, records[1].Version = 0, 0
		w.feedRecords(1, records...)
		w.expect("send 2", "commit map[0:2]")
	})
}

func TestOneFlightAtATime(t *testing.T) {
	var through chan<- struct{}
	runWith(t, func(w *world, _ *Config) { through = stuck(w) }, func(w *world) {
		w.feed(create(fresh))
		w.advance(time.Second)
		for n := range uint64(5) {
			w.feed(create(fresh, id(2+n)))
			w.advance(time.Second)
		}
		w.expect("inserting")
		through <- struct{}{}
		// What has waited long enough goes at once.
		w.expect("insert 1", "commit map[0:1]", "inserting")
		through <- struct{}{}
		w.expect("insert 5", "commit map[0:6]")
	})
}

// While a flight is stuck, the next batch fills up to its bound and no more is
// taken.
func TestBackpressure(t *testing.T) {
	const chunks, perChunk = 20, 2
	tests := map[string]func(cfg *Config){
		"by records": func(cfg *Config) { cfg.BatchRecordsMax = 3 * perChunk },
		"by bytes":   func(cfg *Config) { cfg.BatchBytesMax = 3 * perChunk * recordBytes },
	}
	for name, limit := range tests {
		t.Run(name, func(t *testing.T) {
			var through chan<- struct{}
			runWith(t, func(w *world, cfg *Config) {
				limit(cfg)
				through = stuck(w)
			}, func(w *world) {
				for n := range uint64(chunks) {
					w.feed(creates(n*perChunk, perChunk)...)
				}
				w.advance(time.Hour)
				w.expect("inserting")
				// Three in flight, three in the batch, one in hand.
				if left := len(w.polls); left != chunks-7 {
					t.Errorf("%d chunks are left, want %d", left, chunks-7)
				}
				for w.commits()[0] < chunks*perChunk {
					through <- struct{}{}
					w.advance(time.Second)
				}
				for n := range uint64(chunks * perChunk) {
					if w.core(n).Version != created(int64(n)) {
						t.Errorf("create %d is not applied", n)
					}
				}
				var commits []string
				for _, line := range w.take() {
					if strings.HasPrefix(line, "commit") {
						commits = append(commits, line)
					}
				}
				want := []string{
					"commit map[0:6]", "commit map[0:12]", "commit map[0:18]", "commit map[0:24]", "commit map[0:30]",
					"commit map[0:36]", "commit map[0:40]",
				}
				if diff := cmp.Diff(want, commits); diff != "" {
					t.Errorf("commits (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestStopFlushesWhatIsLeft(t *testing.T) {
	run(t, func(w *world) {
		w.feedChunk(0, 1, creates(0, 2)...)
		w.feedChunk(3, 1, creates(10, 1)...)
		synctest.Wait()
		w.cancel()
		w.expect("insert 3", "commit map[0:2 3:1]")
		if passed := time.Since(w.start); passed != 0 {
			t.Errorf("it took %v", passed)
		}
	})
}

func TestStopFinishesTheFlightAndTheBatch(t *testing.T) {
	var through chan<- struct{}
	runWith(t, func(w *world, _ *Config) { through = stuck(w) }, func(w *world) {
		w.feed(create(fresh))
		w.advance(time.Second)
		w.feed(create(fresh, id(2)))
		w.advance(time.Second)
		w.cancel()
		w.advance(5 * time.Second)
		w.expect("inserting")
		through <- struct{}{}
		w.expect("insert 1", "commit map[0:1]", "inserting")
		through <- struct{}{}
		w.expect("insert 1", "commit map[0:2]")
	})
}

// A flush that does not come through holds the consumer up for StopTimeout, no
// longer, and leaves no commit behind.
func TestStopTimeout(t *testing.T) {
	tests := map[string]func(w *world){
		"insert hangs": func(w *world) { stuck(w) },
		"insert fails": func(w *world) { w.onInsert = failing(1<<30, errDown) },
		"commit fails": func(w *world) { w.onCommit = failing(1<<30, errDown) },
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			runWith(t, func(w *world, _ *Config) { prepare(w) }, func(w *world) {
				w.feed(create(fresh))
				w.advance(time.Minute)
				w.feed(create(fresh, id(2)))
				w.advance(time.Minute)
				began := time.Now()
				w.cancel()
				err := w.stopped()
				if passed := time.Since(began); err != nil || passed != DefaultConfig().StopTimeout {
					t.Errorf("run returned %v after %v", err, passed)
				}
				if got := w.commits(); len(got) > 0 {
					t.Errorf("committed %v", got)
				}
				if w.pauses != 0 {
					t.Errorf("fetching is paused %d times over", w.pauses)
				}
			})
		})
	}
}

// revoke calls Revoked and returns a channel that closes when it returned.
func (w *world) revoke(ctx context.Context, lost bool, partitions ...int32) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.consumer.Revoked(ctx, partitions, lost)
	}()
	synctest.Wait()
	return done
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Partitions are given up once the flight that has records of them is
// committed; what waits behind it is left to the next owner.
func TestRevokedWaitsForTheFlight(t *testing.T) {
	var through chan<- struct{}
	runWith(t, func(w *world, _ *Config) { through = stuck(w) }, func(w *world) {
		w.feedChunk(0, 1, create(fresh))
		w.advance(time.Second)
		w.feedChunk(0, 1, create(fresh, id(2)))
		w.feedChunk(1, 2, create(fresh, id(3)))
		w.advance(time.Second)
		done := w.revoke(w.t.Context(), false, 0)
		w.advance(time.Hour)
		if closed(done) {
			t.Error("it did not wait for the flight")
		}
		w.expect("inserting")
		through <- struct{}{}
		<-done
		w.expect("insert 1", "commit map[0:1]", "inserting")
		through <- struct{}{}
		w.expect("insert 1", "commit map[1:1]")
		if w.core(2).Version != 0 {
			t.Error("a record of the revoked partition was applied")
		}
	})
}

func TestRevokedWithoutAFlight(t *testing.T) {
	run(t, func(w *world) {
		w.feedChunk(0, 1, create(fresh))
		w.feedChunk(1, 2, create(fresh, id(2)))
		synctest.Wait()
		if done := w.revoke(w.t.Context(), false, 0, 7); !closed(done) {
			t.Error("it waits for nothing")
		}
		w.advance(time.Second)
		w.expect("insert 1", "commit map[1:1]")
	})
}

// Neither a lost partition's flight nor one that takes too long is waited for.
// It starts again with the records of the partitions that stay.
func TestRevokedBreaksTheFlightOff(t *testing.T) {
	for name, lost := range map[string]bool{"lost": true, "ctx over": false} {
		t.Run(name, func(t *testing.T) {
			var through chan<- struct{}
			runWith(t, func(w *world, _ *Config) { through = stuck(w) }, func(w *world) {
				w.feedChunk(0, 1, create(fresh, input("in")))
				w.feedChunk(1, 2, create(fresh, id(2)))
				w.advance(time.Second)
				w.feedChunk(1, 2, update(id(2), failure("e")))
				w.feedChunk(0, 1, update(failure("e")))
				w.advance(time.Second)
				ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
				defer cancel()
				done := w.revoke(ctx, lost, 0)
				if !lost {
					w.advance(time.Minute - time.Second)
					if closed(done) {
						t.Error("it did not wait")
					}
					w.advance(time.Second)
				}
				if !closed(done) {
					t.Fatal("it still waits")
				}
				w.expect("inserting", "insert fails", "inserting")
				through <- struct{}{}
				w.expect("insert 1", "commit map[1:1]", "inserting")
				through <- struct{}{}
				w.expect("insert 1", "commit map[1:2]")
				if w.core(1).Version != 0 || w.core(2).Error != "e" {
					t.Errorf("the table has %+v and %+v", w.core(1), w.core(2))
				}
			})
		})
	}
}

// With nothing left of its batch, a flight that was broken off does not start
// again, and the consumer goes on.
func TestRevokedOfAll(t *testing.T) {
	var through chan<- struct{}
	runWith(t, func(w *world, _ *Config) { through = stuck(w) }, func(w *world) {
		w.feedChunk(0, 1, create(fresh))
		w.advance(time.Second)
		w.feedChunk(0, 1, create(fresh, id(2)))
		w.advance(time.Second)
		if done := w.revoke(w.t.Context(), true, 0); !closed(done) {
			t.Fatal("it waits")
		}
		w.advance(time.Hour)
		w.expect("inserting", "insert fails")
		for n := range uint64(3) { // more than there are batches to reuse
			w.feedChunk(1, 2, create(fresh, id(10+n)))
			w.advance(time.Second)
			through <- struct{}{}
			w.advance(time.Second)
		}
		w.expect("inserting", "insert 1", "commit map[1:1]", "inserting", "insert 1", "commit map[1:2]",
			"inserting", "insert 1", "commit map[1:3]")
	})
}

// While steps fail and are retried, a revocation still gets through, and
// fetching is resumed.
func TestRevokedInAnOutage(t *testing.T) {
	runWith(t, func(w *world, _ *Config) {
		w.onInsert = failing(1<<30, errDown)
	}, func(w *world) {
		w.feedChunk(0, 1, create(fresh))
		w.advance(time.Hour)
		if done := w.revoke(w.t.Context(), true, 0); !closed(done) {
			t.Fatal("it waits")
		}
		w.advance(time.Hour)
		if got := w.commits(); len(got) > 0 {
			t.Errorf("committed %v", got)
		}
		if w.pauses != 0 {
			t.Errorf("fetching is paused %d times over", w.pauses)
		}
	})
}

// A batch that was full of what is given up is empty after it.
func TestRevokedOfAFullBatch(t *testing.T) {
	for _, poison := range []bool{false, true} {
		name := "of creates"
		if poison {
			name = "of poison"
		}
		t.Run(name, func(t *testing.T) {
			var through chan<- struct{}
			runWith(t, func(w *world, cfg *Config) {
				cfg.BatchBytesMax = 3 * recordBytes
				through = stuck(w)
			}, func(w *world) {
				w.feedChunk(1, 1, create(fresh))
				w.advance(time.Second)
				records := make([]record.Record, 3)
				for i := range records {
					records[i] = recordOf(create(fresh, id(uint64(10+i))), 0, int64(i))
					if poison {
						records[i].Version = 0
					}
				}
				w.feedRecords(2, records...)
				w.advance(time.Second)
				w.revoke(w.t.Context(), true, 0)
				w.feedChunk(1, 1, create(fresh, id(2)))
				w.advance(time.Second)
				through <- struct{}{}
				w.advance(time.Second)
				if len(w.polls) > 0 {
					t.Fatal("nothing is taken any more")
				}
				through <- struct{}{}
				w.advance(time.Second)
				if diff := cmp.Diff(map[int32]int64{1: 2}, w.commits()); diff != "" {
					t.Errorf("commits (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// Chunks of an assignment that is over come too late.
func TestChunksOfEndedEpochs(t *testing.T) {
	run(t, func(w *world) {
		w.feedChunk(0, 4, create(fresh))
		w.advance(time.Second)
		w.revoke(w.t.Context(), false, 0)
		w.feedChunk(0, 4, create(fresh, id(2)))
		w.feedChunk(0, 3, create(fresh, id(3)))
		w.feedChunk(1, 4, create(fresh, id(4)))
		w.advance(time.Second)
		w.expect("insert 1", "commit map[0:1]", "insert 1", "commit map[1:1]")

		w.next[0] = 1 // the next assignment goes on from the commit
		w.feedChunk(0, 5, create(fresh, id(5)))
		w.feedChunk(0, 4, create(fresh, id(6)))
		w.advance(time.Second)
		w.expect("insert 1", "commit map[0:2]")
		for n, want := range map[uint64]bool{1: true, 2: false, 3: false, 4: true, 5: true, 6: false} {
			if got := w.core(n).Version != 0; got != want {
				t.Errorf("create %d was applied: %t", n, got)
			}
		}
	})
}

// A new assignment of a partition that nobody revoked: what waits is dropped,
// as it comes again, and no row that is held can be trusted.
func TestHigherEpochWithoutRevoke(t *testing.T) {
	run(t, func(w *world) {
		w.feedChunk(0, 1, create(fresh))
		w.feedChunk(1, 1, create(fresh, id(2)))
		w.advance(time.Second)
		w.feedChunk(0, 1, create(fresh, id(3)))
		w.feedChunk(1, 1, create(fresh, id(4)))
		synctest.Wait()
		// Another member had the partition meanwhile and wrote this.
		w.mu.Lock()
		w.cores[testID(1)] = row(0, updated(5), func(c *event.Core) { c.Error = "theirs" })
		w.mu.Unlock()
		w.next[0] = 6
		w.feedChunk(0, 2, update(latency(1)), create(fresh, id(5)))
		w.feedChunk(1, 1, update(id(2), latency(1)))
		w.feedRecords(1, recordOf(create(fresh, id(6)), 0, 2)) // fetched before
		w.advance(time.Second)
		w.expect("insert 2", "commit map[0:1 1:1]", "cores [1]", "insert 4", "commit map[0:8 1:3]")
		want := row(0, updated(6), func(c *event.Core) { c.Error, c.Latency, c.HasLatency = "theirs", 1, true })
		if diff := cmp.Diff(want, w.core(1)); diff != "" {
			t.Errorf("core row (-want +got):\n%s", diff)
		}
		for n, want := range map[uint64]bool{3: false, 4: true, 5: true, 6: false} {
			if got := w.core(n).Version != 0; got != want {
				t.Errorf("create %d was applied: %t", n, got)
			}
		}
	})
}

// The same while a flight of the old assignment is under way: the rows that it
// leaves to be held must be forgotten too.
func TestHigherEpochDuringAFlight(t *testing.T) {
	var through chan<- struct{}
	runWith(t, func(w *world, _ *Config) { through = stuck(w) }, func(w *world) {
		w.feed(create(fresh))
		w.advance(time.Second)
		w.next[0] = 6
		w.feedChunk(0, 2, update(latency(1)))
		w.advance(time.Second)
		w.mu.Lock()
		w.cores[testID(1)] = row(0, updated(5), func(c *event.Core) { c.Error = "theirs" })
		w.mu.Unlock()
		through <- struct{}{}
		w.expect("inserting", "insert 1", "commit map[0:1]", "cores [1]", "inserting")
		through <- struct{}{}
		w.expect("insert 1", "commit map[0:7]")
		want := row(0, updated(6), func(c *event.Core) { c.Error, c.Latency, c.HasLatency = "theirs", 1, true })
		if diff := cmp.Diff(want, w.core(1)); diff != "" {
			t.Errorf("core row (-want +got):\n%s", diff)
		}
	})
}

// Rows that are held are forgotten with their partition, and with no other.
func TestRevokedForgetsRows(t *testing.T) {
	for name, lost := range map[string]bool{"revoked": false, "lost": true} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				w.feedChunk(0, 1, create(fresh))
				w.feedChunk(1, 2, create(fresh, id(2)))
				w.advance(time.Second)
				w.revoke(w.t.Context(), lost, 0)
				w.feedChunk(0, 3, update(failure("e")))
				w.feedChunk(1, 2, update(id(2), failure("e")))
				w.advance(time.Second)
				w.expect("insert 2", "commit map[0:1 1:1]", "cores [1]", "insert 2", "commit map[0:2 1:2]")
			})
		})
	}
}

// A final error of the source ends Run, once what it gave before is applied.
func TestFatalPoll(t *testing.T) {
	errLoss := errors.New("data loss")
	run(t, func(w *world) {
		w.feed(create(fresh))
		synctest.Wait()
		w.fatal <- errLoss
		err := w.stopped()
		if !errors.Is(err, errLoss) {
			t.Errorf("run returned %v", err)
		}
		w.expect("insert 1", "commit map[0:1]")
	})
}

// Revocations are answered however the consumer stands.
func TestRevokedWhileStopping(t *testing.T) {
	tests := map[string]func(w *world) []<-chan struct{}{
		"before the stop": func(w *world) []<-chan struct{} {
			done := w.revoke(context.Background(), false, 0)
			w.cancel()
			return []<-chan struct{}{done}
		},
		"during the last flush": func(w *world) []<-chan struct{} {
			w.cancel()
			synctest.Wait()
			return []<-chan struct{}{
				w.revoke(context.Background(), false, 0), w.revoke(context.Background(), true, 1),
			}
		},
	}
	for name, revoke := range tests {
		t.Run(name, func(t *testing.T) {
			runWith(t, func(w *world, _ *Config) { stuck(w) }, func(w *world) {
				w.feedChunk(0, 1, create(fresh))
				w.feedChunk(1, 1, create(fresh, id(2)))
				w.feedChunk(2, 1, create(fresh, id(3)))
				w.advance(time.Second)
				began := time.Now()
				done := revoke(w)
				err := w.stopped()
				if passed := time.Since(began); err != nil || passed > DefaultConfig().StopTimeout {
					t.Errorf("run returned %v after %v", err, passed)
				}
				synctest.Wait()
				for i, d := range done {
					if !closed(d) {
						t.Errorf("revocation %d is not answered", i)
					}
				}
				if got := w.commits(); len(got) > 0 {
					t.Errorf("committed %v", got)
				}
			})
		})
	}
}

func TestRevokedAfterTheEnd(t *testing.T) {
	run(t, func(w *world) {
		w.cancel()
		if err := w.stopped(); err != nil {
			t.Errorf("run: %v", err)
		}
		if done := w.revoke(context.Background(), false, 0); !closed(done) {
			t.Error("it waits for a consumer that has ended")
		}
	})
}

// The writes of one event keep their order over batches, flights and outages.
func TestOrderOverBatches(t *testing.T) {
	runWith(t, func(w *world, cfg *Config) {
		cfg.BatchRecordsMax = 3
		w.onInsert = func(_ context.Context, try int) error {
			if try%3 == 0 {
				return errDown
			}
			return nil
		}
	}, func(w *world) {
		w.feed(create(fresh))
		var want event.Core
		for n := range int64(20) {
			w.feed(update(latency(float64(n))))
			want = row(0, updated(n+1), func(c *event.Core) { c.Latency, c.HasLatency = float64(n), true })
		}
		w.advance(time.Hour)
		if diff := cmp.Diff(want, w.core(1)); diff != "" {
			t.Errorf("core row (-want +got):\n%s", diff)
		}
		var versions []event.Version
		for _, rows := range w.inserts {
			for _, core := range rows.Cores {
				versions = append(versions, core.Version)
			}
		}
		if !slices.IsSorted(versions) || len(versions) != len(slices.Compact(slices.Clone(versions))) {
			t.Errorf("versions in the order of their inserts: %v", versions)
		}
	})
}
