package sluice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	redirectsMax = 3
	// redirectBytesMax is how much of the body of a redirect is read.
	redirectBytesMax = 64 << 10
	retryAfterMax    = time.Minute
	// answerBytesMax is the maximum size of an answer. A page can have 1,000 events
	// of 1 MiB.
	answerBytesMax = 1 << 30
)

// preferWait returns the value of the Prefer header for a wait.
func preferWait(wait time.Duration) string {
	return "wait=" + strconv.Itoa(int(wait/time.Second))
}

var errBadAnswer = errors.New("sluice: the answer is not Sluice's")

// An answer is an HTTP answer of any status, from Sluice or from a proxy.
type answer struct {
	status int
	// content is the body while it is unread, and body what was read of it.
	content    io.ReadCloser
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

// do sends the request, and returns the answer with its body, within the timeout.
func (c *Client) do(req *http.Request, timeout time.Duration) (*answer, error) {
	ctx, cancel := context.WithTimeout(req.Context(), timeout)
	defer cancel()
	got, err := c.exchange(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer func() { _ = got.content.Close() }() // the body was read, so an error does not matter
	if err := got.readBody(); err != nil {
		return nil, err
	}
	return got, nil
}

// readBody reads the body of the answer, which stays open.
func (a *answer) readBody() error {
	var err error
	if a.body, err = io.ReadAll(io.LimitReader(a.content, answerBytesMax)); err != nil {
		return fmt.Errorf("sluice: read the answer: %w", err)
	}
	return nil
}

// exchange sends the request and returns the answer, whose content the caller closes. It
// follows redirects 307 and 308 to the same server.
func (c *Client) exchange(req *http.Request) (*answer, error) {
	req.Header.Set("User-Agent", "sluice-go")
	if c.opts.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.opts.APIKey)
	}
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
		_, _ = io.CopyN(io.Discard, answer.content, redirectBytesMax) // so that the connection can be used again
		_ = answer.content.Close()
		req = req.Clone(req.Context())
		req.URL, req.Host = target, ""
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

func (c *Client) doOnce(req *http.Request) (*answer, error) {
	got, err := c.http.Do(req) //nolint:bodyclose // the caller closes the answer's content
	if err != nil {
		return nil, fmt.Errorf("sluice: %w", err)
	}
	a := &answer{status: got.StatusCode, content: got.Body, retryAfter: parseRetryAfter(got.Header.Get("Retry-After")), date: serverTime(got.Header)}
	a.mediaType, _, _ = mime.ParseMediaType(got.Header.Get("Content-Type"))
	if a.status >= 300 && a.status < 400 {
		a.location = got.Header.Get("Location")
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
