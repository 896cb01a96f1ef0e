package sluice_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// TestOrder tracks events while the clock stands still. Their ids ascend in the
// order of the calls, even across clients.
func TestOrder(t *testing.T) {
	for name, timestamp := range map[string]time.Time{
		"no timestamps":    {},
		"equal timestamps": time.Date(1999, 12, 31, 20, 0, 0, 5e6, time.FixedZone("UTC-5", -5*60*60)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := new(fakeAPI)
				clients := []*sluice.Client{open(t, api, sluice.Options{}), open(t, api, sluice.Options{})}
				var ids []string
				for i := range 1000 {
					e := sluice.Event{ConversationID: "c1", EventName: "event_a", Timestamp: timestamp}
					if timestamp.IsZero() {
						e.ConversationID = fmt.Sprint("c", i%3)
					}
					id, err := clients[i%2].TrackEvent(t.Context(), e)
					if err != nil {
						t.Fatal(err)
					}
					ids = append(ids, id)
				}
				if !slices.IsSorted(ids) || len(slices.Compact(ids)) != 1000 {
					t.Error("the ids do not ascend")
				}
			})
		})
	}
}

// TestOrderOfTraces traces nested calls. All of them begin at the same
// time and end in another order.
func TestOrderOfTraces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := open(t, new(fakeAPI), sluice.Options{})
		ids := make([]string, 20) // in the order of the calls
		var trace func(i int)
		trace = func(i int) {
			if i == len(ids) {
				return
			}
			var err error
			ids[i], err = client.Trace(t.Context(), "c1", func(context.Context, *sluice.Span) error { trace(i + 1); return nil })
			if err != nil {
				t.Error(err)
			}
		}
		trace(0)
		if !slices.IsSorted(ids) || len(slices.Compact(ids)) != len(ids) {
			t.Errorf("the ids of the calls are %q", ids)
		}
	})
}
