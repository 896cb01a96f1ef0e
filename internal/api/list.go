package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	defaultPageEvents        = 100
	defaultPageConversations = 50
	conversationsMax         = 1000
	previewChars             = 200
	cursorCheckBytes         = 8
)

// list is a page of events that is asked for.
type list struct {
	query.List
	// scope is what a cursor of this list is valid for.
	scope string
}

// scope returns the text of all parameters that make a list what it is. It must be called
// before they are taken.
func (p *params) scope() string {
	values := make(url.Values, len(p.values))
	for name, v := range p.values {
		switch name {
		case "id", "limit", "cursor", "after", "embeddings":
		default:
			values[name] = v
		}
	}
	return values.Encode()
}

func (s *Server) listConversation(x *exchange) error {
	p, err := newParams(x.r)
	if err != nil {
		return err
	}
	q := list{scope: p.id()}
	id := q.scope
	switch {
	case len(id) > event.ConversationIDBytesMax:
		p.fail(event.CodeTooLarge, "conversation_id", "is longer than %d bytes", event.ConversationIDBytesMax)
	case !utf8.ValidString(id):
		p.fail(event.CodeInvalidValue, "conversation_id", "must be UTF-8")
	}
	if scope := p.scope(); scope != "" {
		q.scope += "\x00" + scope
	}
	if _, ok := p.values["conversation_id"]; ok {
		p.fail(event.CodeUnknownField, "conversation_id", "is not a parameter of this resource")
	}
	q.Filter = s.filter(p, true)
	q.ConversationID = id
	q.Newest = p.choice("order", "timestamp", "-timestamp") == 1
	return s.list(x, p, q, "is not a cursor of this conversation")
}

func (s *Server) listEvents(x *exchange) error {
	p, err := newParams(x.r)
	if err != nil {
		return err
	}
	q := list{scope: p.scope()}
	q.Filter = s.filter(p, true)
	q.Newest = p.choice("order", "-timestamp", "timestamp") == 0
	return s.list(x, p, q, "is not a cursor of a list with these filters and this order")
}

// list takes what all lists of events have in common, and sends the page.
func (s *Server) list(x *exchange, p *params, q list, badCursor string) error {
	q.LimitEvents = p.count("limit", defaultPageEvents, s.cfg.PageEventsMax)
	q.WithEmbeddings = p.flag("embeddings")
	if text, ok := p.one("cursor"); ok {
		if q.After, ok = parseEventCursor(text, q.scope); !ok {
			p.fail(event.CodeInvalidValue, "cursor", "%s", badCursor)
		}
	}
	after := s.after(p)
	if err := p.finish(); err != nil {
		return err
	}
	if err := s.waitForReceipts(x, after); err != nil {
		return err
	}
	return s.sendPage(x, q)
}

// appendNextCursor appends the end of an answer whose last member is next_cursor: the
// text of the place from which the next page goes on, and a check that ties it to the list. A
// nil place says that there is no next page.
func appendNextCursor(b, place []byte, scope string) []byte {
	b = append(b, `],"next_cursor":`...)
	if place == nil {
		return append(b, "null}\n"...)
	}
	b = append(b, '"')
	b = base64.RawURLEncoding.AppendEncode(b, append(bytes.Clone(place), cursorCheck(place, scope)...))
	return append(b, "\"}\n"...)
}

// parseCursor returns the place of a cursor of the list.
func parseCursor(text, scope string) (place []byte, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < cursorCheckBytes {
		return nil, false
	}
	place, check := b[:len(b)-cursorCheckBytes], b[len(b)-cursorCheckBytes:]
	return place, bytes.Equal(check, cursorCheck(place, scope))
}

func cursorCheck(place []byte, scope string) []byte {
	sum := sha256.Sum256(append(bytes.Clone(place), scope...))
	return sum[:cursorCheckBytes]
}

// parseEventCursor returns the event after which the next page of a list begins.
func parseEventCursor(text, scope string) (*event.ID, bool) {
	place, ok := parseCursor(text, scope)
	if !ok || len(place) != len(event.ID{}) {
		return nil, false
	}
	id := event.ID(place)
	return &id, true
}

// eventPlace returns the place of an event in a list; nil for none.
func eventPlace(id *event.ID) []byte {
	if id == nil {
		return nil
	}
	return id[:]
}

// listConversations answers with conversations, the one with the latest event first.
func (s *Server) listConversations(x *exchange) error {
	p, err := newParams(x.r)
	if err != nil {
		return err
	}
	scope := p.scope()
	q := query.ConversationList{PreviewChars: previewChars, Filter: s.filter(p, true)}
	limit := p.count("limit", defaultPageConversations, min(conversationsMax, s.cfg.RowsMax))
	q.LimitRows = limit + 1 // one more tells whether there is a next page
	if text, ok := p.one("cursor"); ok {
		if q.After, ok = parseConversationCursor(text, scope); !ok {
			p.fail(event.CodeInvalidValue, "cursor", "is not a cursor of a list with these filters")
		}
	}
	var rows []query.ConversationSummary
	var next []byte
	return s.ask(x, p, s.after(p), question{
		rowsMax: q.LimitRows, rowBytes: rowBytesMin + event.ConversationIDBytesMax + 2*4*previewChars + listedNameBytes,
		ask: func(ctx context.Context) (int, error) {
			var err error
			rows, err = s.ports.Analytics.ConversationList(ctx, q)
			if len(rows) > limit {
				rows = rows[:limit]
				next = conversationPlace(&rows[limit-1])
			}
			return len(rows), err
		},
		begin: `{"conversations":[`,
		row: func(i int) {
			row := &rows[i]
			x.out = appendMember(x.out, '{', "conversation_id")
			x.out = appendString(x.out, row.ConversationID)
			x.out = appendTime(appendMember(x.out, ',', "first"), row.FirstMicros)
			x.out = appendTime(appendMember(x.out, ',', "last"), row.LastMicros)
			x.out = appendCount(append(x.out, ','), row.ErrorCount)
			x.out = append(appendMember(x.out, ',', "event_names"), '[')
			for i, name := range row.EventNames {
				if i > 0 {
					x.out = append(x.out, ',')
				}
				x.out = appendString(x.out, name)
			}
			x.out = append(x.out, ']')
			x.out = appendPreview(appendMember(x.out, ',', "first_input"), row.FirstInput)
			x.out = appendPreview(appendMember(x.out, ',', "last_output"), row.LastOutput)
			x.out = append(x.out, '}')
		},
		tail: func() { x.out = appendNextCursor(x.out, next, scope) },
	})
}

// listedNameBytes is the memory that a list reserves for the event names of a conversation, of which
// most have few.
const listedNameBytes = 1 << 10

func appendPreview(b []byte, text string) []byte {
	if text == "" {
		return append(b, "null"...)
	}
	return appendString(b, strings.ToValidUTF8(text, "\uFFFD"))
}

// conversationPlace returns a place in a list of conversations.
func conversationPlace(c *query.ConversationSummary) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(c.LastMicros)), c.ConversationID...)
}

func parseConversationCursor(text, scope string) (*query.ConversationPlace, bool) {
	place, ok := parseCursor(text, scope)
	if !ok || len(place) < 8 {
		return nil, false
	}
	return &query.ConversationPlace{LastMicros: int64(binary.BigEndian.Uint64(place)), ConversationID: string(place[8:])}, true
}
