package sluice

import (
	"context"
	"iter"
	"net/url"
	"time"
)

// A TimeOrder is an order of events by their timestamps. Events with equal timestamps
// are sorted by id.
type TimeOrder string

// The values of a [TimeOrder].
const (
	OldestFirst TimeOrder = "timestamp"
	NewestFirst TimeOrder = "-timestamp"
)

// A Page is one page of events.
type Page struct {
	Events []StoredEvent `json:"events"`
	// NextCursor is the cursor of the next page; empty on the last page.
	NextCursor string `json:"next_cursor"`
}

// An EventsQuery is the query of [Client.ListEvents] and [Client.AllEvents].
type EventsQuery struct {
	Filter
	// Order defaults to NewestFirst.
	Order TimeOrder
	// Limit is the maximum number of events in a page, 1 to 1,000. Default 100.
	Limit int
	// Cursor is Page.NextCursor of the previous page, which must have had the same
	// filter and order. Default: the first page.
	Cursor string
	// Embeddings is whether the events have their embeddings. Default false.
	Embeddings bool
}

// ListEvents reads one page of the events of all conversations that match the filter.
// The errors are those of [Client.Event].
func (c *Client) ListEvents(ctx context.Context, q EventsQuery, opts ...ReadOption) (*Page, error) {
	values, err := q.values()
	if err != nil {
		return nil, err
	}
	return c.eventPage(ctx, "/events", values, opts)
}

// AllEvents iterates over all events that match the filter, beginning at q.Cursor. It
// reads one page at a time; opts apply to the first page. It ends after the first
// error; the errors are those of [Client.Event].
func (c *Client) AllEvents(ctx context.Context, q EventsQuery, opts ...ReadOption) iter.Seq2[StoredEvent, error] {
	return over(q.Cursor, opts, func(cursor string, opts []ReadOption) ([]StoredEvent, string, error) {
		q := q
		q.Cursor = cursor
		page, err := c.ListEvents(ctx, q, opts...)
		if err != nil {
			return nil, "", err
		}
		return page.Events, page.NextCursor, nil
	})
}

// A ConversationListQuery is the query of [Client.ListConversations] and
// [Client.AllConversations].
type ConversationListQuery struct {
	// Filter selects events. A conversation is listed if one of its events matches,
	// and everything said about the conversation is about its matching events.
	Filter
	// Limit is the maximum number of conversations in a page, 1 to 1,000. Default 50.
	Limit int
	// Cursor is ConversationList.NextCursor of the previous page, which must have had
	// the same filter. Default: the first page.
	Cursor string
}

// A ConversationSummary says what the matching events of a conversation are like.
type ConversationSummary struct {
	ConversationID string `json:"conversation_id"`
	// First and Last are the timestamps of the first and the last event.
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
	Events int64     `json:"events"`
	Errors int64     `json:"errors"`
	// ErrorRate is errors per event, 0 to 1.
	ErrorRate float64 `json:"error_rate"`
	// EventNames has up to 100 names of the events, in alphabetical order.
	EventNames []string `json:"event_names"`
	// FirstInput is the beginning, up to 200 characters, of the first input among the
	// first five events. LastOutput is that of the last output among the last five
	// events. JSON is shown as its text. They are empty if there is none.
	FirstInput string `json:"first_input"`
	LastOutput string `json:"last_output"`
}

// A ConversationList is one page of conversations, the one with the latest event
// first.
type ConversationList struct {
	Conversations []ConversationSummary `json:"conversations"`
	// NextCursor is the cursor of the next page; empty on the last page.
	NextCursor string `json:"next_cursor"`
}

// ListConversations reads one page of the conversations that have an event which
// matches the filter, the one with the latest such event first. The errors are those
// of [Client.Event].
func (c *Client) ListConversations(ctx context.Context, q ConversationListQuery, opts ...ReadOption) (*ConversationList, error) {
	values, err := q.values()
	if err != nil {
		return nil, err
	}
	setInt(values, "limit", q.Limit)
	set(values, "cursor", q.Cursor)
	list := new(ConversationList)
	if err := c.get(ctx, "/conversations", values, list, opts); err != nil {
		return nil, err
	}
	return list, nil
}

// AllConversations iterates over all conversations of [Client.ListConversations],
// beginning at q.Cursor. It reads one page at a time; opts apply to the first page. A
// conversation that gets a new event meanwhile moves to the front, so the sequence may
// leave it out. It ends after the first error; the errors are those of
// [Client.Event].
func (c *Client) AllConversations(ctx context.Context, q ConversationListQuery, opts ...ReadOption) iter.Seq2[ConversationSummary, error] {
	return over(q.Cursor, opts, func(cursor string, opts []ReadOption) ([]ConversationSummary, string, error) {
		q := q
		q.Cursor = cursor
		list, err := c.ListConversations(ctx, q, opts...)
		if err != nil {
			return nil, "", err
		}
		return list.Conversations, list.NextCursor, nil
	})
}

// values returns the parameters of the query.
func (q *EventsQuery) values() (url.Values, error) {
	values, err := q.Filter.values()
	if err != nil {
		return nil, err
	}
	set(values, "order", string(q.Order))
	setInt(values, "limit", q.Limit)
	set(values, "cursor", q.Cursor)
	if q.Embeddings {
		values.Set("embeddings", "true")
	}
	return values, nil
}

func (c *Client) eventPage(ctx context.Context, path string, values url.Values, opts []ReadOption) (*Page, error) {
	page := new(Page)
	if err := c.get(ctx, path, values, page, opts); err != nil {
		return nil, err
	}
	return page, nil
}

// over iterates over the items of all pages, from the page of the cursor on. read reads
// a page. The options apply to the first page.
func over[T any](cursor string, opts []ReadOption, read func(cursor string, opts []ReadOption) ([]T, string, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		cursor, opts := cursor, opts // copies, so that the sequence can be ranged over again
		for {
			items, next, err := read(cursor, opts)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			cursor, opts = next, nil
		}
	}
}
