package app

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/mcp"
)

// MCPClient serves a client of the Model Context Protocol with the API of a running Sluice.
type MCPClient struct {
	// Client reaches the API. Its key, if the API asks for one, needs the scope read.
	Client
	// Version is that of Sluice. Empty: that of the build.
	Version string
}

// Run serves the client until in ends, which is no error, or ctx does.
func (c MCPClient) Run(ctx context.Context, in io.ReadCloser, out io.WriteCloser) error {
	u, err := c.parseURL()
	if err != nil {
		return err
	}
	server := newMCP(c.Version, agentTimeMax)
	return server.Run(ctx, in, out, &mcp.API{URL: u, Transport: &keyed{c.Key, http.DefaultTransport}})
}

// agentTimeMax bounds a tool call to an API elsewhere, which has a lower bound of its own for
// each question.
const agentTimeMax = 10 * time.Minute

// agentTime is how long a tool call to this API may take: as long as a question, and half as
// long again, because some tools ask more than one.
func agentTime(cfg *api.Config) time.Duration {
	question := cmp.Or(cfg.AnalyticsWait, api.DefaultAnalyticsWait) + cmp.Or(cfg.AnswerWait, api.DefaultAnswerWait) + cmp.Or(cfg.QueryTimeout, api.DefaultQueryTimeout)
	return question + question/2
}

func newMCP(version string, callTimeout time.Duration) *mcp.Server {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		version = info.Main.Version
	}
	return mcp.New(mcp.Config{Version: version, CallTimeout: callTimeout})
}

// keyed sends requests with an API key.
type keyed struct {
	key  string
	next http.RoundTripper
}

func (k *keyed) RoundTrip(r *http.Request) (*http.Response, error) {
	if k.key != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+k.key)
	}
	return k.next.RoundTrip(r)
}
