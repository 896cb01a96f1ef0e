// Command driver is the conformance driver of the Go client library. It reads one
// JSON command a line from its standard input, and writes one JSON answer a line
// to its standard output, in order. sdk/README.md has the protocol.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
	"github.com/sluicehq/sluice/sdk/go/internal/id"
)

func main() {
	d := new(driver)
	if err := d.run(context.Background(), os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

type driver struct {
	client       *sluice.Client
	blockTimeout time.Duration // how long a write waits for room; 0: no limit

	mu       sync.Mutex
	reported []sluice.WriteError
}

// seconds is a duration in a command.
type seconds float64

func (s seconds) duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

type command struct {
	Do             string
	ConversationID string `json:"conversation_id"`
	UnixMicros     int64  `json:"unix_micros"`
	Random         string
	First          string
	Steps          []step
	Options        options
	ID             string
	Event          members
	Fields         members
	Timeout        *seconds
	Wait           seconds
	Limit          int
	Embeddings     bool
	Query          query
	Input, Output  json.RawMessage
	Error          string
	Sleep          seconds
}

// step is one id of the command sequence.
type step struct {
	ClockMicros     int64  `json:"clock_micros"`
	TimestampMicros int64  `json:"timestamp_micros"`
	ConversationID  string `json:"conversation_id"`
}

type options struct {
	URL            string
	APIKey         string  `json:"api_key"`
	BatchWritesMax int     `json:"batch_writes_max"`
	BatchBytesMax  int     `json:"batch_bytes_max"`
	BatchAgeMax    seconds `json:"batch_age_max"`
	QueueWritesMax int     `json:"queue_writes_max"`
	QueueBytesMax  int     `json:"queue_bytes_max"`
	FailWhenFull   bool    `json:"fail_when_full"`
	BlockTimeout   seconds `json:"block_timeout"`
	RetryFor       seconds `json:"retry_for"`
	RequestTimeout seconds `json:"request_timeout"`
	WaitApplied    seconds `json:"wait_applied"`
	Gzip           bool
	Strict         bool
	SpoolDir       string `json:"spool_dir"`
	CAFile         string `json:"ca_file"`
	TraceEventName string `json:"trace_event_name"`
}

// members are the fields of an event or an update, by their JSON names.
type members map[string]json.RawMessage

type query struct {
	Since, Until   json.RawMessage
	ConversationID string   `json:"conversation_id"`
	EventName      string   `json:"event_name"`
	EventNames     []string `json:"event_names"`
	Error          *bool
	LatencyMin     *float64 `json:"latency_min"`
	LatencyMax     *float64 `json:"latency_max"`
	Metadata       map[string]json.RawMessage
	Conditions     []condition
	Order          sluice.TimeOrder
	Embeddings     bool
	Q              []float64
	GroupBy        groups `json:"group_by"`
	Limit          int
	Cursor         string
	OrderBy        sluice.Order `json:"order_by"`
	MinEvents      int          `json:"min_events"`
	Interval       string
	Wait           seconds

	Text, Like    string // of a search
	Vector        []float32
	Field         sluice.SearchField
	Exact         bool
	Measures      []sluice.Measure // of insights
	TZ            string
	Steps         []stepQuery // of a funnel
	Window        string
	Per           sluice.Group
	Did, Returned *stepQuery // of a retention
	Query         string     // of SQL
	Format        sluice.SQLFormat
}

// groups is a list of groups, or a single one.
type groups []sluice.Group

func (g *groups) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, (*[]sluice.Group)(g))
	}
	*g = make(groups, 1)
	return json.Unmarshal(b, &(*g)[0])
}

// one returns the single group; empty for none.
func (g groups) one() sluice.Group {
	if len(g) == 0 {
		return ""
	}
	return g[0]
}

// stepQuery is a step of a funnel: a name alone, or the members of a filter.
type stepQuery struct{ query }

func (s *stepQuery) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, &s.EventName)
	}
	return json.Unmarshal(b, &s.query)
}

func (s *stepQuery) step() (sluice.Step, error) {
	f, err := s.filter()
	return sluice.Step{
		EventName: f.EventName, Errors: f.Errors, LatencyMin: f.LatencyMin, LatencyMax: f.LatencyMax, Metadata: f.Metadata, Conditions: f.Conditions,
	}, err
}

// condition is one of a query; its value may be a string, a number or a boolean.
type condition struct {
	Key   string
	Op    sluice.Comparison
	Value json.RawMessage
}

// invalid returns the error of a command that Go's types cannot express.
func invalid(field, reason string) error { return &sluice.FieldError{Field: field, Reason: reason} }

func (d *driver) run(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			answer, err := d.do(ctx, line)
			if err != nil {
				answer = map[string]any{"error": describe(err)}
			}
			text, err := json.Marshal(answer)
			if err != nil {
				return err
			}
			if _, err := out.Write(append(text, '\n')); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (d *driver) do(ctx context.Context, line []byte) (answer any, err error) {
	var cmd command
	if err := json.Unmarshal(line, &cmd); err != nil {
		return nil, err
	}
	if d.client == nil && !slices.Contains([]string{"mint", "sequence", "open", "reported"}, cmd.Do) {
		return nil, errors.New("no client is open")
	}
	none := struct{}{}
	switch cmd.Do {
	case "mint":
		random, err := strconv.ParseUint(cmd.Random, 10, 64)
		if err != nil {
			return nil, err
		}
		return map[string]any{"id": id.Mint(cmd.ConversationID, cmd.UnixMicros, random)}, nil
	case "sequence":
		first, err := strconv.ParseUint(cmd.First, 10, 64)
		if err != nil {
			return nil, err
		}
		process, ids := id.NewProcess(first), []string{}
		for _, s := range cmd.Steps {
			micros := s.TimestampMicros
			if micros == 0 {
				micros = process.Time(time.UnixMicro(s.ClockMicros))
			}
			ids = append(ids, process.Mint(s.ConversationID, micros))
		}
		return map[string]any{"ids": ids}, nil
	case "open":
		return none, d.open(cmd.Options) //nolint:contextcheck // a client outlives the command that opens it
	case "track":
		event, err := cmd.Event.event()
		if err != nil {
			return nil, err
		}
		ctx, cancel := d.blocking(ctx)
		defer cancel()
		id, err := d.client.TrackEvent(ctx, event)
		return map[string]any{"id": id}, err
	case "update":
		fields, err := cmd.Fields.fields()
		if err != nil {
			return nil, err
		}
		ctx, cancel := d.blocking(ctx)
		defer cancel()
		return none, d.client.UpdateEvent(ctx, cmd.ID, fields)
	case "delete":
		ctx, cancel := d.blocking(ctx)
		defer cancel()
		return none, d.client.DeleteEvent(ctx, cmd.ID)
	case "flush", "close":
		end := d.client.Flush
		if cmd.Do == "close" {
			end = d.client.Close
		}
		if cmd.Timeout != nil {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, cmd.Timeout.duration())
			defer cancel()
		}
		return none, end(ctx)
	case "trace":
		return d.trace(ctx, &cmd)
	case "reported":
		return d.report(), nil
	}
	return d.read(ctx, &cmd)
}

func (d *driver) open(o options) error {
	client, err := sluice.New(sluice.Options{
		URL:            o.URL,
		APIKey:         o.APIKey,
		BatchWritesMax: o.BatchWritesMax,
		BatchBytesMax:  o.BatchBytesMax,
		BatchAgeMax:    o.BatchAgeMax.duration(),
		QueueWritesMax: o.QueueWritesMax,
		QueueBytesMax:  o.QueueBytesMax,
		FailWhenFull:   o.FailWhenFull,
		RetryFor:       o.RetryFor.duration(),
		RequestTimeout: o.RequestTimeout.duration(),
		WaitApplied:    o.WaitApplied.duration(),
		Gzip:           o.Gzip,
		SpoolDir:       o.SpoolDir,
		Strict:         o.Strict,
		CAFile:         o.CAFile,
		TraceEventName: o.TraceEventName,
		OnError: func(e sluice.WriteError) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.reported = append(d.reported, e)
		},
	})
	if err == nil {
		d.client, d.blockTimeout = client, o.BlockTimeout.duration()
	}
	return err
}

func (d *driver) blocking(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.blockTimeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d.blockTimeout)
}

func (d *driver) trace(ctx context.Context, cmd *command) (any, error) {
	before := len(d.errors())
	failure := errors.New(cmd.Error)
	id, err := d.client.Trace(ctx, cmd.ConversationID, func(_ context.Context, span *sluice.Span) error {
		span.SetInput(cmd.Input)
		<-time.After(cmd.Sleep.duration())
		if cmd.Error != "" {
			return failure
		}
		span.SetOutput(cmd.Output) // the function's result
		return nil
	})
	if id == "" {
		return nil, d.errors()[before]
	}
	answer := map[string]any{"id": id}
	if err != nil {
		answer["raised"] = err.Error()
	}
	return answer, nil
}

func (d *driver) errors() []sluice.WriteError {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.reported)
}

func (d *driver) report() any {
	errs := []any{}
	for _, e := range d.errors() {
		described := describe(e.Err)
		errs = append(errs, map[string]any{
			"op": e.Op, "id": e.ID, "status": described.Status, "code": described.Code, "field": described.Field,
		})
	}
	return map[string]any{"errors": errs}
}

func (d *driver) read(ctx context.Context, cmd *command) (any, error) {
	q := &cmd.Query
	filter, err := q.filter()
	if err != nil {
		return nil, err
	}
	wait := max(cmd.Wait, q.Wait)
	opts := []sluice.ReadOption{sluice.Wait(wait.duration())}
	switch cmd.Do {
	case "event":
		event, err := d.client.Event(ctx, cmd.ID, opts...)
		return map[string]any{"event": event}, err
	case "conversation":
		return all("events", d.client.ConversationEvents(ctx, cmd.ID, sluice.ConversationQuery{
			Filter: filter, Order: q.Order, Limit: cmd.Limit, Embeddings: cmd.Embeddings,
		}, opts...))
	case "list_events":
		return all("events", d.client.AllEvents(ctx, sluice.EventsQuery{
			Filter: filter, Order: q.Order, Limit: q.Limit, Embeddings: q.Embeddings,
		}, opts...))
	case "list_conversations":
		answer, err := all("conversations", d.client.AllConversations(ctx, sluice.ConversationListQuery{Filter: filter, Limit: q.Limit}, opts...))
		if err != nil {
			return nil, err
		}
		return nulls(answer)
	case "search":
		return all("results", d.client.SearchAll(ctx, sluice.SearchQuery{
			Filter: filter, Text: q.Text, Vector: q.Vector, Like: q.Like, Field: q.Field, Exact: q.Exact, Limit: q.Limit, Cursor: q.Cursor,
		}, opts...))
	case "export_events":
		return all("events", d.client.ExportEvents(ctx, sluice.ExportQuery{Filter: filter, Embeddings: q.Embeddings, Cursor: q.Cursor}, opts...))
	case "insights":
		return d.client.Insights(ctx, sluice.InsightsQuery{
			Filter: filter, Measures: q.Measures, GroupBy: q.GroupBy, Interval: sluice.Interval(q.Interval), TimeZone: q.TZ,
			OrderBy: sluice.Measure(q.OrderBy), Order: sluice.SortOrder(q.Order), Limit: q.Limit,
		}, opts...)
	case "funnel":
		return d.funnel(ctx, q, filter, opts)
	case "retention":
		return d.retention(ctx, q, filter, opts)
	case "sql":
		return d.client.SQL(ctx, q.Query, opts...)
	case "write_sql":
		var written bytes.Buffer
		err := d.client.WriteSQL(ctx, &written, q.Format, q.Query, opts...)
		return map[string]any{"bytes": written.Bytes()}, err
	}

	var answer any
	switch cmd.Do {
	case "errors":
		answer, err = d.client.Errors(ctx, filter, opts...)
	case "latency":
		answer, err = d.client.Latency(ctx, sluice.LatencyQuery{Filter: filter, Quantiles: q.Q, GroupBy: q.GroupBy, Limit: q.Limit}, opts...)
		answer = map[string]any{"rows": answer}
	case "conversations":
		answer, err = d.client.Conversations(ctx, sluice.ConversationsQuery{
			Filter: filter, OrderBy: q.OrderBy, MinEvents: q.MinEvents, Limit: q.Limit,
		}, opts...)
		answer = map[string]any{"rows": answer}
	case "timeseries":
		var interval time.Duration
		if interval, err = span("interval", q.Interval); err != nil {
			return nil, err
		}
		answer, err = d.client.TimeSeries(ctx, sluice.TimeSeriesQuery{Filter: filter, Quantiles: q.Q, Interval: interval}, opts...)
		answer = map[string]any{"rows": answer}
	default:
		return nil, fmt.Errorf("no command is named %q", cmd.Do)
	}
	if err != nil {
		return nil, err
	}
	return nulls(answer)
}

func (d *driver) funnel(ctx context.Context, q *query, filter sluice.Filter, opts []sluice.ReadOption) (any, error) {
	window, err := span("window", q.Window)
	if err != nil {
		return nil, err
	}
	funnel := sluice.FunnelQuery{Filter: filter, Window: window, Per: q.Per, GroupBy: q.GroupBy.one(), Limit: q.Limit}
	for i := range q.Steps {
		step, err := q.Steps[i].step()
		if err != nil {
			return nil, err
		}
		funnel.Steps = append(funnel.Steps, step)
	}
	return d.client.Funnel(ctx, funnel, opts...)
}

func (d *driver) retention(ctx context.Context, q *query, filter sluice.Filter, opts []sluice.ReadOption) (any, error) {
	retention := sluice.RetentionQuery{Filter: filter, Interval: sluice.Interval(q.Interval), TimeZone: q.TZ, Per: q.Per}
	var err error
	if q.Did != nil {
		if retention.Did, err = q.Did.step(); err != nil {
			return nil, err
		}
	}
	if q.Returned != nil {
		returned, err := q.Returned.step()
		if err != nil {
			return nil, err
		}
		retention.Returned = &returned
	}
	rows, err := d.client.Retention(ctx, retention, opts...)
	return map[string]any{"rows": rows}, err
}

// all reads a sequence to its end.
func all[T any](name string, items iter.Seq2[T, error]) (any, error) {
	list := []T{}
	for item, err := range items {
		if err != nil {
			return nil, err
		}
		list = append(list, item)
	}
	return map[string]any{name: list}, nil
}

// nulls replaces an empty string by null where the API has null.
func nulls(answer any) (any, error) {
	text, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"event_name", "conversation_id", "first_input", "last_output"} {
		text = bytes.ReplaceAll(text, []byte(`"`+name+`":""`), []byte(`"`+name+`":null`))
	}
	return json.RawMessage(text), nil
}

func (q *query) filter() (f sluice.Filter, err error) {
	f = sluice.Filter{
		ConversationID: q.ConversationID, EventName: q.EventName, EventNames: q.EventNames,
		LatencyMin: q.LatencyMin, LatencyMax: q.LatencyMax, Metadata: make(map[string]string),
	}
	if q.Error != nil {
		f.Errors = sluice.WithoutError
		if *q.Error {
			f.Errors = sluice.WithError
		}
	}
	if f.Since, err = moment("since", q.Since); err != nil {
		return f, err
	}
	if f.Until, err = moment("until", q.Until); err != nil {
		return f, err
	}
	for key, raw := range q.Metadata {
		f.Metadata[key] = text(raw)
	}
	for _, c := range q.Conditions {
		f.Conditions = append(f.Conditions, sluice.Condition{Key: c.Key, Op: c.Op, Value: text(c.Value)})
	}
	return f, nil
}

// text is a string, or a number or a boolean as it is written.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return string(raw)
	}
	return s
}

// moment parses a time as the API does: RFC 3339, Unix milliseconds, or a duration
// before now.
func moment(field string, raw json.RawMessage) (time.Time, error) {
	if raw == nil {
		return time.Time{}, nil
	}
	s := text(raw)
	if ms, err := strconv.ParseInt(s, 10, 64); err == nil {
		return time.UnixMilli(ms), nil
	}
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	ago, err := span(field, s)
	return time.Now().Add(-ago), err
}

// span reads a length of time such as 7d.
func span(field, s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}
	unit, ok := units[s[len(s)-1]]
	n, err := strconv.ParseInt(s[:len(s)-1], 10, 32)
	if !ok || err != nil {
		return 0, invalid(field, "is no length of time")
	}
	return time.Duration(n) * unit, nil
}

func (m members) event() (e sluice.Event, err error) {
	fields := maps.Clone(m)
	if err := errors.Join(
		fields.take("id", &e.ID),
		fields.take("conversation_id", &e.ConversationID),
		fields.take("timestamp", &e.Timestamp),
	); err != nil {
		return e, err
	}
	maps.DeleteFunc(fields, func(_ string, v json.RawMessage) bool { return isNull(v) }) // null means absent
	f, err := fields.fields()
	e.ConversationMetadata, e.EventName, e.Error, e.Latency = f.ConversationMetadata, f.EventName, f.Error, f.Latency
	e.Input, e.Output, e.InputEmbeddings, e.OutputEmbeddings = f.Input, f.Output, f.InputEmbeddings, f.OutputEmbeddings
	return e, err
}

// fields reads the fields of an update; null clears.
func (m members) fields() (f sluice.Fields, err error) {
	clears := map[string]sluice.FieldSet{
		"conversation_metadata": sluice.ClearConversationMetadata,
		"error":                 sluice.ClearError,
		"latency":               sluice.ClearLatency,
		"input":                 sluice.ClearInput,
		"output":                sluice.ClearOutput,
		"input_embeddings":      sluice.ClearInputEmbeddings,
		"output_embeddings":     sluice.ClearOutputEmbeddings,
	}
	for name, raw := range m {
		if isNull(raw) && clears[name] != 0 {
			f.Clear |= clears[name]
			continue
		}
		var err error
		switch name {
		case "conversation_metadata":
			f.ConversationMetadata = raw
		case "event_name":
			if err = m.take(name, &f.EventName); err == nil && f.EventName == "" {
				err = invalid(name, "must not be empty")
			}
		case "error":
			err = m.take(name, &f.Error)
		case "latency":
			err = m.take(name, &f.Latency)
		case "input":
			f.Input = raw
		case "output":
			f.Output = raw
		case "input_embeddings":
			f.InputEmbeddings, err = m.vector(name)
		case "output_embeddings":
			f.OutputEmbeddings, err = m.vector(name)
		default:
			err = invalid(name, "is not a field that an update changes")
		}
		if err != nil {
			return f, err
		}
	}
	return f, nil
}

// take reads a member, if it is there, and removes it.
func (m members) take(name string, into any) error {
	raw, ok := m[name]
	delete(m, name)
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return &sluice.FieldError{Field: name, Reason: "has the wrong type", Err: err}
	}
	return nil
}

// vector reads numbers; those beyond float32 become infinite.
func (m members) vector(name string) ([]float32, error) {
	var numbers []float64
	if err := m.take(name, &numbers); err != nil {
		return nil, err
	}
	vector := make([]float32, len(numbers))
	for i, n := range numbers {
		vector[i] = float32(n)
	}
	return vector, nil
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// A description is an error as the protocol has it.
type description struct {
	Kind   string `json:"kind"`
	Field  string `json:"field"`
	Status int    `json:"status"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func describe(err error) description {
	d := description{Kind: "other", Detail: err.Error()}
	var (
		refused *sluice.FieldError
		refusal *sluice.APIError
		network interface{ Timeout() bool } // as all of net's have
	)
	switch {
	case errors.As(err, &refused):
		d.Kind, d.Field = "invalid", refused.Field
	case errors.As(err, &refusal):
		d.Kind, d.Status, d.Code, d.Field, d.Detail = "api", refusal.Status, refusal.Code, refusal.Field, refusal.Detail
	case errors.Is(err, sluice.ErrSpoolCorrupt):
		d.Code = "spool_corrupt"
	case errors.Is(err, sluice.ErrSpoolInUse):
		d.Kind = "in_use"
	case errors.Is(err, sluice.ErrClosed):
		d.Kind = "closed"
	case errors.Is(err, context.DeadlineExceeded):
		d.Kind = "timeout"
	case errors.Is(err, sluice.ErrQueueFull):
		d.Kind = "queue_full"
	case errors.As(err, &network):
		d.Kind = "network"
	}
	return d
}
