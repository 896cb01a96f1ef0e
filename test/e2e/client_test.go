package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// client speaks to one API.
type client struct {
	base string
	http *http.Client
}

func newClient(addr string) *client {
	return &client{
		base: "http://" + addr,
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}, Timeout: time.Minute},
	}
}

// answer is an HTTP answer, its body read.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request. The error is one of the connection; every status is an answer.
func (c *client) do(method, path string, body []byte, prefer string) (answer, error) {
	req, err := http.NewRequest(method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if prefer != "" {
		req.Header.Set("Prefer", prefer)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, fmt.Errorf("%s %s: read answer: %w", method, path, err)
	}
	return answer{resp.StatusCode, resp.Header, text}, nil
}

// get reads a JSON answer of status 200 into v.
func (c *client) get(path string, v any) error {
	a, err := c.do(http.MethodGet, path, nil, "")
	if err != nil {
		return err
	}
	if a.status != http.StatusOK {
		return fmt.Errorf("GET %s: status %d: %.500s", path, a.status, a.body)
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		return fmt.Errorf("GET %s: %w: %.500s", path, err, a.body)
	}
	return nil
}

func (c *client) waitReady(t *testing.T) {
	t.Helper()
	eventually(t, startBound, "readiness", func() error {
		a, err := c.do(http.MethodGet, "/readyz", nil, "")
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("status %d: %s", a.status, a.body)
		}
		return err
	})
}

// result is the answer to one write.
type result struct {
	ID      string `json:"id"`
	Receipt string `json:"receipt"`
	Error   *struct {
		Status int    `json:"status"`
		Code   string `json:"code"`
		Field  string `json:"field"`
		Detail string `json:"detail"`
	} `json:"error"`
}

// post sends one batch of NDJSON lines; all of them must be accepted.
func (c *client) post(lines [][]byte) ([]result, error) {
	a, err := c.do(http.MethodPost, "/events", bytes.Join(lines, []byte{'\n'}), "")
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusAccepted {
		return nil, fmt.Errorf("POST /events: status %d: %.500s", a.status, a.body)
	}
	var batch struct {
		Results []result `json:"results"`
	}
	if err := json.Unmarshal(a.body, &batch); err != nil {
		return nil, fmt.Errorf("POST /events: %w: %.500s", err, a.body)
	}
	if len(batch.Results) != len(lines) {
		return nil, fmt.Errorf("POST /events: %d results for %d writes", len(batch.Results), len(lines))
	}
	for i, r := range batch.Results {
		if r.ID == "" || r.Receipt == "" || r.Error != nil {
			return nil, fmt.Errorf("POST /events: result %d is %+v", i, r)
		}
	}
	return batch.Results, nil
}

// single sends one write to its own resource.
func (c *client) single(method, id string, body []byte) (result, error) {
	var r result
	a, err := c.do(method, eventPath(id), body, "")
	if err != nil {
		return r, err
	}
	if a.status != http.StatusAccepted {
		return r, fmt.Errorf("%s %s: status %d: %.500s", method, eventPath(id), a.status, a.body)
	}
	if err := json.Unmarshal(a.body, &r); err != nil {
		return r, fmt.Errorf("%s %s: %w: %.500s", method, eventPath(id), err, a.body)
	}
	if r.ID != id || r.Receipt == "" {
		return r, fmt.Errorf("%s %s: answer names %q, receipt %q", method, eventPath(id), r.ID, r.Receipt)
	}
	return r, nil
}

func eventPath(id string) string { return "/event/" + url.PathEscape(id) }

// receipts are the highest receipts so far, by generation and partition.
type receipts struct {
	mu   sync.Mutex
	last map[string]int64
}

func (r *receipts) add(results ...result) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[string]int64{}
	}
	for _, x := range results {
		dot := strings.LastIndexByte(x.Receipt, '.')
		if dot < 0 {
			return fmt.Errorf("receipt %q has no offset", x.Receipt)
		}
		offset, err := strconv.ParseInt(x.Receipt[dot+1:], 10, 64)
		if err != nil {
			return fmt.Errorf("receipt %q: %w", x.Receipt, err)
		}
		partition := x.Receipt[:dot]
		if last, ok := r.last[partition]; !ok || offset > last {
			r.last[partition] = offset
		}
	}
	return nil
}

// copy returns the receipts as they are now.
func (r *receipts) copy() *receipts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &receipts{last: maps.Clone(r.last)}
}

// waitApplied waits until all writes of the receipts are visible, by the
// API's own means: a read with after.
func (r *receipts) waitApplied(t *testing.T, c *client, bound time.Duration) {
	t.Helper()
	r.mu.Lock()
	query := url.Values{"limit": {"1"}}
	for partition, offset := range r.last {
		query.Add("after", partition+"."+strconv.FormatInt(offset, 10))
	}
	r.mu.Unlock()
	eventually(t, bound, "writes to become visible", func() error {
		a, err := c.do(http.MethodGet, "/conversations/any/events?"+query.Encode(), nil, "wait=20")
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("status %d: %.300s", a.status, a.body)
		}
		return err
	})
}

// eventObject is an event as the API answers it: its members as they came.
type eventObject map[string]json.RawMessage

func (o eventObject) text(member string) string {
	var s string
	if json.Unmarshal(o[member], &s) != nil {
		return ""
	}
	return s
}

// conversation lists all events of a conversation, in pages.
func (c *client) conversation(id string, limit int, withEmbeddings bool) ([]eventObject, error) {
	var all []eventObject
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if withEmbeddings {
		query.Set("embeddings", "true")
	}
	for {
		var page struct {
			Events []eventObject `json:"events"`
			Next   *string       `json:"next_cursor"`
		}
		if err := c.get("/conversations/"+url.PathEscape(id)+"/events?"+query.Encode(), &page); err != nil {
			return nil, err
		}
		if page.Events == nil {
			return nil, fmt.Errorf("conversation %s: the page has no list of events", id)
		}
		all = append(all, page.Events...)
		if page.Next == nil {
			return all, nil
		}
		if len(page.Events) == 0 || len(page.Events) > limit {
			return nil, fmt.Errorf("conversation %s: a page of %d events that is not the last, limit %d", id, len(page.Events), limit)
		}
		query.Set("cursor", *page.Next)
	}
}

// inParallel calls do for 0 to n-1 on a few goroutines, and returns the first errors.
func inParallel(n, goroutines int, do func(i int) error) error {
	const errorsMax = 10
	var (
		mu   sync.Mutex
		next int
		errs []error
		wg   sync.WaitGroup
	)
	for range goroutines {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				stop := i >= n || len(errs) >= errorsMax
				mu.Unlock()
				if stop {
					return
				}
				if err := do(i); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// metric is the value of a metric without labels, as a process of Sluice tells
// it at the address.
func metric(t *testing.T, addr, name string) float64 {
	t.Helper()
	a, err := newClient(addr).do(http.MethodGet, "/metrics", nil, "")
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("GET /metrics: status %d, error %v", a.status, err)
	}
	for line := range strings.Lines(string(a.body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return n
		}
	}
	t.Fatalf("%s has no metric %s", addr, name)
	return 0
}
