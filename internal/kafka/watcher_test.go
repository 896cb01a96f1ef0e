package kafka_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka/broker"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

// The watcher asks the group's coordinator no more often than it can learn
// something. How soon it answers is in the tests of its pace.
func TestWatcherRequests(t *testing.T) {
	t.Parallel()
	broker := kafkatest.StartEmbedded(t, broker.Config{Dir: t.TempDir()})
	cfg := (&backend{addr: broker.Addr()}).topics(t)
	var asked atomic.Int64
	broker.Cluster().ControlKey(int16(kmsg.OffsetFetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		broker.Cluster().KeepControl()
		asked.Add(1)
		return nil, nil, false
	})
	p := kafkatest.NewProducer(t, cfg)
	c := kafkatest.NewConsumer(t, cfg, nil)
	applied := kafkatest.Produce(t, p, kafkatest.Updates(0, 40, 40))
	if err := c.Commit(t.Context(), kafkatest.Offsets(kafkatest.Collect(t, c, len(applied)))); err != nil {
		t.Fatal(err)
	}
	w, _ := startWatcher(t, cfg)
	if err := w.Wait(t.Context(), applied); err != nil {
		t.Fatal(err)
	}

	t.Run("what is applied long since", func(t *testing.T) {
		before := asked.Load()
		for range 300 {
			if err := w.Wait(t.Context(), applied[:1]); err != nil {
				t.Fatal(err)
			}
		}
		if n := asked.Load() - before; n > 30 {
			t.Errorf("asked %d times for 300 readers", n)
		}
	})
	t.Run("a group that stands still", func(t *testing.T) {
		pending := kafkatest.Produce(t, p, kafkatest.Updates(40, 20, 20))
		before := asked.Load()
		var all sync.WaitGroup
		for i, r := range pending {
			all.Go(func() {
				// Some are readers, some writers, and some give up and come again.
				for range 1 + i%3 {
					ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second/time.Duration(1+i%3))
					var err error
					if i%2 == 0 {
						err = w.Wait(ctx, []event.Receipt{r})
					} else {
						_, _, err = w.Outcomes(ctx, w.Mark(), []event.Receipt{r})
					}
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("error %v, want that time is over", err)
					}
					cancel()
				}
			})
		}
		all.Wait()
		// One each 15 ms would be 200.
		if n := asked.Load() - before; n > 80 {
			t.Errorf("asked %d times in 3 s", n)
		} else {
			t.Logf("asked %d times in 3 s", n)
		}
	})
}
