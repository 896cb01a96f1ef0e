package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// AgentCallsMax is how many messages of agents a [Server] answers at once. Others wait
	// for Config.AnswerWait.
	AgentCallsMax = 4
	// agentMessageBytesMax bounds a message of an agent.
	agentMessageBytesMax = 128 << 10
	// agentAnswerBytesMax bounds the answer.
	agentAnswerBytesMax = 1 << 20
	pathAgents          = "/mcp"
)

// Agents answers messages of agents, which it does with calls of the API.
type Agents interface {
	// ServeAgent answers a message that a client of the Model Context Protocol has posted.
	// Its calls of the API go through api, and it closes the bodies of all answers before it
	// returns.
	ServeAgent(w http.ResponseWriter, r *http.Request, api http.RoundTripper)
}

// serveAgent serves POST /mcp. What the agent asks for becomes requests to this server's own
// handler, with the key of the agent: they are authorized, admitted, bounded, counted and
// answered like all others. So this call needs, beside the key, a bound of the messages that
// are answered at once, each of which takes a fixed memory outside of the budget. If
// that memory were in the budget, the messages could hold what their own requests wait for.
func (s *Server) serveAgent(x *exchange) error {
	if err := s.checkPage(x.r); err != nil {
		return err
	}
	if s.ports.Agents == nil {
		return s.notFound(x)
	}
	message, err := s.agentMessage(x)
	if err != nil {
		return err
	}
	timer := time.NewTimer(s.cfg.AnswerWait)
	defer timer.Stop()
	busy := tooManyQueries("as many messages of agents are being answered as may be; ask again later")
	select {
	case s.agentCalls <- struct{}{}:
		defer func() { <-s.agentCalls }()
	case <-timer.C:
		return busy
	case <-x.r.Context().Done(): // there is nobody to answer
		return busy
	}
	r := x.r.WithContext(x.r.Context())
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(message)), int64(len(message))
	answer := &agentAnswer{header: make(http.Header)}
	inner := s.newInner(x)
	s.ports.Agents.ServeAgent(answer, r, inner)
	inner.wait()
	// To wait for a place and for the API may have taken more than Config.WriteTimeout.
	_ = x.control().SetWriteDeadline(time.Now().Add(s.cfg.AnswerStallTimeout)) // servers without deadlines are those of tests
	if answer.status == 0 && x.r.Context().Err() == nil {
		return badRequest("the message has no answer: it is not one of the Model Context Protocol")
	}
	if err := answer.problem(); err != nil {
		return err
	}
	return x.sendAgent(answer)
}

// agentMessage reads the message.
func (s *Server) agentMessage(x *exchange) ([]byte, error) {
	values := x.r.Header.Values("Content-Type")
	if len(values) == 1 {
		if mediaType, _, err := mime.ParseMediaType(values[0]); err != nil || mediaType != typeJSON {
			values = nil
		}
	}
	if len(values) != 1 {
		return nil, &problem{
			status: http.StatusUnsupportedMediaType, code: CodeUnsupportedMediaType, detail: "Content-Type must be application/json",
		}
	}
	if values := x.r.Header.Values("Content-Encoding"); len(values) > 0 && values[0] != "identity" {
		return nil, &problem{
			status: http.StatusUnsupportedMediaType, code: CodeUnsupportedEncoding, detail: "a message of an agent cannot be compressed",
		}
	}
	if x.r.ContentLength > agentMessageBytesMax {
		return nil, tooLarge(agentMessageBytesMax)
	}
	var err error
	if x.body, err = s.bodies.Read(requestBody{x}, x.r.ContentLength, agentMessageBytesMax); err != nil {
		return nil, bodyProblem(err, agentMessageBytesMax)
	}
	message := bytes.Clone(x.body.Bytes())
	x.releaseBody()
	if !utf8.Valid(message) { // the protocol's handler takes it, and may have no answer then
		return nil, event.Errorf(event.CodeInvalidJSON, "", "the body is not UTF-8")
	}
	return message, nil
}

// checkPage refuses requests of a page that may not use the API, as the Model Context Protocol
// demands. A page of this server's own origin is one that came from it, if the host is this
// machine or if there are keys. Otherwise the page may have rebound its own name to this address.
func (s *Server) checkPage(r *http.Request) error {
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return nil // not from a page
	}
	if len(origins) == 1 {
		origin := origins[0]
		if slices.Contains(s.cfg.CORSOrigins, AnyOrigin) || slices.Contains(s.cfg.CORSOrigins, origin) {
			return nil
		}
		u, err := url.Parse(origin)
		if err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) && (s.cfg.Keys != nil || IsLocal(r)) {
			return nil
		}
	}
	return &problem{
		status: http.StatusForbidden, code: CodeForbidden, detail: "pages of this origin may not use the API: --cors-origins does not name it",
	}
}

// agentAnswer keeps the answer to an agent, which is made in one piece.
type agentAnswer struct {
	header http.Header
	status int
	body   []byte
	full   bool
}

func (a *agentAnswer) Header() http.Header { return a.header }

func (a *agentAnswer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *agentAnswer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if len(a.body)+len(p) > agentAnswerBytesMax {
		a.full = true
		return 0, errAgentAnswer
	}
	a.body = append(a.body, p...)
	return len(p), nil
}

var errAgentAnswer = errors.New("the answer to an agent is longer than it may be")

// problem is the problem that the answer tells, if it is none of the protocol's own messages.
func (a *agentAnswer) problem() error {
	switch {
	case a.full:
		return &problem{status: http.StatusInternalServerError, code: CodeInternal, detail: "the server failed; its log says more", cause: errAgentAnswer}
	case a.status == 0: // the agent has gone
		return tooManyQueries("the caller has gone")
	case a.status < http.StatusBadRequest || strings.HasPrefix(a.header.Get("Content-Type"), typeJSON):
		return nil
	}
	code := CodeInvalidRequest
	switch a.status {
	case http.StatusUnsupportedMediaType:
		code = CodeUnsupportedMediaType
	case http.StatusInternalServerError:
		code = CodeInternal
	}
	return &problem{status: a.status, code: code, detail: strings.TrimSpace(string(a.body))}
}

// sendAgent sends the answer to an agent.
func (x *exchange) sendAgent(a *agentAnswer) error {
	if len(a.body) == 0 {
		x.status = a.status
		x.w.Header()["Cache-Control"] = headerNoStore
		x.w.WriteHeader(a.status)
		return nil
	}
	x.contentType = a.header["Content-Type"]
	if a.status != http.StatusOK {
		x.out = append(x.out, a.body...)
		x.reply(a.status, x.contentType)
		return nil
	}
	// By the piece, because that bounds how slowly an answer may be read.
	for piece := range slices.Chunk(a.body, sendBytes) {
		x.out = append(x.out, piece...)
		if err := x.full(); err != nil {
			return err
		}
	}
	return x.end()
}

// inner carries requests to the server's own handler, in the name of the caller of another
// request.
type inner struct {
	handler http.Handler
	log     *slog.Logger
	header  http.Header
	host    string
	remote  string
	running sync.WaitGroup
}

func (s *Server) newInner(x *exchange) *inner {
	header := make(http.Header)
	for _, name := range []string{headerBearer, headerPlain} {
		if values := x.r.Header.Values(name); values != nil {
			header[http.CanonicalHeaderKey(name)] = values
		}
	}
	header[headerRequestID] = x.w.Header()[headerRequestID]
	return &inner{handler: s.handler, log: x.log(), header: header, host: x.r.Host, remote: x.r.RemoteAddr}
}

// wait waits for the requests that are still being answered. Their answers are closed, so
// they end soon.
func (i *inner) wait() { i.running.Wait() }

// RoundTrip sends a request to the handler. The answer arrives by the piece, as over a
// connection: the handler waits until a piece is read, and is told when the answer is closed.
func (i *inner) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path == pathAgents {
		return nil, errors.New("an agent's call of the API cannot be another one")
	}
	ctx, cancel := context.WithCancel(r.Context())
	in := r.WithContext(ctx)
	in.Header = i.header.Clone()
	for name, values := range r.Header {
		in.Header[name] = values
	}
	in.Host, in.RemoteAddr, in.RequestURI = i.host, i.remote, r.URL.RequestURI()
	in.URL = &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/1.1", 1, 1
	if in.Body == nil {
		in.Body = http.NoBody
	}
	read, write := io.Pipe()
	answer := &innerAnswer{header: make(http.Header), pipe: write, begun: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = read.CloseWithError(context.Cause(ctx)) }) // it always succeeds
	i.running.Go(func() {
		defer stop()
		answer.serve(i, in)
	})
	select {
	case <-answer.begun:
		return &http.Response{
			Status: http.StatusText(answer.status), StatusCode: answer.status, Proto: in.Proto, ProtoMajor: 1, ProtoMinor: 1,
			Header: answer.sent, Body: &innerBody{read, cancel}, ContentLength: -1, Request: r,
		}, nil
	case <-ctx.Done():
		cancel()
		return nil, r.Context().Err()
	}
}

// innerBody is the body of an inner answer. Closing it ends the request.
type innerBody struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (b *innerBody) Close() error {
	defer b.cancel()
	return b.PipeReader.Close()
}

// innerAnswer is what the handler writes an inner answer to.
type innerAnswer struct {
	header http.Header
	pipe   *io.PipeWriter
	status int
	// sent are the headers at the time of WriteHeader, when begun is closed.
	sent  http.Header
	begun chan struct{}
}

func (a *innerAnswer) Header() http.Header { return a.header }

func (a *innerAnswer) WriteHeader(status int) {
	if a.status == 0 {
		a.status, a.sent = status, a.header.Clone()
		close(a.begun)
	}
}

func (a *innerAnswer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.pipe.Write(p)
}

// serve runs the handler. An answer that the handler breaks off ends with an error.
func (a *innerAnswer) serve(i *inner, r *http.Request) {
	ctx := r.Context()
	defer func() {
		v := recover()
		if v == nil {
			a.WriteHeader(http.StatusOK)
			_ = a.pipe.Close() // it always succeeds
			return
		}
		if v != http.ErrAbortHandler { //nolint:errorlint // compared as net/http does
			i.log.LogAttrs(ctx, slog.LevelError, "handler panicked", slog.String("path", r.URL.Path))
		}
		_ = a.pipe.CloseWithError(io.ErrUnexpectedEOF) // it always succeeds
		a.WriteHeader(http.StatusInternalServerError)
	}()
	i.handler.ServeHTTP(a, r)
}
