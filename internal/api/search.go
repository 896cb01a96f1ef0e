package api

import (
	"context"
	"errors"
	"math"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fulltext"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	defaultHits = 10
	hitsMax     = 100
	// fusedHits is how many hits of each kind are fused.
	fusedHits = 50
	// fusionRank is the constant of reciprocal rank fusion: a hit at place n, from 1, has
	// the score 1/(fusionRank+n). 60 is that of the paper that proposed it.
	fusionRank = 60
)

// searchRequest is the body of a search.
type searchRequest struct {
	Text   *string                   `json:"text"`
	Vector []dimension               `json:"vector"`
	Like   *string                   `json:"like"`
	Field  *string                   `json:"field"`
	Filter map[string]jsontext.Value `json:"filter"`
	Limit  *int                      `json:"limit"`
	Cursor *string                   `json:"cursor"`
	Exact  *bool                     `json:"exact,omitzero"`
}

// dimension is a number of a vector.
type dimension float64

// errNoNumber is the error of a dimension that is no number.
var errNoNumber = errors.New("must be a number")

// UnmarshalJSONFrom refuses null, which would otherwise be 0.
func (d *dimension) UnmarshalJSONFrom(in *jsontext.Decoder) error {
	if in.PeekKind() == 'n' {
		return errNoNumber
	}
	return json.UnmarshalDecode(in, (*float64)(d))
}

// search is a search that is asked for.
type search struct {
	text    *query.TextSearch
	similar *query.SimilarSearch
	// like is the event that similar ones are searched for.
	like *event.Ref
	// scope is what a cursor of this search is valid for.
	scope string
	limit int
}

func (s *Server) searchEvents(x *exchange) error {
	p, err := newParams(x.r)
	if err != nil {
		return err
	}
	after := s.after(p)
	if err := p.finish(); err != nil {
		return err
	}
	if err := s.readJSON(x); err != nil {
		return err
	}
	q, err := s.parseSearch(x.body.Bytes())
	if err != nil {
		return err
	}
	x.releaseBody()
	if err := s.waitForReceipts(x, after); err != nil {
		return err
	}
	if q.like != nil {
		if err := s.findLike(x, q); err != nil {
			return err
		}
	}
	hits, err := s.findHits(x, q)
	if err != nil {
		return err
	}
	return s.sendHits(x, q, hits)
}

// readJSON reads the request's body into memory that x holds.
func (s *Server) readJSON(x *exchange) error {
	k := &writeKind{hasBody: true}
	if err := checkContentType(x.r, ""); err != nil {
		return err
	}
	encoding, err := s.bodyEncoding(x, k)
	if err != nil {
		return err
	}
	if err := s.readBody(x, k); err != nil {
		return err
	}
	return s.inflateBody(x, k, encoding)
}

// parseSearch parses the body of a search.
func (s *Server) parseSearch(text []byte) (*search, error) {
	var r searchRequest
	if err := json.Unmarshal(text, &r, json.RejectUnknownMembers(true)); err != nil {
		return nil, jsonProblem(err)
	}
	f, err := s.parseFilter(r.Filter)
	if err != nil {
		return nil, err
	}
	q := &search{limit: defaultHits}
	if r.Limit != nil {
		if q.limit = *r.Limit; q.limit < 1 || q.limit > hitsMax {
			return nil, event.Errorf(event.CodeInvalidValue, "limit", "must be a whole number from 1 to %d", hitsMax)
		}
	}
	if r.Text == nil && r.Vector == nil && r.Like == nil {
		return nil, event.Errorf(event.CodeRequired, "text", "or vector or like is required")
	}
	if r.Vector != nil && r.Like != nil {
		return nil, event.Errorf(event.CodeInvalidValue, "like", "cannot be given together with vector")
	}
	if r.Exact != nil && r.Vector == nil && r.Like == nil {
		return nil, event.Errorf(event.CodeInvalidValue, "exact", "is only for a search with vector or like")
	}
	field := ""
	if r.Field != nil {
		field = *r.Field
		if field != "input" && field != "output" && (field != "error" || r.Text == nil || r.Vector != nil || r.Like != nil) {
			return nil, event.Errorf(event.CodeInvalidValue, "field", "must be input or output, or error for a search of text alone")
		}
	}
	if r.Text != nil {
		q.text = &query.TextSearch{Filter: f, LimitEvents: q.limit}
		if len(*r.Text) > fulltext.QueryBytesMax {
			return nil, event.Errorf(event.CodeTooLarge, "text", "is longer than %d bytes", fulltext.QueryBytesMax)
		}
		if q.text.Text, err = fulltext.Parse(*r.Text); err != nil {
			return nil, event.Errorf(event.CodeInvalidValue, "text", "%s", err.Error())
		}
		q.text.Fields = query.SearchFields{Input: field == "" || field == "input", Output: field == "" || field == "output", Error: field == "" || field == "error"}
	}
	if r.Vector != nil || r.Like != nil {
		q.similar = &query.SimilarSearch{Filter: f, LimitEvents: q.limit, Input: field != "output", Output: field != "input", Exact: r.Exact != nil && *r.Exact}
	}
	if r.Vector != nil {
		if q.similar.Vector, err = searchVector(r.Vector); err != nil {
			return nil, err
		}
	}
	if r.Like != nil {
		ref, err := event.ParseRef(*r.Like, s.cfg.Now())
		if err != nil {
			return nil, event.Errorf(event.CodeInvalidValue, "like", "is not the id of an event")
		}
		q.like = &ref
		if field == "" {
			// The event's input is compared with inputs, or its output with outputs.
			q.similar.Input, q.similar.Output = true, true
		}
	}
	if q.text != nil && q.similar == nil {
		q.scope = searchScope(&r)
	}
	if r.Cursor != nil {
		id, ok := parseEventCursor(*r.Cursor, q.scope)
		if q.scope == "" || !ok {
			return nil, event.Errorf(event.CodeInvalidValue, "cursor", "is not a cursor of this search; only searches of text alone have pages")
		}
		q.text.After = id
	}
	return q, nil
}

// searchScope returns the text of all that makes a search of text what it is.
func searchScope(r *searchRequest) string {
	scoped := *r
	scoped.Limit, scoped.Cursor = nil, nil
	text, _ := json.Marshal(&scoped, json.Deterministic(true)) // it was JSON
	return string(text)
}

// searchVector checks a vector.
func searchVector(values []dimension) ([]float32, error) {
	if len(values) == 0 || len(values) > event.EmbeddingDimensionsMax {
		return nil, event.Errorf(event.CodeInvalidValue, "vector", "must have from 1 to %d dimensions", event.EmbeddingDimensionsMax)
	}
	vector := make([]float32, len(values))
	zero := true
	for i, value := range values {
		vector[i] = float32(value)
		if math.IsInf(float64(vector[i]), 0) {
			return nil, event.Errorf(event.CodeInvalidValue, "vector", "has a number beyond float32")
		}
		zero = zero && vector[i] == 0
	}
	if zero {
		return nil, event.Errorf(event.CodeInvalidValue, "vector", "is zero, which has no direction")
	}
	return vector, nil
}

// parseFilter reads the JSON form of the filters that reads take as parameters.
func (s *Server) parseFilter(members map[string]jsontext.Value) (query.Filter, error) {
	p := &params{values: make(url.Values)}
	var metadata []query.MetadataFilter
	for name, value := range members {
		texts, ok := filterTexts(value)
		if !ok {
			return query.Filter{}, event.Errorf(event.CodeInvalidType, "filter."+name, "must be a string, a number, true or false, or for names a list of strings")
		}
		if len(texts) == 0 { // a caller whose list is empty by mistake must not get everything
			return query.Filter{}, event.Errorf(event.CodeInvalidValue, "filter."+name, "must not be an empty list")
		}
		if key, ok := strings.CutPrefix(name, metadataPrefix); ok {
			for _, text := range texts {
				f := namedMetadataFilter(key, text)
				if !isMetadataKey(f.Key) {
					return query.Filter{}, event.Errorf(event.CodeInvalidValue, "filter."+name, "must name a member of the metadata after the dot")
				}
				metadata = append(metadata, f)
			}
			continue
		}
		p.values[name] = texts
	}
	if len(metadata) > s.cfg.MetadataFiltersMax {
		return query.Filter{}, event.Errorf(event.CodeTooLarge, "filter.metadata", "has more than %d filters", s.cfg.MetadataFiltersMax)
	}
	f := s.filter(p, true)
	if err := p.finish(); err != nil {
		var e *event.Error
		if errors.As(err, &e) {
			return f, event.Errorf(e.Code, "filter."+e.Field, "%s", strings.Replace(e.Message, "a parameter of this resource", "a filter", 1))
		}
		return f, err
	}
	slices.SortFunc(metadata, func(a, b query.MetadataFilter) int { return strings.Compare(a.Key, b.Key) })
	f.Metadata = metadata
	return f, nil
}

// namedMetadataFilter returns the condition of a member of a filter in JSON. The
// operator is the end of the name: "metadata.tokens>" or "metadata.tokens>=".
func namedMetadataFilter(name, value string) query.MetadataFilter {
	for _, o := range strict {
		if key, ok := strings.CutSuffix(name, o.text); ok {
			return query.MetadataFilter{Key: key, Op: o.op, Value: value}
		}
	}
	if strings.HasSuffix(name, "=") || strings.HasSuffix(name, "!") || strings.HasSuffix(name, existsSuffix) {
		return metadataFilter(name, value)
	}
	return query.MetadataFilter{Key: name, Value: value}
}

// filterTexts returns the texts of a value: a string, a number, a boolean, or several
// strings.
func filterTexts(value jsontext.Value) ([]string, bool) {
	switch value.Kind() {
	case '"':
		var text string
		err := json.Unmarshal(value, &text)
		return []string{text}, err == nil
	case '0', 't', 'f':
		return []string{string(value)}, true
	case '[':
		var elements []*string
		if err := json.Unmarshal(value, &elements); err != nil || slices.Contains(elements, nil) {
			return nil, false
		}
		texts := make([]string, len(elements))
		for i, element := range elements {
			texts[i] = *element
		}
		return texts, true
	default:
		return nil, false
	}
}

// jsonProblem says what is wrong with a body that is not what it should be.
func jsonProblem(err error) error {
	var semantic *json.SemanticError
	if errors.As(err, &semantic) {
		field := strings.ReplaceAll(strings.TrimPrefix(string(semantic.JSONPointer), "/"), "/", ".")
		if errors.Is(err, json.ErrUnknownName) {
			return event.Errorf(event.CodeUnknownField, field, "is not a field of a search")
		}
		return event.Errorf(event.CodeInvalidType, field, "has the wrong type")
	}
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return event.Errorf(event.CodeDuplicateField, "", "the body has a field twice")
	}
	return event.Errorf(event.CodeInvalidJSON, "", "the body is not valid JSON")
}

// findLike reads the event that similar ones are searched for, and takes its vector.
func (s *Server) findLike(x *exchange, q *search) error {
	var e *event.Event
	err := x.readEvents(eventBytesFirst, func(ctx context.Context, bytesMax int) (int, error) {
		var err error
		e, err = s.ports.Events.Event(ctx, *q.like, bytesMax)
		return bytesMax, err
	})
	if err != nil {
		return err
	}
	if e == nil {
		return event.Errorf(event.CodeUnknownEvent, "like", "names no event, or one that was deleted")
	}
	vector, compared := e.InputEmbeddings, "input"
	if !q.similar.Input || q.similar.Output && vector == nil {
		vector, compared = e.OutputEmbeddings, "output"
		q.similar.Input = false
	} else {
		q.similar.Output = false
	}
	if vector == nil {
		return event.Errorf(event.CodeInvalidValue, "like", "names an event without embeddings of the field")
	}
	q.similar.Vector = make([]float32, vector.Dimensions())
	zero := true
	for i := range q.similar.Vector {
		q.similar.Vector[i] = vector.At(i)
		zero = zero && q.similar.Vector[i] == 0
	}
	if zero {
		return event.Errorf(event.CodeInvalidValue, "like", "names an event whose %s embedding is zero, which has no direction", compared)
	}
	q.similar.Except = *q.like
	return nil
}

// findHits runs the searches, and fuses their hits if there are two.
func (s *Server) findHits(x *exchange, q *search) (query.Hits, error) {
	leave, err := s.analytics.enter(x.r.Context())
	if err != nil {
		return query.Hits{}, err
	}
	defer leave()
	var hits query.Hits
	err = x.readEvents(pageBytesFirst, func(ctx context.Context, bytesMax int) (int, error) {
		var err error
		hits, err = s.runSearch(ctx, q, bytesMax)
		return hits.Bytes, x.searchProblem(err)
	})
	return hits, err
}

// runSearch runs the searches within the memory of bytesMax.
func (s *Server) runSearch(ctx context.Context, q *search, bytesMax int) (query.Hits, error) {
	switch {
	case q.similar == nil:
		text := *q.text
		text.BytesMax = bytesMax
		return s.ports.Search.SearchText(ctx, text)
	case q.text == nil:
		similar := *q.similar
		similar.BytesMax = bytesMax
		return s.ports.Search.SearchSimilar(ctx, similar)
	}
	text, similar := *q.text, *q.similar
	text.LimitEvents, similar.LimitEvents = max(q.limit, fusedHits), max(q.limit, fusedHits)
	text.BytesMax, similar.BytesMax = bytesMax/2, bytesMax/2
	byText, err := s.ports.Search.SearchText(ctx, text)
	if err != nil {
		return query.Hits{}, twice(err)
	}
	bySimilarity, err := s.ports.Search.SearchSimilar(ctx, similar)
	if err != nil {
		return query.Hits{}, twice(err)
	}
	return fuse(byText, bySimilarity, q.limit), nil
}

// twice doubles the memory that an event needs, of which it gets half.
func twice(err error) error {
	var large *event.LargeError
	if errors.As(err, &large) {
		return &event.LargeError{Bytes: 2 * large.Bytes}
	}
	return err
}

// fuse joins the hits of two searches by reciprocal rank fusion.
func fuse(a, b query.Hits, limit int) query.Hits {
	fused := query.Hits{Bytes: a.Bytes + b.Bytes}
	at := make(map[string]int)
	for _, hits := range [][]query.Hit{a.Hits, b.Hits} {
		for rank, h := range hits {
			i, ok := at[h.Event.ID]
			if !ok {
				i = len(fused.Hits)
				at[h.Event.ID] = i
				h.Score = 0
				fused.Hits = append(fused.Hits, h)
			}
			fused.Hits[i].Score += 1 / float64(fusionRank+rank+1)
		}
	}
	slices.SortStableFunc(fused.Hits, func(a, b query.Hit) int {
		switch {
		case a.Score > b.Score:
			return -1
		case a.Score < b.Score:
			return 1
		}
		return 0
	})
	fused.Hits = fused.Hits[:min(len(fused.Hits), limit)]
	return fused
}

// sendHits sends the answer of a search.
func (s *Server) sendHits(x *exchange, q *search, hits query.Hits) error {
	x.out = append(x.out, `{"results":[`...)
	for i := range hits.Hits {
		h := &hits.Hits[i]
		if i > 0 {
			x.out = append(x.out, ',')
		}
		x.out = appendMember(x.out, '{', "event")
		var err error
		if x.out, err = h.Event.SpillJSON(x.out, false, x.spill); err != nil {
			return err
		}
		x.out = jsontext.AppendFloat(appendMember(x.out, ',', "score"), h.Score, 64)
		x.out = append(appendMember(x.out, ',', "highlights"), '[')
		for i, highlight := range h.Highlights {
			if i > 0 {
				x.out = append(x.out, ',')
			}
			x.out = appendHighlight(x.out, highlight)
		}
		x.out = append(x.out, ']', '}')
		if err := x.full(); err != nil {
			return err
		}
	}
	x.out = appendNextCursor(x.out, eventPlace(hits.Next), q.scope)
	return x.end()
}

// appendHighlight appends a highlight as fragments of text, of which those that were
// found are marked. So a client need not count bytes or characters.
func appendHighlight(b []byte, h query.Highlight) []byte {
	b = appendString(appendMember(b, '{', "field"), h.Field)
	b = append(appendMember(b, ',', "fragments"), '[')
	first := true
	add := func(text string, match bool) {
		if text == "" {
			return
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = appendString(appendMember(b, '{', "text"), strings.ToValidUTF8(text, "\uFFFD"))
		b = appendMember(b, ',', "match")
		if match {
			b = append(b, "true}"...)
		} else {
			b = append(b, "false}"...)
		}
	}
	end := 0
	for _, span := range h.Spans {
		add(h.Text[end:span.Start], false)
		add(h.Text[span.Start:span.End], true)
		end = span.End
	}
	add(h.Text[end:], false)
	return append(b, ']', '}')
}
