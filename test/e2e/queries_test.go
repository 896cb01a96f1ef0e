package e2e_test

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"
)

const (
	rowsMax = 10_000 // the most rows that a query may ask for
	day     = int64(24 * time.Hour / time.Microsecond)
	hour    = int64(time.Hour / time.Microsecond)
)

// query is the filter as query parameters. Times go as text, so that they are exact.
func (f filter) query() url.Values {
	at := func(micros int64) []string { return []string{time.UnixMicro(micros).UTC().Format(time.RFC3339Nano)} }
	q := url.Values{"since": at(f.since), "until": at(f.until)}
	for name, value := range map[string]string{
		"conversation_id": f.conversation, "event_name": f.name, "metadata.plan": f.plan,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q
}

// checkQueries compares all analytics queries with the model.
func checkQueries(t *testing.T, c *client, m *model) {
	t.Helper()
	everything := m.everything()
	filters := map[string]filter{"everything": everything}
	for _, name := range []string{"event_a", "event_b", "event_c"} {
		f := everything
		f.name = name
		filters[name] = f
	}
	middle := m.since + (m.until-m.since)/2
	for name, change := range map[string]func(*filter){
		"first half":       func(f *filter) { f.until = middle },
		"an hour":          func(f *filter) { f.since, f.until = middle, middle+hour },
		"plan":             func(f *filter) { f.plan = "pro" },
		"plan and name":    func(f *filter) { f.plan, f.name = "free", "event_b" },
		"conversation":     func(f *filter) { f.conversation = m.conversations[len(m.conversations)/2] },
		"other time":       func(f *filter) { f.since, f.until = m.since-2*day, m.since },
		"no such plan":     func(f *filter) { f.plan = "platinum" },
		"exactly one":      func(f *filter) { f.since, f.until = m.events[0].micros, m.events[0].micros+1 },
		"no conversations": func(f *filter) { f.conversation = "no-such-conversation" },
	} {
		f := everything
		change(&f)
		filters[name] = f
	}
	for name, f := range filters {
		t.Run(name, func(t *testing.T) {
			checkErrors(t, c, m, f)
			checkLatency(t, c, m, f, []float64{0.95, 0.5}, "conversation,event_name", rowsMax)
			checkLatency(t, c, m, f, []float64{0.5, 0.99}, "conversation", 25)
			checkLatency(t, c, m, f, []float64{0.95}, "event_name", 100)
			for _, order := range []string{"error_rate", "errors", "events"} {
				checkConversations(t, c, m, f, order, 1, rowsMax)
				checkConversations(t, c, m, f, order, 4, 20)
			}
			checkTimeSeries(t, c, m, f, "1h", hour)
			checkTimeSeries(t, c, m, f, "1d", day)
			checkInsights(t, c, m, f)
			checkRetention(t, c, m, f)
			checkFunnel(t, c, m, f, hour)
			checkFunnel(t, c, m, f, hour/120)
			checkLists(t, c, m, f)
			checkExport(t, c, m, f)
			checkSearch(t, c, m, f)
		})
	}
	// A query's rows are bounded, so that every session's p95 takes a query for each day.
	t.Run("latency by day", func(t *testing.T) {
		for since := m.since / day * day; since < m.until; since += day {
			f := filter{since: since, until: since + day}
			checkLatency(t, c, m, f, []float64{0.95}, "conversation,event_name", rowsMax)
		}
	})
}

func checkErrors(t *testing.T, c *client, m *model, f filter) {
	t.Helper()
	var got struct {
		EventName *string   `json:"event_name"`
		Events    int       `json:"events"`
		Errors    int       `json:"errors"`
		ErrorRate float64   `json:"error_rate"`
		Since     time.Time `json:"since"`
		Until     time.Time `json:"until"`
	}
	path := "/analytics/errors?" + f.query().Encode()
	if err := c.get(path, &got); err != nil {
		t.Error(err)
		return
	}
	events := m.where(f)
	failed := countFailed(events)
	if got.Events != len(events) || got.Errors != failed || !closeTo(got.ErrorRate, rate(failed, len(events))) {
		t.Errorf("%s: got %+v, want %d events, %d errors", path, got, len(events), failed)
	}
	if got.Since.UnixMicro() != f.since || got.Until.UnixMicro() != f.until {
		t.Errorf("%s: answers for %s to %s", path, got.Since, got.Until)
	}
	if f.name != "" && (got.EventName == nil || *got.EventName != f.name) {
		t.Errorf("%s: answers for event_name %v, want %s", path, got.EventName, f.name)
	}
}

// group is what a row of a latency query is of.
type group struct{ conversation, name string }

func checkLatency(t *testing.T, c *client, m *model, f filter, levels []float64, groupBy string, limit int) {
	t.Helper()
	query := f.query()
	query.Set("group_by", groupBy)
	query.Set("limit", strconv.Itoa(limit))
	var names []string
	for _, level := range levels {
		name := strconv.FormatFloat(level, 'g', -1, 64)
		names = append(names, name)
		query.Add("q", name)
	}
	var got struct {
		Rows []struct {
			ConversationID *string            `json:"conversation_id"`
			EventName      *string            `json:"event_name"`
			Events         int                `json:"events"`
			Quantiles      map[string]float64 `json:"quantiles"`
		} `json:"rows"`
	}
	path := "/analytics/latency?" + query.Encode()
	if err := c.get(path, &got); err != nil {
		t.Error(err)
		return
	}
	want := map[group][]*modelEvent{}
	for _, e := range m.where(f) {
		if e.latency == nil {
			continue
		}
		g := group{e.conversation, e.name}
		switch groupBy {
		case "conversation":
			g.name = ""
		case "event_name":
			g.conversation = ""
		}
		want[g] = append(want[g], e)
	}
	if n := min(limit, len(want)); len(got.Rows) != n || got.Rows == nil {
		t.Errorf("%s: %d rows, want %d", path, len(got.Rows), n)
		return
	}
	lowest, before := 0.0, group{}
	for i, row := range got.Rows {
		g := group{}
		if row.ConversationID != nil {
			g.conversation = *row.ConversationID
		}
		if row.EventName != nil {
			g.name = *row.EventName
		}
		events, ok := want[g]
		if !ok {
			t.Errorf("%s: row %d: group %+v is not expected, or there twice", path, i, g)
			return
		}
		delete(want, g)
		values := latencies(events)
		if row.Events != len(events) || len(row.Quantiles) != len(levels) {
			t.Errorf("%s: group %+v: got %+v, want %d events", path, g, row, len(events))
		}
		for j, level := range levels {
			if answered, ok := row.Quantiles[names[j]]; !ok || !closeTo(answered, quantile(values, level)) {
				t.Errorf("%s: group %+v: quantile %s is %v, want %v", path, g, names[j], answered, quantile(values, level))
			}
		}
		first := row.Quantiles[names[0]]
		if i > 0 && (first > lowest || first == lowest &&
			cmp.Or(cmp.Compare(before.conversation, g.conversation), cmp.Compare(before.name, g.name)) >= 0) {
			t.Errorf("%s: row %d: %+v with %v comes after %+v with %v", path, i, g, first, before, lowest)
		}
		lowest, before = first, g
	}
	// What the limit left out is not above what it let in.
	for g, events := range want {
		if q := quantile(latencies(events), levels[0]); q > lowest && !closeTo(q, lowest) {
			t.Errorf("%s: group %+v with %v is left out, %v is not", path, g, q, lowest)
		}
	}
}

type conversationRow struct {
	ConversationID string    `json:"conversation_id"`
	Events         int       `json:"events"`
	Errors         int       `json:"errors"`
	ErrorRate      float64   `json:"error_rate"`
	First          time.Time `json:"first"`
	Last           time.Time `json:"last"`
}

func checkConversations(t *testing.T, c *client, m *model, f filter, order string, eventsMin, limit int) {
	t.Helper()
	query := f.query()
	query.Set("order_by", order)
	query.Set("min_events", strconv.Itoa(eventsMin))
	query.Set("limit", strconv.Itoa(limit))
	var got struct {
		Rows []conversationRow `json:"rows"`
	}
	path := "/analytics/conversations?" + query.Encode()
	if err := c.get(path, &got); err != nil {
		t.Error(err)
		return
	}
	byConversation := map[string][]*modelEvent{}
	for _, e := range m.where(f) {
		byConversation[e.conversation] = append(byConversation[e.conversation], e)
	}
	want := []conversationRow{}
	for id, events := range byConversation {
		if len(events) < eventsMin {
			continue
		}
		row := conversationRow{
			ConversationID: id, Events: len(events), Errors: countFailed(events),
			First: time.UnixMicro(events[0].micros).UTC(), Last: time.UnixMicro(events[len(events)-1].micros).UTC(),
		}
		row.ErrorRate = rate(row.Errors, row.Events)
		want = append(want, row)
	}
	key := func(r conversationRow) float64 {
		switch order {
		case "errors":
			return float64(r.Errors)
		case "events":
			return float64(r.Events)
		default:
			return r.ErrorRate
		}
	}
	slices.SortFunc(want, func(a, b conversationRow) int {
		return cmp.Or(cmp.Compare(key(b), key(a)), cmp.Compare(a.ConversationID, b.ConversationID))
	})
	want = want[:min(limit, len(want))]
	if len(got.Rows) != len(want) || got.Rows == nil {
		t.Errorf("%s: %d rows, want %d", path, len(got.Rows), len(want))
		return
	}
	for i, w := range want {
		g := got.Rows[i]
		same := g.ConversationID == w.ConversationID && g.Events == w.Events && g.Errors == w.Errors &&
			closeTo(g.ErrorRate, w.ErrorRate) && g.First.Equal(w.First) && g.Last.Equal(w.Last)
		if !same {
			t.Errorf("%s: row %d: got %+v, want %+v", path, i, g, w)
			return
		}
	}
}

func checkTimeSeries(t *testing.T, c *client, m *model, f filter, interval string, micros int64) {
	t.Helper()
	query := f.query()
	query.Set("interval", interval)
	query.Add("q", "0.95")
	query.Add("q", "0.5")
	var got struct {
		Rows []struct {
			Time      time.Time           `json:"time"`
			Events    int                 `json:"events"`
			Errors    int                 `json:"errors"`
			Quantiles map[string]*float64 `json:"quantiles"`
		} `json:"rows"`
	}
	path := "/analytics/timeseries?" + query.Encode()
	if err := c.get(path, &got); err != nil {
		t.Error(err)
		return
	}
	buckets := map[int64][]*modelEvent{}
	for _, e := range m.where(f) {
		buckets[e.micros/micros] = append(buckets[e.micros/micros], e)
	}
	var want []int64
	for b := range buckets {
		want = append(want, b)
	}
	slices.Sort(want)
	if len(got.Rows) != len(want) || got.Rows == nil {
		t.Errorf("%s: %d rows, want %d", path, len(got.Rows), len(want))
		return
	}
	for i, b := range want {
		row, events := got.Rows[i], buckets[b]
		if row.Time.UnixMicro() != b*micros || row.Events != len(events) || row.Errors != countFailed(events) {
			t.Errorf("%s: row %d: got %+v, want time %d, %d events, %d errors", path, i, row, b*micros, len(events), countFailed(events))
			return
		}
		values := latencies(events)
		for name, level := range map[string]float64{"0.95": 0.95, "0.5": 0.5} {
			answered, ok := row.Quantiles[name]
			if !ok || (answered == nil) != (len(values) == 0) || answered != nil && !closeTo(*answered, quantile(values, level)) {
				t.Errorf("%s: row %d: quantile %s is %s", path, i, name, show(answered))
			}
		}
	}
}

// kolkata has days that begin at 18:30 UTC.
var kolkata = time.FixedZone("", 5*3600+1800)

func checkInsights(t *testing.T, c *client, m *model, f filter) {
	t.Helper()
	query := f.query()
	query.Set("interval", "1d")
	query.Set("tz", "Asia/Kolkata")
	query.Set("group_by", "metadata.plan")
	for _, measure := range []string{"events", "error_rate", "p95(latency)"} {
		query.Add("measure", measure)
	}
	type row struct {
		Time      time.Time `json:"time"`
		Plan      *string   `json:"metadata.plan"`
		Events    int       `json:"events"`
		ErrorRate float64   `json:"error_rate"`
		Quantile  *float64  `json:"p95(latency)"`
	}
	var got struct {
		Rows []row `json:"rows"`
	}
	path := "/analytics/insights?" + query.Encode()
	if err := c.get(path, &got); err != nil {
		t.Error(err)
		return
	}
	type key struct{ date, plan string }
	want := map[key][]*modelEvent{}
	for _, e := range m.where(f) {
		k := key{time.UnixMicro(e.micros).In(kolkata).Format(time.DateOnly), e.plan}
		want[k] = append(want[k], e)
	}
	if len(got.Rows) != len(want) || got.Rows == nil {
		t.Errorf("%s: %d rows, want %d", path, len(got.Rows), len(want))
		return
	}
	for i, r := range got.Rows {
		k := key{date: r.Time.In(kolkata).Format(time.DateOnly)}
		if r.Plan != nil {
			k.plan = *r.Plan
		}
		events := want[k]
		delete(want, k)
		values := latencies(events)
		if r.Time.In(kolkata).Format(time.TimeOnly) != "00:00:00" || r.Events != len(events) || !closeTo(r.ErrorRate, rate(countFailed(events), len(events))) ||
			(r.Quantile == nil) != (len(values) == 0) || r.Quantile != nil && !closeTo(*r.Quantile, quantile(values, 0.95)) {
			t.Errorf("%s: row %d is %+v, quantile %s, of %d events", path, i, r, show(r.Quantile), len(events))
			return
		}
	}
}

// checkFunnel compares how many conversations get how far: a question, an answer without an
// error, and another question.
func checkFunnel(t *testing.T, c *client, m *model, f filter, window int64) {
	t.Helper()
	query := f.query()
	query["step"] = []string{"event_a", "event_b;error=false", "event_a"}
	query.Set("window", strconv.FormatInt(window/1_000_000, 10)+"s")
	var got struct {
		Rows []struct {
			Steps []struct {
				Subjects int `json:"subjects"`
			} `json:"steps"`
		} `json:"rows"`
	}
	path := "/analytics/funnel?" + query.Encode()
	if err := c.get(path, &got); err != nil {
		t.Error(err)
		return
	}
	steps := []func(*modelEvent) bool{
		func(e *modelEvent) bool { return e.name == "event_a" },
		func(e *modelEvent) bool { return e.name == "event_b" && !e.failed },
		func(e *modelEvent) bool { return e.name == "event_a" },
	}
	want := make([]int, len(steps))
	conversations := make(map[string][]*modelEvent)
	for _, e := range m.where(f) {
		conversations[e.conversation] = append(conversations[e.conversation], e)
	}
	for _, events := range conversations {
		slices.SortFunc(events, func(a, b *modelEvent) int { return cmp.Compare(a.micros, b.micros) })
		reached := 0
		for first := range events {
			n := 0
			for _, e := range events[first:] {
				if n < len(steps) && e.micros-events[first].micros <= window && steps[n](e) {
					n++
				} else if n == 0 {
					break
				}
			}
			reached = max(reached, n)
		}
		for n := range reached {
			want[n]++
		}
	}
	if len(got.Rows) != 1 || len(got.Rows[0].Steps) != len(want) {
		t.Errorf("%s: got %+v", path, got)
		return
	}
	for n, step := range got.Rows[0].Steps {
		if step.Subjects != want[n] {
			t.Errorf("%s: step %d has %d conversations, want %d", path, n, step.Subjects, want[n])
		}
	}
}

// checkRetention asks of the conversations with an event_a on a day, how many have an event_b then and later.
func checkRetention(t *testing.T, c *client, m *model, f filter) {
	t.Helper()
	query := f.query()
	query.Set("did", "event_a")
	query.Set("returned", "event_b")
	query.Set("tz", "Asia/Kolkata")
	var got struct {
		Rows []struct {
			Time     time.Time `json:"time"`
			Subjects int       `json:"subjects"`
			Returned []int     `json:"returned"`
		} `json:"rows"`
	}
	path := "/analytics/retention?" + query.Encode()
	if err := c.get(path, &got); err != nil {
		t.Error(err)
		return
	}
	const offset = int64(5*3600+1800) * 1_000_000
	first := (f.since + offset) / day
	f.since = first*day - offset // as the answer says
	periods := int((f.until-1+offset)/day-first) + 1
	did, returned := make([]map[string]bool, periods), make([]map[string]bool, periods)
	for i := range periods {
		did[i], returned[i] = map[string]bool{}, map[string]bool{}
	}
	for _, e := range m.where(f) {
		switch i := (e.micros+offset)/day - first; e.name {
		case "event_a":
			did[i][e.conversation] = true
		case "event_b":
			returned[i][e.conversation] = true
		}
	}
	if len(got.Rows) != periods {
		t.Errorf("%s: %d rows, want %d", path, len(got.Rows), periods)
		return
	}
	for i, r := range got.Rows {
		want := make([]int, periods-i)
		for conversation := range did[i] {
			for j := range want {
				if returned[i+j][conversation] {
					want[j]++
				}
			}
		}
		if r.Time.UnixMicro() != (first+int64(i))*day-offset || r.Subjects != len(did[i]) || !slices.Equal(r.Returned, want) {
			t.Errorf("%s: row %d is %+v, want %d subjects and %v", path, i, r, len(did[i]), want)
			return
		}
	}
}

func show(v *float64) string {
	if v == nil {
		return "null"
	}
	return fmt.Sprint(*v)
}
