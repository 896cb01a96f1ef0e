package mcp

import (
	"context"
	"net/url"
	"strconv"
	"unicode/utf8"
)

const (
	// cellShare is the part of an answer that one value of a row takes at most.
	cellShare = 4
	// columnsMax bounds the columns of an answer.
	columnsMax = 1000
)

// rows are the rows of an answer, of which the first ones are shown.
type rows struct {
	// left is how many characters further rows may take.
	left, most int
	out        []byte
	shown      int
	// more says that there are rows that are not shown.
	more bool
	cuts []byte
}

// row is a row that is being read. names is nil in an answer whose rows are lists.
type row struct {
	names []string
	cells []*value
}

func newRows(chars int) *rows { return &rows{left: chars - envelopeWidth, most: chars - envelopeWidth} }

// read reads the rows of an answer, objects or lists, until no more can be shown.
func (t *rows) read(s *scanner, columns []string) error {
	return s.list(func() error {
		if t.left < cutWidth {
			t.more = true
			return errEnough
		}
		var r row
		cell := func() error {
			v, err := s.value(window{most: max(cutWidth, t.most/cellShare)})
			r.cells = append(r.cells, &v)
			if len(r.cells) > columnsMax {
				return invalid("query", "has more than %d columns; name fewer", columnsMax)
			}
			r.fit(t.most)
			return err
		}
		var err error
		if columns == nil {
			err = s.object(func(name string) error {
				r.names = append(r.names, name)
				return cell()
			})
		} else {
			err = s.list(cell)
		}
		if err != nil {
			return err
		}
		return t.add(&r, columns)
	})
}

// fit cuts the values of the row so that it takes most characters or little more.
func (r *row) fit(most int) { fit(r.cells, most) }

// add adds a row, if there is room.
func (t *rows) add(r *row, columns []string) error {
	begins, ends := byte('['), byte(']')
	frame := 2 + len(r.cells)
	if columns == nil {
		begins, ends, columns = '{', '}', r.names
		for _, name := range r.names {
			frame += utf8.RuneCountInString(name) + 3
		}
	}
	width := frame
	for _, v := range r.cells {
		width += v.jsonWidth()
		if v.cut() {
			width += cutWidth
		}
	}
	if width > t.left {
		if t.shown > 0 {
			t.more = true
			return errEnough
		}
		r.fit(t.left - frame - cutWidth*len(r.cells))
	}
	t.left -= width
	if t.shown > 0 {
		t.out = append(t.out, ',')
	}
	t.out = append(t.out, begins)
	for i, v := range r.cells {
		if i > 0 {
			t.out = append(t.out, ',')
		}
		name := ""
		if i < len(columns) {
			name = columns[i]
		}
		if begins == '{' {
			t.out = append(appendText(t.out, name), ':')
		}
		t.out = v.appendJSON(t.out)
		if v.cut() {
			if t.cuts != nil {
				t.cuts = append(t.cuts, ',')
			}
			t.cuts = strconv.AppendInt(append(t.cuts, `{"row":`...), int64(t.shown), 10)
			t.cuts = appendText(append(t.cuts, `,"column":`...), name)
			t.cuts = append(appendShown(append(t.cuts, `,"value":`...), v), '}')
		}
	}
	t.out = append(t.out, ends)
	t.shown++
	return nil
}

// end appends the end of an answer with the rows. how says how to get more.
func (t *rows) end(out []byte, how string) []byte {
	out = append(append(append(out, `"rows":[`...), t.out...), `],"rows_shown":`...)
	out = strconv.AppendInt(out, int64(t.shown), 10)
	out = strconv.AppendBool(append(out, `,"has_more_rows":`...), t.more)
	if t.cuts != nil {
		out = append(append(append(out, `,"cut":[`...), t.cuts...), ']')
	}
	if t.more || t.cuts != nil {
		out = appendText(append(out, `,"how_to_go_on":`...), how)
	}
	return append(out, '}')
}

// insightsArgs are the arguments of insights.
type insightsArgs struct {
	Measures []string `json:"measures"`
	GroupBy  []string `json:"group_by"`
	Interval string   `json:"interval"`
	TZ       string   `json:"tz"`
	Filter   filter   `json:"filter"`
	Limit    *int     `json:"limit"`
	OrderBy  string   `json:"order_by"`
	Order    string   `json:"order"`
	MaxChars *int     `json:"max_chars"`
}

const moreInsights = "Not all is shown. Narrow the filter, group by fewer things, ask for a longer interval, or raise limit or max_chars."

func insights(ctx context.Context, api *API, args *insightsArgs) ([]byte, error) {
	chars, err := charsOf(args.MaxChars)
	if err != nil {
		return nil, err
	}
	query, err := args.Filter.query()
	if err != nil {
		return nil, err
	}
	if len(args.Measures) == 0 {
		return nil, invalid("measures", `is required, such as ["events"]`)
	}
	query["measure"], query["group_by"] = args.Measures, args.GroupBy
	set(query, "interval", args.Interval)
	set(query, "tz", args.TZ)
	set(query, "order_by", args.OrderBy)
	set(query, "order", args.Order)
	if args.Limit != nil {
		query.Set("limit", strconv.Itoa(*args.Limit))
	}
	t, err := askInsights(ctx, api, query, chars)
	if err != nil {
		return nil, args.Filter.named(named(err, "measure", "measures"))
	}
	return t.end(begin(), moreInsights), nil
}

func askInsights(ctx context.Context, api *API, query url.Values, chars int) (*rows, error) {
	t := newRows(chars)
	err := api.read(ctx, get("/analytics/insights", query), func(s *scanner) error {
		return s.object(func(name string) error {
			switch name {
			case "rows":
				return t.read(s, nil)
			case "truncated":
				v, err := s.value(window{most: cutWidth})
				t.more = string(v.body) == "true"
				return err
			}
			return s.skip()
		})
	})
	return t, err
}

// sqlArgs are the arguments of sql.
type sqlArgs struct {
	Query    string `json:"query"`
	MaxChars *int   `json:"max_chars"`
}

const moreSQL = "Not all is shown. Aggregate, select fewer columns, add LIMIT and OFFSET, or read on in a long value with substringUTF8(value, start, length)."

func sql(ctx context.Context, api *API, args *sqlArgs) ([]byte, error) {
	chars, err := charsOf(args.MaxChars)
	if err != nil {
		return nil, err
	}
	if args.Query == "" {
		return nil, invalid("query", "is required")
	}
	t, columns, err := askSQL(ctx, api, args.Query, chars)
	if err != nil {
		return nil, err
	}
	out := append(begin(), `"columns":`...)
	return t.end(append(append(out, columns...), ','), moreSQL), nil
}

// askSQL returns the rows of a query, and the JSON of its columns.
func askSQL(ctx context.Context, api *API, text string, chars int) (*rows, []byte, error) {
	t := newRows(chars)
	columns := []byte("[]")
	var names []string
	r := request{method: "POST", path: "/sql", contentType: "text/plain; charset=utf-8", body: []byte(text)}
	err := api.read(ctx, r, func(s *scanner) error {
		return s.object(func(member string) error {
			switch member {
			case "columns":
				var err error
				names, columns, err = readColumns(s, t.most/2)
				t.left -= utf8.RuneCount(columns)
				return err
			case "rows":
				if names == nil {
					names = []string{} // rows are lists
				}
				return t.read(s, names)
			}
			return s.skip()
		})
	})
	return t, columns, err
}

// readColumns reads the columns of an answer in SQL.
func readColumns(s *scanner, most int) (names []string, out []byte, err error) {
	out = []byte{'['}
	err = s.list(func() error {
		var name, kind string
		err := s.object(func(member string) (err error) {
			switch member {
			case "name":
				name, err = s.text(most)
			case "type":
				kind, err = s.text(most)
			default:
				err = s.skip()
			}
			return err
		})
		if len(names) > 0 {
			out = append(out, ',')
		}
		names = append(names, name)
		out = appendText(append(out, `{"name":`...), name)
		out = append(appendText(append(out, `,"type":`...), kind), '}')
		if len(out) > most {
			return invalid("query", "has columns whose names and types take more than half of the answer; name fewer columns, give them short names with AS, or raise max_chars")
		}
		return err
	})
	return names, append(out, ']'), err
}
