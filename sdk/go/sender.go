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
	"net/http"
	"strconv"
	"time"
)

const (
	pauseMin      = 100 * time.Millisecond
	pauseMax      = 10 * time.Second
	retryAfterMax = time.Minute
	gzipBytesMin  = 1 << 10
	// answerBytesMax bounds an answer. A page can have 1,000 events of 1 MiB.
	answerBytesMax = 1 << 30
)

// run sends what is queued, one batch at a time, until ctx ends.
func (c *Client) run(ctx context.Context, corrupt []error) {
	for _, err := range corrupt {
		c.report(WriteError{Err: err})
	}
	failures := 0 // in a row
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
		pause := max(backoff(failures), retryAfter)
		failed := c.judge(batch, results, err, pause)
		c.settle(batch)
		if failed == nil {
			failures = 0
			continue
		}
		if failures++; failures == 1 {
			c.opts.Logger.Warn("writes not acknowledged, trying again", slog.Any("error", failed))
		}
		sleep(ctx, pause, nil)
	}
}

// judge decides what becomes of each write of a batch: one that is to be tried
// again has retry set, one that is refused or has been tried for too long is
// reported. It returns an error of those that are tried again.
func (c *Client) judge(batch []*write, results []result, err error, pause time.Duration) (failed error) {
	again := time.Now().Add(pause)
	for i, w := range batch {
		err := err
		if err == nil {
			err = results[i].err()
		}
		switch {
		case err == nil:
			c.receipts.add(results[i].Receipt)
			continue
		case !retriable(err):
		case c.opts.RetryFor > 0 && again.Sub(w.tried) > c.opts.RetryFor:
			err = fmt.Errorf("given up after %s: %w", c.opts.RetryFor, err)
		default:
			w.retry, failed = true, err
			continue
		}
		c.report(WriteError{Op: w.op, ID: w.id, Err: err})
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
	Receipt string    `json:"receipt"`
	Error   *APIError `json:"error"`
}

func (r *result) err() error {
	if r.Error != nil {
		return r.Error
	}
	if r.Receipt == "" {
		return errBadAnswer
	}
	return nil
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

	answer, retryAfter, err := c.do(req, c.opts.RequestTimeout)
	if err != nil {
		return nil, retryAfter, err
	}
	var all struct{ Results []result }
	if err := json.Unmarshal(answer, &all); err != nil || len(all.Results) != len(batch) {
		return nil, retryAfter, errBadAnswer
	}
	return all.Results, retryAfter, nil
}

var errBadAnswer = errors.New("sluice: the answer is not one of Sluice's")

// do makes one request and returns the body of its answer. Where that is a
// refusal, the error is an [*APIError].
func (c *Client) do(req *http.Request, timeout time.Duration) (body []byte, retryAfter time.Duration, err error) {
	ctx, cancel := context.WithTimeout(req.Context(), timeout)
	defer cancel()
	req.Header.Set("User-Agent", "sluice-go")
	if c.opts.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.opts.APIKey)
	}
	answer, err := c.opts.HTTPClient.Do(req.WithContext(ctx))
	if err != nil {
		return nil, 0, fmt.Errorf("sluice: %w", err)
	}
	defer func() { _ = answer.Body.Close() }() // all that matters was read
	body, err = io.ReadAll(io.LimitReader(answer.Body, answerBytesMax))
	if err != nil {
		return nil, 0, fmt.Errorf("sluice: read the answer: %w", err)
	}
	retryAfter = parseRetryAfter(answer.Header.Get("Retry-After"))
	if answer.StatusCode >= 200 && answer.StatusCode < 300 {
		return body, retryAfter, nil
	}
	refusal := new(APIError)
	if json.Unmarshal(body, refusal) != nil {
		*refusal = APIError{} // of a proxy
	}
	refusal.Status = answer.StatusCode
	return nil, retryAfter, refusal
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
