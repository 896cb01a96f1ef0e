package workload_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/bench/workload"
	"github.com/sluicehq/sluice/internal/event"
)

func plan(t *testing.T, e workload.Encoding, events int) *workload.Plan {
	t.Helper()
	corpus, err := workload.OpenCorpus("", e)
	if err != nil {
		t.Fatal(err)
	}
	return &workload.Plan{
		Corpus: corpus, Encoding: e, Run: "t", Seed: 3, Events: events,
		Start: time.Now().Add(-time.Hour).Truncate(time.Millisecond), Span: 10 * time.Minute,
	}
}

// Every write of a plan is one that Sluice accepts, for the event it is meant for.
func TestPlanIsValid(t *testing.T) {
	parser := body.Parser{Rules: &event.Rules{EventNames: event.DefaultEventNames()}}
	now := time.Now()
	for _, e := range []workload.Encoding{workload.Text, workload.Base64, workload.JSONArrays} {
		t.Run(e.String(), func(t *testing.T) {
			p := plan(t, e, 20_000)
			seen := make(map[event.ID]bool)
			step := 1
			if e != workload.Text {
				step = 100
			}
			for i := 0; i < p.Events; i += step {
				w, err := parser.ParseCreate(p.AppendCreate(nil, i), now)
				if err != nil {
					t.Fatalf("create %d: %v", i, err)
				}
				if w.ID != p.ID(i) || seen[w.ID] {
					t.Fatalf("create %d has id %s, seen before: %t", i, w.ID, seen[w.ID])
				}
				seen[w.ID] = true
				if at := w.ID.Time(); at.Before(p.Start) || !at.Before(p.Until()) {
					t.Fatalf("create %d is at %s, outside of %s to %s", i, at, p.Start, p.Until())
				}
				if (e != workload.Text) != (w.InputEmbeddings.Dimensions() == 384 && w.OutputEmbeddings.Dimensions() == 384) {
					t.Fatalf("create %d has %d and %d dimensions", i, w.InputEmbeddings.Dimensions(), w.OutputEmbeddings.Dimensions())
				}
				for _, item := range [][]byte{p.AppendUpdateItem(nil, i), p.AppendDeleteItem(nil, i)} {
					if w, err := parser.ParseItem(item, now); err != nil || w.ID != p.ID(i) {
						t.Fatalf("item %s: id %s, error %v", item, w.ID, err)
					}
				}
				if _, err := parser.ParseUpdate(event.Ref{ID: p.ID(i)}, p.AppendUpdate(nil, i)); err != nil {
					t.Fatalf("update %d: %v", i, err)
				}
			}
		})
	}
}

// What must be counted is what must be shown.
func TestCountsMatchWants(t *testing.T) {
	p := plan(t, workload.Text, 20_000) // more than the corpus has
	s := workload.State{Updated: make([]bool, p.Events), Deleted: make([]bool, p.Events)}
	for _, i := range p.Choose(8000, 1) {
		s.Updated[i] = true
	}
	for _, i := range p.Choose(8000, 2) {
		s.Deleted[i] = true
	}
	got := make(map[string]workload.Count)
	for i := range p.Events {
		want, err := p.Want(i, &s)
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			continue
		}
		name := want["event_name"].(string)
		c := got[name]
		c.Events++
		if want["error"] != nil {
			c.Errors++
		}
		got[name] = c
	}
	if diff := cmp.Diff(p.Counts(&s), got); diff != "" {
		t.Error(diff)
	}
	if got["event_b"].Errors == 0 || got["event_b"].Errors == got["event_b"].Events {
		t.Errorf("%+v: want some errors", got)
	}
}

func TestChoose(t *testing.T) {
	p := plan(t, workload.Text, 1000)
	a, again, other := p.Choose(100, 1), p.Choose(100, 1), p.Choose(100, 2)
	if !cmp.Equal(a, again) || cmp.Equal(a, other) {
		t.Error("a choice depends on the seed and the salt alone")
	}
	seen := make(map[int]bool)
	for _, i := range a {
		if seen[i] || i < 0 || i >= 1000 {
			t.Fatalf("event %d is out of range or chosen twice", i)
		}
		seen[i] = true
	}
}

// api answers as Sluice does, with receipts of two partitions.
type api struct {
	mu     sync.Mutex
	bodies map[string]int
	offset int
	fail   int // the request that is refused, from 1; 0 for none. Later ones are not answered.
	shown  map[string]any
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Method == http.MethodGet {
		if a.shown == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(a.shown)
		return
	}
	body, _ := io.ReadAll(r.Body)
	a.bodies[r.Header.Get("Authorization")+" "+r.Header.Get("Content-Type")+" "+string(body)]++
	a.offset++
	if a.offset == a.fail {
		http.Error(w, `{"title":"no"}`, http.StatusUnprocessableEntity)
		return
	}
	if a.fail != 0 && a.offset > a.fail {
		a.mu.Unlock()
		<-r.Context().Done()
		a.mu.Lock()
		return
	}
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"id":"x","receipt":"1.%d.%d"}`, a.offset%2, a.offset)
}

func serve(t *testing.T, a *api) workload.Target {
	t.Helper()
	a.bodies = make(map[string]int)
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return workload.Target{URL: u, Key: "k"}
}

func TestSend(t *testing.T) {
	a := &api{}
	sent, err := workload.Send(t.Context(), serve(t, a), 7, 100, func(r *workload.Request, i int) {
		r.Method, r.Path, r.ContentType = http.MethodPost, "/event", "application/json"
		r.Body = fmt.Appendf(r.Body, "%d", i)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.bodies) != 100 || a.bodies["Bearer k application/json 42"] != 1 {
		t.Errorf("%d bodies arrived, want each of 100 once", len(a.bodies))
	}
	if len(sent.Latencies) != 100 || sent.Bytes != 190 || !sent.Acked.After(sent.Begun) {
		t.Errorf("%+v", sent)
	}
	last := map[int32]int64{}
	for _, r := range sent.Last {
		last[r.Partition] = r.Offset
	}
	if diff := cmp.Diff(map[int32]int64{0: 100, 1: 99}, last); diff != "" {
		t.Error(diff)
	}
}

func TestSendStopsAtRefusal(t *testing.T) {
	a := &api{fail: 10}
	_, err := workload.Send(t.Context(), serve(t, a), 2, 1000, func(r *workload.Request, _ int) { r.Method, r.Path = "DELETE", "/event/x" })
	if err == nil || !strings.Contains(err.Error(), "422") || !strings.Contains(err.Error(), `{"title":"no"}`) {
		t.Errorf("error %v, want one that quotes the answer", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.offset > 11 {
		t.Errorf("%d requests after the refused one, want at most that of the other connection", a.offset-10)
	}
}

func TestSampleFindsDifferences(t *testing.T) {
	p := plan(t, workload.Text, 10)
	none := &workload.State{}
	want, err := p.Want(4, none)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(map[string]any) map[string]any
		state  workload.State
		same   bool
	}{
		{"the event", func(m map[string]any) map[string]any { return m }, *none, true},
		{"another output", func(m map[string]any) map[string]any { m["output"] = "else"; return m }, *none, false},
		{"a missing event", func(map[string]any) map[string]any { return nil }, *none, false},
		{"a deleted event", func(m map[string]any) map[string]any { return m }, workload.State{Deleted: make([]bool, 10)}, false},
		{"an update not applied", func(m map[string]any) map[string]any { return m }, workload.State{Updated: []bool{4: true}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.state.Deleted != nil {
				tt.state.Deleted[4] = true
			}
			shown := make(map[string]any)
			for k, v := range want {
				shown[k] = v
			}
			v := workload.Verifier{To: serve(t, &api{shown: tt.change(shown)}), HTTP: http.DefaultClient}
			err := v.Sample(context.Background(), p, &tt.state, []int{4})
			if tt.same != (err == nil) || err != nil && !errors.Is(err, workload.ErrDifferent) {
				t.Errorf("error %v", err)
			}
		})
	}
}
