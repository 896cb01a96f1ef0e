package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// appliedWaitSeconds is how long one request waits for writes to be applied.
// A longer wait takes several.
const appliedWaitSeconds = 30

// ErrDifferent is wrapped when the database does not show what was sent.
var ErrDifferent = errors.New("the database differs from what was sent")

// Verifier reads from Sluice what a load must have left there.
type Verifier struct {
	To Target
	// HTTP is the client. Required.
	HTTP *http.Client
}

// Visible waits until the writes of the receipts are applied and a query
// counts the plan's events and errors. It returns when that answer was there:
// from then on, every write is visible. It compares the answer, and then the
// counts by event name, with what must be there. No other events may have
// timestamps in the plan's span.
func (v *Verifier) Visible(ctx context.Context, p *Plan, s *State, last []event.Receipt) (time.Time, error) {
	want := p.Counts(s)
	after := make(url.Values)
	for _, r := range last {
		after.Add("after", r.String())
	}
	all, err := v.count(ctx, p, "", after)
	if err != nil {
		return time.Time{}, err
	}
	seen := time.Now()
	var wantAll Count
	got := make(map[string]Count)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name], err = v.count(ctx, p, name, nil); err != nil {
			return seen, err
		}
		wantAll.Events += want[name].Events
		wantAll.Errors += want[name].Errors
	}
	if all != wantAll || !maps.Equal(got, want) {
		return seen, fmt.Errorf("%w: events and errors are %v, by name %v, want %v, by name %v", ErrDifferent, all, got, wantAll, want)
	}
	return seen, nil
}

// Empty reports whether no event has a timestamp in the plan's span.
func (v *Verifier) Empty(ctx context.Context, p *Plan) (bool, error) {
	c, err := v.count(ctx, p, "", nil)
	return c.Events == 0, err
}

func (v *Verifier) count(ctx context.Context, p *Plan, name string, after url.Values) (Count, error) {
	query := url.Values{"since": {p.Start.UTC().Format(time.RFC3339Nano)}, "until": {p.Until().UTC().Format(time.RFC3339Nano)}}
	if name != "" {
		query.Set("event_name", name)
	}
	maps.Copy(query, after)
	for {
		var c Count
		status, err := v.Get(ctx, "/analytics/errors?"+query.Encode(), &c)
		if err == nil && status == http.StatusServiceUnavailable && after != nil {
			continue // not yet applied; the answer took its time
		}
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("count events: status %d", status)
		}
		return c, err
	}
}

// Sample compares events of the plan, in all fields, with what must be there.
func (v *Verifier) Sample(ctx context.Context, p *Plan, s *State, events []int) error {
	for _, i := range events {
		want, err := p.Want(i, s)
		if err != nil {
			return err
		}
		var got map[string]any
		status, err := v.Get(ctx, "/event/"+p.ID(i).String(), &got)
		if err != nil {
			return err
		}
		if want == nil {
			if status != http.StatusNotFound {
				return fmt.Errorf("%w: event %s is deleted, and the answer is %d", ErrDifferent, p.ID(i), status)
			}
			continue
		}
		if status != http.StatusOK || !reflect.DeepEqual(got, want) {
			return fmt.Errorf("%w: event %s, status %d, differs in %v", ErrDifferent, p.ID(i), status, differing(got, want))
		}
	}
	return nil
}

func differing(got, want map[string]any) []string {
	var fields []string
	for field := range want {
		if !reflect.DeepEqual(got[field], want[field]) {
			fields = append(fields, field)
		}
	}
	slices.Sort(fields)
	return fields
}

// Get decodes the JSON answer to a read.
func (v *Verifier) Get(ctx context.Context, path string, into any) (status int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, v.To.URL.String()+path, nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Prefer", "wait="+strconv.Itoa(appliedWaitSeconds))
	if v.To.Key != "" {
		r.Header.Set("Authorization", "Bearer "+v.To.Key)
	}
	answer, err := v.HTTP.Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, answerBytesMax))
	if err != nil {
		return 0, fmt.Errorf("read answer: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return answer.StatusCode, nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return answer.StatusCode, fmt.Errorf("decode answer to %s: %w", path, err)
	}
	return answer.StatusCode, nil
}
