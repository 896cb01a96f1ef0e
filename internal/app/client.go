package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

const (
	// clientTries is how often a request is made again that made no progress.
	clientTries = 8
	// clientPauseFirst and clientPauseMax bound the pause before the next try.
	clientPauseFirst, clientPauseMax = 250 * time.Millisecond, 15 * time.Second
)

// Client sends requests to the API of a running Sluice.
type Client struct {
	// URL is that of the API, such as http://127.0.0.1:8080.
	URL string
	// Key is an API key. Empty where the API asks for none.
	Key string
}

// parseURL parses the URL of the API.
func (c Client) parseURL() (*url.URL, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is not a URL such as http://127.0.0.1:8080", c.URL)
	}
	return u, nil
}

// answerError is an answer of the API that is a problem.
type answerError struct {
	status     int
	retryAfter time.Duration
	err        error
}

func (e *answerError) Error() string { return e.err.Error() }

// do sends a request, and returns its answer if the status is 2xx or one of the also. The
// error of another status is an [*answerError].
func (c Client) do(ctx context.Context, method, path string, values url.Values, header http.Header, body []byte, also ...int) (*http.Response, error) {
	u, err := c.parseURL()
	if err != nil {
		return nil, err
	}
	u = u.JoinPath(path)
	u.RawQuery = values.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if header != nil {
		req.Header = header.Clone()
	}
	if c.Key != "" {
		req.Header.Set("Authorization", "Bearer "+c.Key)
	}
	resp, err := send(req)
	if err != nil {
		return nil, err
	}
	good := resp.StatusCode < http.StatusMultipleChoices
	for _, status := range also {
		good = good || status == resp.StatusCode
	}
	if good {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }() // it is only read
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return nil, &answerError{status: resp.StatusCode, retryAfter: time.Duration(seconds) * time.Second, err: problemOf(resp)}
}

// send sends a request. It fails if nothing of the answer comes for clientIdle.
func send(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(clientIdle, func() { cancel(errIdle) })
	resp, err := http.DefaultClient.Do(req.WithContext(ctx))
	if err != nil {
		timer.Stop()
		err = errors.Join(err, context.Cause(ctx))
		cancel(nil)
		return nil, err
	}
	resp.Body = &idleBody{ReadCloser: resp.Body, timer: timer, ctx: ctx, cancel: cancel}
	return resp, nil
}

// clientIdle is how long the client waits for the next bytes of an answer. It is longer than
// a server may need for the next window of an export.
//
//nolint:gochecknoglobals // tests wait less
var clientIdle = 6 * time.Minute

var errIdle = errors.New("the server does not answer")

// idleBody ends an answer of which nothing comes for clientIdle.
type idleBody struct {
	io.ReadCloser
	timer  *time.Timer
	ctx    context.Context //nolint:containedctx // of the request whose answer it is
	cancel context.CancelCauseFunc
}

func (b *idleBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.timer.Reset(clientIdle)
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(b.ctx), errIdle) {
		err = errIdle
	}
	return n, err
}

func (b *idleBody) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// problemOf is the error that the API answers with.
func problemOf(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, problemBytesMax))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	var p struct{ Code, Detail, Field string }
	if err := json.Unmarshal(body, &p); err != nil || p.Code == "" {
		return fmt.Errorf("%s is no answer of Sluice", resp.Status)
	}
	if p.Field != "" {
		p.Detail = p.Field + " " + p.Detail
	}
	return fmt.Errorf("%s: %s", printable(p.Code), printable(p.Detail))
}

// again waits before the next try of a request that failed for the nth time, from 1. It
// returns an error if there is no next try. Where nothing listens at the address, there is
// one only if there was an answer before.
func again(ctx context.Context, n int, failure error, answered bool) error {
	var answer *answerError
	pause := min(clientPauseFirst<<min(n-1, 10), clientPauseMax)
	pause = pause/2 + rand.N(pause/2+1) //nolint:gosec // no secret
	if errors.As(failure, &answer) {
		switch answer.status {
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		default:
			return failure
		}
		pause = max(pause, min(answer.retryAfter, clientPauseMax))
	}
	if ctx.Err() != nil || n > clientTries || !answered && errors.Is(failure, syscall.ECONNREFUSED) {
		return failure
	}
	select {
	case <-time.After(pause):
		return nil
	case <-ctx.Done():
		return failure
	}
}
