package sluice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	pauseMin      = 100 * time.Millisecond
	pauseMax      = 10 * time.Second
	retryAfterMax = time.Minute
	gzipBytesMin  = 1 << 10
	redirectsMax  = 3
	// answerBytesMax bounds an answer. A page can have 1,000 events of 1 MiB.
	answerBytesMax = 1 << 30
)

// run sends what is queued, one batch at a time, until ctx ends.
func (c *Client) run(ctx context.Context, corrupt []error) {
	for _, err := range corrupt {
		c.report(WriteError{Err: err})
	}
	failures := 0 // in a row
	told := ""    // the refusal that was logged last
	for ctx.Err() == nil {
		batch, wait := c.queue.next(time.Now())
		if batch == nil {
			sleep(ctx, wait, c.queue.wake)
			continue
		}
		results, retryAfter, err := c.send(ctx, batch)
		if err != nil && ctx.Err() != nil {
			return // closed, with writes left
		}
		if c.split(batch, err) {
			continue
		}
		pause := max(backoff(failures), retryAfter)
		failed := c.judge(batch, results, err, pause)
		c.lastFailure.Store(&failed)
		c.settle(batch)
		if failed == nil {
			failures, told = 0, ""
			continue
		}
		failures++
		if held := isHeld(failed); held && failed.Error() != told {
			told = failed.Error()
			c.opts.Logger.Error("writes are held and tried again: what answers is not Sluice, or refuses this client", slog.String("error", withoutDetail(failed)))
		} else if failures == 1 && !held {
			c.opts.Logger.Warn("writes not acknowledged, trying again", slog.Any("error", failed))
		}
		sleep(ctx, pause, nil)
	}
}

// split puts back a batch of several writes that was refused as a whole, so
// that the next ones are smaller. It reports whether it did.
func (c *Client) split(batch []*write, err error) bool {
	if len(batch) == 1 || !isFinal(err) {
		return false
	}
	bytes := 0
	for _, w := range batch {
		bytes += len(w.item)
	}
	c.queue.putBack(batch, func(l *batchLimits) {
		if hasStatus(err, http.StatusRequestEntityTooLarge) {
			l.tooLarge(bytes)
		} else {
			l.halve(len(batch))
		}
	})
	return true
}

// judge decides what becomes of each write of a batch: one that is to be tried
// again has retry set, one that is refused or has been tried for too long is
// reported. It returns an error of those that are tried again. An err is that
// of the whole batch, and final only for a batch of one write.
func (c *Client) judge(batch []*write, results []result, err error, pause time.Duration) (failed error) {
	again := time.Now().Add(pause)
	if err == nil {
		c.queue.adjust((*batchLimits).ok)
	}
	for i, w := range batch {
		err, final := err, isFinal(err)
		if err == nil {
			c.receipts.add(results[i].receipt())
			err, final = results[i].err(), results[i].isFinal()
		}
		switch {
		case err == nil:
			continue
		case final && w.op == OpCreate && (w.minted || w.unsure) && errors.Is(err, ErrIDTaken):
			continue // by an earlier attempt of its own
		case final:
		case c.opts.RetryFor > 0 && again.Sub(w.tried) > c.opts.RetryFor:
			err = fmt.Errorf("given up after %s: %w", c.opts.RetryFor, err)
		default:
			w.unsure = w.unsure || mayHaveWritten(err)
			w.retry, failed = true, err
			continue
		}
		c.report(WriteError{Op: w.op, ID: w.id, Err: plain(err)})
	}
	return failed
}

// settle takes what is answered out of the queue and the spool.
func (c *Client) settle(batch []*write) {
	if c.spool == nil {
		c.queue.settle(batch)
		return
	}
	if err := c.spool.settle(c.queue, batch); err != nil {
		c.opts.Logger.Warn("the spool was not cleaned up", slog.Any("error", err))
	}
}

// report tells of a write that is not tried again.
func (c *Client) report(e WriteError) {
	if c.opts.OnError != nil {
		c.opts.OnError(e)
		return
	}
	c.opts.Logger.Warn("write refused",
		slog.String("op", string(e.Op)), slog.String("id", e.ID), slog.Any("error", e.Err))
}

// A result is the server's answer to one write.
type result struct {
	Receipt string `json:"receipt"`
	Error   *struct {
		APIError
		Receipt string `json:"receipt"`
	} `json:"error"`
}

// isValid reports whether this is an answer of Sluice's.
func (r *result) isValid() bool {
	if r.Error != nil {
		return r.Error.Status >= 400 && r.Error.Status < 600 && r.Error.Code != ""
	}
	return r.Receipt != ""
}

func (r *result) err() error {
	if r.Error != nil {
		return &r.Error.APIError
	}
	return nil
}

// isFinal reports whether the write is judged for good.
func (r *result) isFinal() bool {
	return r.Error != nil && (judgesWrite(r.Error.Code) || !isTransient(r.Error.Status) &&
		r.Error.Status != http.StatusUnauthorized && r.Error.Status != http.StatusForbidden)
}

// receipt is where the write is in the log; empty if it is not there.
func (r *result) receipt() string {
	if r.Error != nil {
		return r.Error.Receipt
	}
	return r.Receipt
}

// parseResults returns the results in an answer, nil unless there is a valid one
// for each of so many writes.
func parseResults(body []byte, writes int) []result {
	var all struct{ Results []result }
	if json.Unmarshal(body, &all) != nil || len(all.Results) != writes {
		return nil
	}
	for i := range all.Results {
		if !all.Results[i].isValid() {
			return nil
		}
	}
	return all.Results
}

// send makes one request of the batch. Without an error there is a result for
// each write.
func (c *Client) send(ctx context.Context, batch []*write) (results []result, retryAfter time.Duration, err error) {
	now := time.Now()
	size := 0
	for _, w := range batch {
		size += len(w.item)
		if w.tried.IsZero() {
			w.tried = now
		}
	}
	body := func() (io.ReadCloser, error) { return &batchReader{batch: batch}, nil }
	zipped := c.opts.Gzip && size >= gzipBytesMin
	if zipped {
		// Not kept for the next batch: the transport may still read it when its
		// answer is there.
		var buf bytes.Buffer
		c.gzip.Reset(&buf)
		_, err := io.Copy(c.gzip, &batchReader{batch: batch})
		if err = errors.Join(err, c.gzip.Close()); err != nil {
			return nil, 0, err
		}
		size = buf.Len()
		body = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	}

	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.opts.URL+"/events", nil)
	if err != nil {
		return nil, 0, err
	}
	req.Body, _ = body()
	req.GetBody = body
	req.ContentLength = int64(size)
	req.Header.Set("Content-Type", "application/x-ndjson")
	if zipped {
		req.Header.Set("Content-Encoding", "gzip")
	}
	// Not sent: it lets the transport repeat the request by itself when an idle
	// connection turns out to be dead.
	req.Header["Idempotency-Key"] = nil

	if c.opts.WaitApplied > 0 {
		req.Header.Set("Prefer", preferWait(c.opts.WaitApplied))
	}

	answer, err := c.do(req, c.opts.RequestTimeout+c.opts.WaitApplied)
	if err != nil {
		return nil, 0, err
	}
	// A batch of which every write is refused may have a status of 4xx.
	if answer.status < 300 || answer.status >= 400 && answer.status < 500 {
		if results := parseResults(answer.body, len(batch)); results != nil {
			refused := 0
			for i := range results {
				if isOfTime(results[i].err()) {
					refused++
				}
			}
			c.observe(answer.date, refused)
			return results, answer.retryAfter, nil
		}
	}
	err = answer.err()
	if isSluices(err) {
		refused := 0
		if isOfTime(err) {
			refused = len(batch)
		}
		c.observe(answer.date, refused)
	}
	return nil, answer.retryAfter, err
}

// preferWait is the value of the header Prefer for a wait.
func preferWait(wait time.Duration) string {
	return "wait=" + strconv.Itoa(int(wait/time.Second))
}

var errBadAnswer = errors.New("sluice: the answer is not one of Sluice's")

// An answer is one of any status, by Sluice or by something on the way to it.
type answer struct {
	status     int
	body       []byte
	retryAfter time.Duration
	mediaType  string
	// date is the server's time, zero where the answer does not have it.
	date time.Time
	// location is where a redirect that is not followed leads.
	location string
}

// err returns what an answer is that is not what was asked for.
func (a *answer) err() error {
	if a.status < 300 {
		return errBadAnswer
	}
	refusal := new(APIError)
	var problem struct{ Type string }
	if json.Unmarshal(a.body, refusal) != nil || json.Unmarshal(a.body, &problem) != nil {
		*refusal = APIError{} // of a proxy
	}
	refusal.Status = a.status
	if a.location != "" && refusal.Detail == "" {
		refusal.Detail = "a redirect to " + a.location + " is not followed"
	}
	if a.mediaType != "application/problem+json" || problem.Type != "urn:sluice:problem:"+refusal.Code {
		return &foreignError{refusal}
	}
	return refusal
}

// do makes one request and returns its answer. It follows redirects that keep
// the method and the body, where they lead to the same server.
func (c *Client) do(req *http.Request, timeout time.Duration) (*answer, error) {
	ctx, cancel := context.WithTimeout(req.Context(), timeout)
	defer cancel()
	req.Header.Set("User-Agent", "sluice-go")
	if c.opts.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.opts.APIKey)
	}
	req = req.WithContext(ctx)
	for hops := 0; ; hops++ {
		answer, err := c.doOnce(req)
		if err != nil || answer.location == "" {
			return answer, err
		}
		target, err := req.URL.Parse(answer.location)
		if err != nil || hops == redirectsMax || !mayFollow(answer.status, req.URL, target) {
			if err == nil {
				target.User, target.RawQuery, target.Fragment = nil, "", "" // it goes to the log
				answer.location = target.String()
			}
			return answer, nil
		}
		req = req.Clone(ctx)
		req.URL, req.Host = target, ""
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

func (c *Client) doOnce(req *http.Request) (*answer, error) {
	got, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("sluice: %w", err)
	}
	defer func() { _ = got.Body.Close() }() // all that matters was read
	a := &answer{status: got.StatusCode, retryAfter: parseRetryAfter(got.Header.Get("Retry-After")), date: serverTime(got.Header)}
	a.mediaType, _, _ = mime.ParseMediaType(got.Header.Get("Content-Type"))
	if a.status >= 300 && a.status < 400 {
		a.location = got.Header.Get("Location")
	}
	if a.body, err = io.ReadAll(io.LimitReader(got.Body, answerBytesMax)); err != nil {
		return nil, fmt.Errorf("sluice: read the answer: %w", err)
	}
	return a, nil
}

// mayFollow reports whether a redirect keeps the request as it is and leads to
// the server that was asked: the same scheme, host and port. A host's own step
// from http to https, each at its default port, counts as the same.
func mayFollow(status int, from, to *url.URL) bool {
	if status != http.StatusTemporaryRedirect && status != http.StatusPermanentRedirect || to.User != nil ||
		!strings.EqualFold(from.Hostname(), to.Hostname()) {
		return false
	}
	if from.Scheme == "http" && to.Scheme == "https" {
		return port(from) == "80" && port(to) == "443"
	}
	return from.Scheme == to.Scheme && port(from) == port(to)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}

// parseRetryAfter reads seconds or a date, and counts it up to a minute.
func parseRetryAfter(value string) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return min(max(0, time.Duration(min(seconds, 60))*time.Second), retryAfterMax)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(0, time.Until(at)), retryAfterMax)
	}
	return 0
}

// backoff is the pause after so many failures before: a random half to whole of
// what doubles from pauseMin to pauseMax.
func backoff(failures int) time.Duration {
	whole := min(pauseMin<<min(failures, 10), pauseMax)
	return whole/2 + rand.N(whole/2+1) //nolint:gosec // spreads load, hides nothing
}

// sleep waits for d, or for ever if it is negative; or until it is woken or ctx ends.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	var over <-chan time.Time
	if d >= 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-over:
	case <-wake:
	case <-ctx.Done():
	}
}

// A batchReader reads the items of a batch, one behind the other.
type batchReader struct {
	batch []*write
	at    int // within the first
}

func (r *batchReader) Read(p []byte) (n int, err error) {
	for n < len(p) && len(r.batch) > 0 {
		copied := copy(p[n:], r.batch[0].item[r.at:])
		n += copied
		r.at += copied
		if r.at == len(r.batch[0].item) {
			r.batch, r.at = r.batch[1:], 0
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *batchReader) Close() error { return nil }
