package sluice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"
)

const gzipBytesMin = 1 << 10

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
