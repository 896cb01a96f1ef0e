package app

import (
	"context"
	"io"
	"net/http"
	"runtime/debug"

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
	server := newMCP(c.Version)
	return server.Run(ctx, in, out, &mcp.API{URL: u, Transport: &keyed{c.Key, http.DefaultTransport}})
}

func newMCP(version string) *mcp.Server {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		version = info.Main.Version
	}
	return mcp.New(mcp.Config{Version: version})
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
