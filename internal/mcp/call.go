package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

const (
	// problemBytesMax is how much is read of an answer that is an error, and
	// detailCharsMax how much of its message is shown.
	problemBytesMax = 64 << 10
	detailCharsMax  = 2000
)

// callError is an error that a tool answers with.
type callError struct {
	code, field, detail string
	// retryAfter is the seconds after which the call may be tried again, empty where
	// there are none.
	retryAfter string
}

func (e *callError) Error() string {
	text := e.code + ": "
	if e.field != "" {
		text += e.field + ": "
	}
	text += e.detail
	if e.retryAfter != "" {
		text += "; try again in " + e.retryAfter + " s"
	}
	return text
}

// Codes of the errors that the tools find themselves. The API has the first two as well, for other fields.
const (
	codeInvalidValue = "invalid_value"
	codeUnknownField = "unknown_field"
	codeUnavailable  = "unavailable"
	codeTimeout      = "query_timeout"
)

func invalid(field, format string, args ...any) error {
	return &callError{code: codeInvalidValue, field: field, detail: fmt.Sprintf(format, args...)}
}

// API is how the tools reach the API of a Sluice.
type API struct {
	// URL is that of the API.
	URL *url.URL
	// Transport carries the requests, and says whose they are.
	Transport http.RoundTripper
}

// request is a call of the API.
type request struct {
	method, path string
	query        url.Values
	contentType  string
	body         []byte
}

func get(path string, query url.Values) request {
	return request{method: http.MethodGet, path: path, query: query}
}

// read sends a request and gives its answer to read. If the API answers with an error, that
// is a [*callError].
func (a *API) read(ctx context.Context, r request, read func(s *scanner) error) error {
	u := a.URL.JoinPath(r.path)
	u.RawQuery = r.query.Encode()
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), bytes.NewReader(r.body))
	if err != nil {
		return err
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	client := http.Client{Transport: a.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return callFailed(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }() // it is only read
	if resp.StatusCode != http.StatusOK {
		return callFailed(ctx, problemOf(resp))
	}
	if err := read(newScanner(resp.Body)); err != nil && !errors.Is(err, errEnough) {
		return callFailed(ctx, err)
	}
	return nil
}

// errEnough ends the reading of an answer of which enough was read.
var errEnough = errors.New("enough was read")

// problemOf reads the error that the API answers with.
func problemOf(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, problemBytesMax))
	if err != nil {
		return broken(err)
	}
	var p struct{ Code, Field, Detail string }
	if err := json.Unmarshal(text, &p); err != nil || p.Code == "" {
		return &callError{code: codeUnavailable, detail: fmt.Sprintf("%d %s is no answer of Sluice", resp.StatusCode, http.StatusText(resp.StatusCode))}
	}
	return &callError{code: seen(p.Code), field: seen(p.Field), detail: seen(p.Detail), retryAfter: seen(resp.Header.Get("Retry-After"))}
}

// callFailed makes an error of the tool of one of the call.
func callFailed(ctx context.Context, err error) error {
	var known *callError
	if errors.As(err, &known) {
		return err
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &callError{code: codeTimeout, detail: "the call took longer than it may; narrow its time or filters"}
	}
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err // without the URL
	}
	return &callError{code: codeUnavailable, detail: "Sluice does not answer: " + seen(err.Error())}
}

// seen is the beginning of a text, without characters that are not seen.
func seen(text string) string {
	v, w := value{isText: true}, window{most: detailCharsMax}
	for _, r := range text {
		if isSeen(r) || isSpace(r) {
			v.add(r, &w)
		} else {
			v.add('\uFFFD', &w)
		}
	}
	return strings.TrimSpace(plain(v.body))
}
