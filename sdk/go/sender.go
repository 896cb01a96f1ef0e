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

// run is the sender's goroutine. It sends the queue, one batch at a time, until
// ctx ends. It first reports the corrupt lines of the spool.
func (c *Client) run(ctx context.Context, corrupt []error) {
	for _, err := range corrupt {
		c.report(WriteError{Err: err})
	}
	failures := 0 // failed batches in a row
	told := ""    // the last error that was logged for held writes
	for ctx.Err() == nil {
		batch, wait := c.queue.next(time.Now())
		if batch == nil {
			sleep(ctx, wait, c.queue.wake)
			continue
		}
		results, retryAfter, err := c.send(ctx, batch)
		if err != nil && ctx.Err() != nil {
			return // the client was closed with writes left
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
			c.opts.Logger.Error("writes are held and retried: the server refuses this client, or is not Sluice; check URL and APIKey", slog.String("error", withoutDetail(failed)))
		} else if failures == 1 && !held {
			c.opts.Logger.Warn("writes not acknowledged, trying again", slog.Any("error", failed))
		}
		sleep(ctx, pause, nil)
	}
}

// split puts back a batch that was refused as a whole, if it has several writes,
// and lowers the limits so that the next batches are smaller. It reports whether
// it put the batch back.
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

// judge decides for each write of a batch whether it is acknowledged, retried or
// failed. It sets retry on writes to retry, and reports writes that were refused
// or retried for too long. It returns the error of a write to retry, or nil. If
// err is not nil, it is the error of the whole batch; it is final only for a
// batch of one write.
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
			continue // an earlier attempt of this same write took the id
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

// settle removes the answered writes of the batch from the queue and the spool.
func (c *Client) settle(batch []*write) {
	if c.spool == nil {
		c.queue.settle(batch)
		return
	}
	if err := c.spool.settle(c.queue, batch); err != nil {
		c.opts.Logger.Warn("the spool was not cleaned up; the next start may resend writes, which is harmless", slog.Any("error", err))
	}
}

// report calls OnError for a write that failed for good, or logs the failure.
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

// isValid reports whether the result has the form of Sluice's results.
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

// isFinal reports whether the write was refused for good.
func (r *result) isFinal() bool {
	return r.Error != nil && (isFinalCode(r.Error.Code) || !isTransient(r.Error.Status) &&
		r.Error.Status != http.StatusUnauthorized && r.Error.Status != http.StatusForbidden)
}

// receipt returns the receipt, which names the write's place in the log; empty if
// the write is not in the log.
func (r *result) receipt() string {
	if r.Error != nil {
		return r.Error.Receipt
	}
	return r.Receipt
}

// parseResults parses the results of a batch of the given number of writes. It
// returns nil if the body does not have a valid result for each write.
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

// send sends the batch in one request. If err is nil, there is a result for each
// write.
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
		// The buffer is not reused for the next batch: the transport may still read
		// it after the answer has come.
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
	// A nil header is not sent. It lets the transport repeat the request when an
	// idle connection turns out to be dead.
	req.Header["Idempotency-Key"] = nil

	if c.opts.WaitApplied > 0 {
		req.Header.Set("Prefer", preferWait(c.opts.WaitApplied))
	}

	answer, err := c.do(req, c.opts.RequestTimeout+c.opts.WaitApplied)
	if err != nil {
		return nil, 0, err
	}
	// A batch whose writes are all refused may have a status of 4xx, and has
	// results too.
	if answer.status < 300 || answer.status >= 400 && answer.status < 500 {
		if results := parseResults(answer.body, len(batch)); results != nil {
			refused := 0
			for i := range results {
				if refusesTime(results[i].err()) {
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
		if refusesTime(err) {
			refused = len(batch)
		}
		c.observe(answer.date, refused)
	}
	return nil, answer.retryAfter, err
}

// preferWait returns the value of the Prefer header for a wait.
func preferWait(wait time.Duration) string {
	return "wait=" + strconv.Itoa(int(wait/time.Second))
}

var errBadAnswer = errors.New("sluice: the answer is not Sluice's")

// An answer is an HTTP answer of any status, from Sluice or from a proxy.
type answer struct {
	status     int
	body       []byte
	retryAfter time.Duration
	mediaType  string
	// date is the server's time; zero if the answer does not have it.
	date time.Time
	// location is the target of a redirect that was not followed.
	location string
}

// err returns the error for an answer that does not have the wanted content.
func (a *answer) err() error {
	if a.status < 300 {
		return errBadAnswer
	}
	refusal := new(APIError)
	var problem struct{ Type string }
	if json.Unmarshal(a.body, refusal) != nil || json.Unmarshal(a.body, &problem) != nil {
		*refusal = APIError{} // the answer of a proxy
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

// do sends the request and returns the answer. It follows redirects 307 and 308 to
// the same server.
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
				target.User, target.RawQuery, target.Fragment = nil, "", "" // may be secret, and the location is logged
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
	defer func() { _ = got.Body.Close() }() // the body was read, so an error does not matter
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

// mayFollow reports whether a redirect may be followed: it keeps the method and
// the body (307 or 308), and leads to the same scheme, host and port. A redirect
// of a host from http to https, both at their default ports, may be followed too.
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

// parseRetryAfter parses a Retry-After header, which has seconds or a date. It
// returns at most a minute.
func parseRetryAfter(value string) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return min(max(0, time.Duration(min(seconds, 60))*time.Second), retryAfterMax)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(0, time.Until(at)), retryAfterMax)
	}
	return 0
}

// backoff returns the pause after the given number of earlier failures. The pause
// doubles from pauseMin to pauseMax, with a random factor from 0.5 to 1.
func backoff(failures int) time.Duration {
	whole := min(pauseMin<<min(failures, 10), pauseMax)
	return whole/2 + rand.N(whole/2+1) //nolint:gosec // spreads load, hides nothing
}

// sleep waits until d is over, wake is signalled or ctx ends. A negative d has no
// end.
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

// A batchReader reads the items of a batch as NDJSON.
type batchReader struct {
	batch []*write
	at    int // the offset in the first item
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
