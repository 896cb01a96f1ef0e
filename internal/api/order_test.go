package api_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/event"
)

func compareIDs(a, b event.ID) int { return bytes.Compare(a[:], b[:]) }

// compareRows compares as the events of a conversation are read: by timestamp,
// then by id.
func compareRows(a, b event.Write) int {
	return cmp.Or(cmp.Compare(a.ID.Micros(), b.ID.Micros()), compareIDs(a.ID, b.ID))
}

// TestBatchOrder posts batches to a server whose clock stands still, the worst
// case for their order.
func TestBatchOrder(t *testing.T) {
	const (
		mint   = `{"conversation_id":"#c","event_name":"event_a","latency":#i}`
		alias  = `{"id":"own-#i","conversation_id":"#c","event_name":"event_a","latency":#i}`
		timed  = `{"conversation_id":"#c","timestamp":"2026-05-01T00:00:00.123456Z","event_name":"event_a","latency":#i}`
		millis = `{"conversation_id":"#c","timestamp":1777593600123,"event_name":"event_a","latency":#i}`
		update = `{"op":"update","id":"order-1","latency":#i}`
	)
	for _, c := range []struct {
		name          string
		items         []string // of which each batch is made, in turns
		conversations int
	}{
		{"one conversation", []string{mint}, 1},
		{"several conversations", []string{mint}, 7},
		{"callers' own ids", []string{alias}, 1},
		{"minted and own ids", []string{mint, alias, alias, mint}, 1},
		{"updates between", []string{update, mint, alias}, 2},
		{"equal timestamps", []string{timed}, 1},
		{"equal timestamps in milliseconds", []string{millis}, 3},
		{"equal timestamps between events without", []string{mint, timed, alias, timed, timed}, 1},
	} {
		for _, form := range []string{"ndjson", "array"} {
			t.Run(c.name+"/"+form, func(t *testing.T) {
				h := newHarness(t)
				const batches, items = 4, 50
				for b := range batches {
					var all []string
					for i := b * items; i < (b+1)*items; i++ {
						number := strconv.Itoa(i)
						of := strings.NewReplacer("#i", number, "#c", "c"+strconv.Itoa(i%c.conversations))
						all = append(all, of.Replace(c.items[i%len(c.items)]))
					}
					body, contentType := strings.Join(all, "\n"), "application/x-ndjson"
					if form == "array" {
						body, contentType = "["+strings.Join(all, ",")+"]", "application/json"
					}
					h.do(t, "POST", "/events", body, "Content-Type", contentType).expect(t, http.StatusAccepted, "")
				}
				if len(h.writes) != batches*items {
					t.Fatalf("%d writes", len(h.writes))
				}
				// Sorted from any order, the events without a timestamp, and those of
				// a conversation and timestamp, come back as they were sent.
				untimed, timed := []event.Write{}, map[string][]event.Write{}
				for _, w := range h.writes {
					switch {
					case w.Op != event.OpCreate:
					case w.ID.Micros() >= now.UnixMicro():
						untimed = append(untimed, w)
					default:
						timed[w.ConversationID] = append(timed[w.ConversationID], w)
					}
				}
				timed["without"] = untimed
				for name, sent := range timed {
					sorted := slices.Clone(sent)
					rand.Shuffle(len(sorted), func(i, j int) { sorted[i], sorted[j] = sorted[j], sorted[i] })
					slices.SortFunc(sorted, compareRows)
					for i := range sent {
						if sorted[i].Latency != sent[i].Latency {
							t.Fatalf("%s: event %d is %v, want %v", name, i, sorted[i].Latency, sent[i].Latency)
						}
						if i > 0 && compareRows(sorted[i-1], sorted[i]) == 0 {
							t.Fatalf("%s: two events have the id %s", name, sorted[i].ID)
						}
					}
				}
			})
		}
	}
}

// TestOrderAcrossRequests posts events of several conversations one by one, and
// sets the clock back between them.
func TestOrderAcrossRequests(t *testing.T) {
	clock := now
	h := newHarness(t, func(cfg *api.Config) { cfg.Now = func() time.Time { return clock } })
	for i := range 60 {
		if i == 20 {
			clock = clock.Add(-3 * time.Second)
		}
		body := fmt.Sprintf(`{"conversation_id":"c%d","event_name":"event_a"}`, i%3)
		if i%2 == 0 {
			h.do(t, "POST", "/event", body).expect(t, http.StatusAccepted, "")
		} else {
			h.do(t, "POST", "/events", "["+body+"]").expect(t, http.StatusAccepted, "")
		}
	}
	if !slices.IsSortedFunc(h.writes, compareRows) {
		t.Error("the events are not in the order of their requests")
	}
}

// idLog acknowledges writes, and hands on the ids of each call.
type idLog struct {
	instantLog
	produced func(ids []event.ID)
}

func (l *idLog) Produce(ctx context.Context, writes []event.Write) []event.Ack {
	ids := make([]event.ID, len(writes))
	for i := range writes {
		ids[i] = writes[i].ID
	}
	l.produced(ids)
	return l.instantLog.Produce(ctx, writes)
}

// batchPoster returns a function that posts the largest batch of one
// conversation that there may be, which may be called concurrently.
func batchPoster(t *testing.T, produced func(ids []event.ID)) (post func() error) {
	t.Helper()
	const items = api.DefaultBatchItemsMax
	reg := prometheus.NewRegistry()
	server, err := api.New(api.Config{}, api.Ports{Log: &idLog{instantLog{make([]event.Ack, items)}, produced}, Metrics: reg},
		slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	handler, body := server.Handler(), strings.Repeat(small+"\n", items)
	return func() error {
		r := request(http.MethodPost, "/events", body, "Content-Type", "application/x-ndjson")
		w := &discard{header: http.Header{}}
		if handler.ServeHTTP(w, r); w.status != http.StatusAccepted {
			return fmt.Errorf("status %d", w.status)
		}
		return nil
	}
}

// idBatchesVar says how many batches TestIDsOfBatches posts, where not 4. With
// 500 it takes about a minute.
const idBatchesVar = "SLUICE_ID_BATCHES"

// TestIDsOfBatches mints the ids of batches of 50,000 events of one conversation
// with the handler and the system's clock. Each is above all before it, so that
// no two are alike.
func TestIDsOfBatches(t *testing.T) {
	batches := 4
	if text := os.Getenv(idBatchesVar); text != "" {
		var err error
		if batches, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", idBatchesVar, err)
		}
	}
	var last event.ID
	minted := 0
	post := batchPoster(t, func(ids []event.ID) {
		for _, id := range ids {
			if compareIDs(last, id) >= 0 {
				t.Fatalf("id %d: %s after %s", minted, id, last)
			}
			last = id
			minted++
		}
	})
	for range batches {
		if err := post(); err != nil {
			t.Fatal(err)
		}
	}
	if minted != batches*api.DefaultBatchItemsMax {
		t.Errorf("%d batches have %d ids", batches, minted)
	}
	t.Logf("%d ids, distinct and ascending", minted)
}

// TestIDsOfConcurrentBatches is the same with connections that post at the same
// time: the ids of each batch ascend, and no two of all are alike.
func TestIDsOfConcurrentBatches(t *testing.T) {
	const connections, each = 2, 2
	var mu sync.Mutex
	var batches [][]event.ID
	post := batchPoster(t, func(ids []event.ID) {
		mu.Lock()
		defer mu.Unlock()
		batches = append(batches, ids)
	})
	var wg sync.WaitGroup
	for range connections {
		wg.Go(func() {
			for range each {
				if err := post(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, ids := range batches {
		if !slices.IsSortedFunc(ids, compareIDs) {
			t.Error("the ids of a batch do not ascend")
		}
	}
	all := slices.Concat(batches...)
	slices.SortFunc(all, compareIDs)
	if n := len(slices.Compact(all)); n != connections*each*api.DefaultBatchItemsMax {
		t.Errorf("%d ids are distinct", n)
	}
}
