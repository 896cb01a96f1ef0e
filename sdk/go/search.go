package sluice

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"net/http"
	"net/url"
)

// A SearchField is a field of an event that a search looks in.
type SearchField string

// The values of a [SearchField].
const (
	SearchInput  SearchField = "input"
	SearchOutput SearchField = "output"
	// SearchError is for a search of text alone.
	SearchError SearchField = "error"
)

// A SearchQuery is the query of [Client.Search] and [Client.SearchAll]. It has a Text, a
// Vector or Like, or a Text beside one of the other two.
type SearchQuery struct {
	// Filter selects the events that are searched.
	Filter
	// Text has words, and phrases in double quotes. An event is found if one of its
	// fields has all of them, whatever their case. The newest events come first.
	Text string
	// Vector has 1 to 4,096 numbers. The events whose embeddings have the same number of
	// dimensions and the nearest direction are found, the nearest first.
	Vector []float32
	// Like is the id of an event, whose embeddings are the vector. The event itself is
	// not found.
	Like string
	// Field is the field that is searched. Default: all of them; for Like, the input if
	// the event has embeddings of its input, otherwise the output.
	Field SearchField
	// Exact has a search by similarity compare every embedding. Among very many it otherwise
	// chooses candidates first, and may miss some of the nearest events. Default false.
	Exact bool
	// Limit is the maximum number of results in a page, 1 to 100. Default 10.
	Limit int
	// Cursor is SearchPage.NextCursor of the previous page, which must have had the same
	// query. Only searches of text alone have several pages. Default: the first page.
	Cursor string
}

// A SearchPage is one page of what a search found, the best first.
type SearchPage struct {
	Results []SearchResult `json:"results"`
	// NextCursor is the cursor of the next page; empty on the last page.
	NextCursor string `json:"next_cursor"`
}

// A SearchResult is an event that a search found.
type SearchResult struct {
	// Event has no embeddings.
	Event StoredEvent `json:"event"`
	// Score is 1 for a search of text alone, and the cosine similarity for one by
	// similarity alone. With both it is the sum of 1/(60+rank) over the ranks that the
	// event has among the first 50 of each.
	Score float64 `json:"score"`
	// Highlights are the places in which the text was found, up to three of a field.
	Highlights []Highlight `json:"highlights"`
}

// A Highlight is a piece of a field in which a text was found.
type Highlight struct {
	Field SearchField `json:"field"`
	// Fragments joined are the piece.
	Fragments []Fragment `json:"fragments"`
}

// A Fragment is a part of a [Highlight].
type Fragment struct {
	Text string `json:"text"`
	// Match is whether the fragment is what was searched for.
	Match bool `json:"match"`
}

// Search finds events by a text, by the similarity of embeddings, or by both, and reads
// one page of them. The errors are those of [Client.Event]; CodeUnknownEvent means that
// q.Like names no event.
func (c *Client) Search(ctx context.Context, q SearchQuery, opts ...ReadOption) (*SearchPage, error) {
	body, err := q.body()
	if err != nil {
		return nil, err
	}
	page := new(SearchPage)
	asked := question{method: http.MethodPost, path: "/search", values: make(url.Values), body: body, contentType: "application/json"}
	if err := c.read(ctx, asked, page, opts); err != nil {
		return nil, err
	}
	return page, nil
}

// SearchAll iterates over all results of [Client.Search], beginning at q.Cursor. It reads
// one page at a time; opts apply to the first page. It ends after the first error; the
// errors are those of [Client.Search].
func (c *Client) SearchAll(ctx context.Context, q SearchQuery, opts ...ReadOption) iter.Seq2[SearchResult, error] {
	return over(q.Cursor, opts, func(cursor string, opts []ReadOption) ([]SearchResult, string, error) {
		q := q
		q.Cursor = cursor
		page, err := c.Search(ctx, q, opts...)
		if err != nil {
			return nil, "", err
		}
		return page.Results, page.NextCursor, nil
	})
}

// body returns the query as JSON.
func (q *SearchQuery) body() ([]byte, error) {
	filter, err := q.members()
	if err != nil {
		return nil, err
	}
	if q.Vector != nil {
		if err := checkVector("vector", q.Vector); err != nil {
			return nil, err
		}
	}
	return json.Marshal(struct {
		Text   string         `json:"text,omitempty"`
		Vector []float32      `json:"vector,omitempty"`
		Like   string         `json:"like,omitempty"`
		Field  SearchField    `json:"field,omitempty"`
		Filter map[string]any `json:"filter,omitempty"`
		Exact  bool           `json:"exact,omitempty"`
		Limit  int            `json:"limit,omitempty"`
		Cursor string         `json:"cursor,omitempty"`
	}{q.Text, q.Vector, q.Like, q.Field, filter, q.Exact, q.Limit, q.Cursor})
}

// checkVector returns a [*FieldError] for a vector that the server would refuse.
func checkVector(field string, v []float32) error {
	if len(v) == 0 || len(v) > dimensionsMax {
		return &FieldError{Field: field, Reason: "must have 1 to 4,096 numbers"}
	}
	for i, n := range v {
		if math.IsNaN(float64(n)) || math.IsInf(float64(n), 0) {
			return &FieldError{Field: fmt.Sprintf("%s[%d]", field, i), Reason: "must be a finite number"}
		}
	}
	return nil
}
