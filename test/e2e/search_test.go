package e2e_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"testing"
	"time"
)

// checkLists reads all pages of a list of events, in both orders.
func checkLists(t *testing.T, c *client, m *model, f filter) {
	t.Helper()
	want := m.where(f)
	for _, order := range []string{"timestamp", "-timestamp"} {
		query := f.query()
		query.Set("order", order)
		query.Set("limit", "900")
		var ids []string
		var last time.Time
		for {
			var page struct {
				Events []struct {
					ID        string    `json:"id"`
					Timestamp time.Time `json:"timestamp"`
				} `json:"events"`
				NextCursor *string `json:"next_cursor"`
			}
			if err := c.get("/events?"+query.Encode(), &page); err != nil {
				t.Error(err)
				return
			}
			for _, e := range page.Events {
				if after := e.Timestamp.Compare(last); len(ids) > 0 && (after < 0) == (order == "timestamp") && after != 0 {
					t.Errorf("%s: %s is out of order", order, e.ID)
				}
				ids, last = append(ids, e.ID), e.Timestamp
			}
			if page.NextCursor == nil {
				break
			}
			query.Set("cursor", *page.NextCursor)
		}
		wanted := make([]string, len(want))
		for i, e := range want {
			wanted[i] = e.id
		}
		slices.Sort(ids)
		slices.Sort(wanted)
		if !slices.Equal(ids, wanted) {
			t.Errorf("%s, %v: %d events, want %d, or others", order, f, len(ids), len(wanted))
		}
	}
}

// searched is the answer of a search.
type searched struct {
	Results []struct {
		Event struct {
			ID string `json:"id"`
		} `json:"event"`
		Score float64 `json:"score"`
	} `json:"results"`
	NextCursor *string `json:"next_cursor"`
}

func (c *client) search(body map[string]any) (found searched, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return found, err
	}
	a, err := c.do(http.MethodPost, "/search", text, "")
	if err == nil && a.status != http.StatusOK {
		err = fmt.Errorf("search %s: status %d: %s", text, a.status, a.body)
	}
	if err == nil {
		err = json.Unmarshal(a.body, &found)
	}
	return found, err
}

// searchFilter is the filter as a search takes it.
func searchFilter(query url.Values) map[string]any {
	f := map[string]any{}
	for name := range query {
		f[name] = query.Get(name)
	}
	return f
}

// texts returns the strings of a JSON value.
func texts(value any) []string {
	switch v := value.(type) {
	case string:
		return []string{v}
	case []any:
		var all []string
		for _, element := range v {
			all = append(all, texts(element)...)
		}
		return all
	case map[string]any:
		var all []string
		for _, element := range v {
			all = append(all, texts(element)...)
		}
		return all
	}
	return nil
}

// checkSearch compares what searches of text find with what regular expressions find in the model's events, and the
// nearest events with those that the model computes.
func checkSearch(t *testing.T, c *client, m *model, f filter) {
	t.Helper()
	events := m.where(f)
	for text, pattern := range map[string]string{
		`RESTAURANT`:     `(?i)(^|[^\pL\pN\pM])restaurant($|[^\pL\pN\pM])`,
		`"thank you"`:    `(?i)(^|[^\pL\pN\pM])thank[^\pL\pN\pM]+you($|[^\pL\pN\pM])`,
		"nosuchwordatal": `nosuchwordatal`,
	} {
		matches := regexp.MustCompile(pattern)
		var want []string
		for _, e := range events {
			for _, member := range []string{"input", "output"} {
				var value any
				_ = json.Unmarshal(e.fields[member], &value) // null if absent
				if slices.ContainsFunc(texts(value), matches.MatchString) {
					want = append(want, e.id)
					break
				}
			}
		}
		var ids []string
		body := map[string]any{"text": text, "limit": 100, "filter": searchFilter(f.query())}
		for {
			found, err := c.search(body)
			if err != nil {
				t.Error(err)
				return
			}
			for _, r := range found.Results {
				ids = append(ids, r.Event.ID)
			}
			if found.NextCursor == nil {
				break
			}
			body["cursor"] = *found.NextCursor
		}
		slices.Sort(ids)
		slices.Sort(want)
		if !slices.Equal(ids, want) {
			t.Errorf("%s, %v: %d events, want %d, or others", text, f, len(ids), len(want))
		}
	}
	checkSimilar(t, c, f, events)
}

func checkSimilar(t *testing.T, c *client, f filter, events []*modelEvent) {
	t.Helper()
	const field = "input_embeddings"
	at := slices.IndexFunc(events, func(e *modelEvent) bool { return len(e.vectors[field]) > 0 })
	if at < 0 {
		return
	}
	like := events[at]
	var scores []float64
	for _, e := range events {
		if e != like && len(e.vectors[field]) == len(like.vectors[field]) {
			scores = append(scores, similarity(e.vectors[field], like.vectors[field]))
		}
	}
	slices.SortFunc(scores, func(a, b float64) int { return cmp.Compare(b, a) })
	found, err := c.search(map[string]any{"like": like.id, "field": "input", "filter": searchFilter(f.query())})
	if err != nil {
		t.Error(err)
		return
	}
	if len(found.Results) != min(10, len(scores)) {
		t.Errorf("like %s, %v: %d events, want 10 of %d", like.id, f, len(found.Results), len(scores))
		return
	}
	for i, r := range found.Results {
		if r.Event.ID == like.id || math.Abs(r.Score-scores[i]) > 1e-5 {
			t.Errorf("like %s, %v: place %d is %s with score %v, want %v", like.id, f, i, r.Event.ID, r.Score, scores[i])
		}
	}
}

func similarity(a, b []float32) float64 {
	var dot, lengthA, lengthB float64
	for i := range a {
		x, y := float64(a[i]), float64(b[i])
		dot, lengthA, lengthB = dot+x*y, lengthA+x*x, lengthB+y*y
	}
	return dot / math.Sqrt(lengthA*lengthB)
}
