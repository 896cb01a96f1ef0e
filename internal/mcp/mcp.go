// Package mcp serves the Model Context Protocol, by which agents use tools: search,
// get_conversation, get_event, insights, sql and schema. A call of a tool becomes requests
// to the HTTP API of a Sluice, through an [http.RoundTripper]. So keys, limits and errors are
// those of the API, and the package has nothing of its own that a caller could get around.
//
// An answer is cut to the size that its caller asks for, and says what was cut and how to go
// on. Whatever is read from Sluice is a value in JSON whose first member says that it is
// data: what somebody has written into an event is never mixed with words of the server.
package mcp

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// Defaults of [Config].
const (
	DefaultCallsMax    = 16
	DefaultCallWait    = 10 * time.Second
	DefaultCallTimeout = 90 * time.Second
)

const (
	// MessageBytesMax bounds a message of a client.
	MessageBytesMax = 128 << 10
	// CallBytes is the most memory that a message takes while it is answered: the message
	// and the answer, each in several forms.
	CallBytes = 1 << 20
)

// Config says how a [Server] introduces itself, and bounds it. The zero value of a field
// stands for its default.
type Config struct {
	// Version is that of Sluice.
	Version string
	// CallsMax is how many tool calls work at once. Others wait for CallWait. Default:
	// [DefaultCallsMax].
	CallsMax int
	// CallWait is how long a tool call waits for others. Default: [DefaultCallWait].
	CallWait time.Duration
	// CallTimeout bounds one tool call, after it has waited. Default:
	// [DefaultCallTimeout].
	CallTimeout time.Duration
}

// Server answers clients of the protocol. It keeps nothing of them between two calls. Its
// methods may be called concurrently.
type Server struct {
	server  *sdk.Server
	handler http.Handler
	// calls has an element for each tool call that works.
	calls         chan struct{}
	wait, timeout time.Duration
}

// New returns a server.
func New(cfg Config) *Server {
	s := &Server{
		server: sdk.NewServer(
			&sdk.Implementation{Name: "sluice", Title: "Sluice", Version: cmp.Or(cfg.Version, "devel")},
			&sdk.ServerOptions{
				Instructions: instructions,
				// The list of tools never changes, and there is nothing to subscribe to.
				Capabilities: &sdk.ServerCapabilities{Tools: &sdk.ToolCapabilities{}},
			}),
		calls:   make(chan struct{}, cmp.Or(cfg.CallsMax, DefaultCallsMax)),
		wait:    cmp.Or(cfg.CallWait, DefaultCallWait),
		timeout: cmp.Or(cfg.CallTimeout, DefaultCallTimeout),
	}
	for _, t := range tools() {
		s.server.AddTool(&t.Tool, s.call(t.run))
	}
	s.handler = sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s.server }, &sdk.StreamableHTTPOptions{
		Stateless: true, JSONResponse: true, MaxRequestBodyBytes: MessageBytesMax,
		// The API has checked the request, and knows which hosts and pages may ask.
		DisableLocalhostProtection: true,
	})
	return s
}

// carrier is the key of what a context carries for the tools.
type carrier struct{}

// carried is how the calls of a client reach the API, and the context of its request, which
// ends when the client goes. The SDK hides that end from the tools.
type carried struct {
	api     *API
	request context.Context //nolint:containedctx // see above
}

// Run serves one client over in and out until in ends, which is no error, or ctx does. What
// was asked before the end of in is answered.
func (s *Server) Run(ctx context.Context, in io.ReadCloser, out io.WriteCloser, api *API) error {
	run := context.WithValue(ctx, carrier{}, carried{api, ctx})
	err := s.server.Run(run, &drained{&sdk.IOTransport{Reader: in, Writer: out, MaxLineLength: MessageBytesMax}, s.wait + s.timeout})
	if err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
		return fmt.Errorf("serve a client of MCP: %w", err)
	}
	return nil
}

// ServeAgent answers a message that a client has posted. The calls that it makes of the API
// go through api.
func (s *Server) ServeAgent(w http.ResponseWriter, r *http.Request, api http.RoundTripper) {
	body := bufio.NewReader(r.Body)
	if isBatch(body) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, batchRefused) // a client that has gone is nobody to tell
		return
	}
	ctx := context.WithValue(r.Context(), carrier{}, carried{&API{URL: &url.URL{Scheme: "http", Host: "sluice"}, Transport: api}, r.Context()})
	r = r.WithContext(ctx)
	r.Body = io.NopCloser(body)
	s.handler.ServeHTTP(w, r)
}

// batchRefused is the answer to a batch. The protocol has none since 2025-06-18. One of
// many calls would have to be answered in one piece.
const batchRefused = `{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"a request must be one message: batches are not taken"}}` + "\n"

// isBatch reports whether the body is a list.
func isBatch(body *bufio.Reader) bool {
	for {
		c, err := body.ReadByte()
		if err != nil {
			return false
		}
		if !isSpace(rune(c)) {
			_ = body.UnreadByte() // it was just read
			return c == '['
		}
	}
}

// errPanic is what a panic of a tool is answered with.
var errPanic = &callError{code: "internal", detail: "the server failed"}

// call is the handler of a tool. An error of run is one that the model is told.
func (s *Server) call(run runTool) sdk.ToolHandler {
	return func(ctx context.Context, r *sdk.CallToolRequest) (result *sdk.CallToolResult, err error) {
		// A panic would end the process, because the SDK calls this in a goroutine of its own.
		defer func() {
			if v := recover(); v != nil {
				result, err = failed(errPanic), nil
			}
		}()
		with, ok := ctx.Value(carrier{}).(carried)
		if !ok {
			panic("BUG: a tool call without a way to the API")
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(with.request, cancel)() //nolint:contextcheck // the end of the request is all that is wanted of it
		wait := time.NewTimer(s.wait)
		defer wait.Stop()
		busy := &callError{code: codeUnavailable, detail: "as many calls are being answered as may be; ask again later"}
		select {
		case s.calls <- struct{}{}:
			defer func() { <-s.calls }()
		case <-wait.C:
			return failed(busy), nil
		case <-ctx.Done(): // there is nobody to answer
			return failed(busy), nil
		}
		ctx, cancel = context.WithTimeout(ctx, s.timeout)
		defer cancel()
		out, err := run(ctx, with.api, r.Params.Arguments)
		if err != nil {
			return failed(err), nil
		}
		return answered(out), nil
	}
}
