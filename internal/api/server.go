// Package api turns HTTP requests into writes and queries, and their outcomes
// into answers: the contract of sdk/spec/openapi.yaml. It demands API keys
// where they are configured, and bounds all that a client can make it hold.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// Log takes writes.
type Log interface {
	// Produce appends the writes in order and returns one answer for each,
	// within a bounded time. It keeps nothing of the writes after it returned.
	Produce(ctx context.Context, writes []event.Write) []event.Ack
	// Ready reports why the log cannot take writes.
	Ready(ctx context.Context) error
}

// Applied knows which writes readers can see.
type Applied interface {
	// Wait returns when all writes are applied or refused. The error is ctx's when
	// the time runs out, or an [*event.Error] for a receipt that cannot be.
	Wait(ctx context.Context, receipts []event.Receipt) error
	// Mark is taken before writes are made whose Outcomes are asked for.
	Mark() int64
	// Outcomes is Wait, and element i of refused is why the write of receipt i was
	// refused, or nil. Where known is false, nil does not say that it was not.
	Outcomes(ctx context.Context, mark int64, receipts []event.Receipt) (refused []*event.Error, known bool, err error)
}

// Histories knows what the database has of events, deleted ones too.
type Histories interface {
	// Histories has an entry for each of the events of which something is left.
	Histories(ctx context.Context, refs []event.Ref) (map[event.Ref]event.History, error)
}

// Events reads events.
type Events interface {
	// Event returns the event, or nil where there is none. One that takes more
	// than bytesMax bytes of memory is a [*event.LargeError].
	Event(ctx context.Context, ref event.Ref, bytesMax int) (*event.Event, error)
	// List returns a page of events. A page ends early at q.BytesMax; a first
	// event that takes more is a [*event.LargeError].
	List(ctx context.Context, q query.List) (query.Page, error)
	// Ready reports why the database cannot be read.
	Ready(ctx context.Context) error
}

// Analytics answers the questions about many events.
type Analytics interface {
	Errors(ctx context.Context, f query.Filter) (query.ErrorCount, error)
	Latency(ctx context.Context, q query.Latency) ([]query.LatencyRow, error)
	Conversations(ctx context.Context, q query.Conversations) ([]query.ConversationRow, error)
	ConversationList(ctx context.Context, q query.ConversationList) ([]query.ConversationSummary, error)
	TimeSeries(ctx context.Context, q query.TimeSeries) ([]query.TimeSeriesRow, error)
	Insights(ctx context.Context, q query.Insights) ([]query.InsightsRow, error)
	Funnel(ctx context.Context, q query.Funnel) ([]query.FunnelRow, error)
	Retention(ctx context.Context, q query.Retention) ([]query.RetentionRow, error)
}

// Search finds events by what is in them.
type Search interface {
	// SearchText returns the newest events with a text; see [query.TextSearch]. A first
	// hit that takes more than q.BytesMax is a [*event.LargeError].
	SearchText(ctx context.Context, q query.TextSearch) (query.Hits, error)
	// SearchSimilar returns the events nearest to a vector, with the same error.
	SearchSimilar(ctx context.Context, q query.SimilarSearch) (query.Hits, error)
}

// Ports are what the server works with. All but SQL and Agents are required, and must be safe for
// concurrent use.
type Ports struct {
	Log       Log
	Applied   Applied
	Histories Histories
	Events    Events
	Analytics Analytics
	Search    Search
	Exports   Exports
	// SQL runs queries of callers. nil: POST /sql is answered that it is not set up.
	SQL SQL
	// Agents answers messages of agents. nil: there is no POST /mcp.
	Agents Agents
	// Metrics is what /metrics serves.
	Metrics prometheus.Gatherer
}

// scrapesMax is how many readers of /metrics are served at once; others get 503.
const scrapesMax = 8

// Server is the HTTP API. Its methods may be called concurrently.
type Server struct {
	cfg         Config
	log         *slog.Logger
	ports       Ports
	parser      body.Parser
	clock       event.Clock // of the times at which writes are received
	metrics     *metrics
	budget      *body.Budget
	bodies      *body.Reader
	exchanges   sync.Pool
	batches     sync.Pool
	crossOrigin *http.CrossOriginProtection
	scrape      http.Handler
	handler     http.Handler
	// retryAfter and retryQuestion are the Retry-After of 503 and of 429.
	retryAfter, retryQuestion []string
	// analytics admits questions about many events.
	analytics *admission
	// local says that the server trusts everybody on this machine.
	local bool
	debug bool
	// inflateSingle and inflateBatch inflate the bodies of single writes and of
	// batches.
	inflateSingle, inflateBatch body.Inflaters
	// pageReads has an element for each part of a page that is being read.
	pageReads chan struct{}
	// sqlAnswers has an element for each query in SQL that waits, runs or is being sent.
	sqlAnswers chan struct{}
	// exports has an element for each export that is being sent.
	exports chan struct{}
	// parquetExport has an element while one of them is Parquet, which takes more memory.
	parquetExport chan struct{}
	// agentCalls has an element for each message of an agent that is being answered.
	agentCalls chan struct{}
	// draining is closed when a stop begins.
	draining chan struct{}

	mu       sync.Mutex
	listener net.Listener
}

// New returns a server that does not listen yet. The error names every field
// of the configuration that is wrong, or a metric that is registered already.
func New(cfg Config, ports Ports, log *slog.Logger, reg prometheus.Registerer) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure the API: %w", err)
	}
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg, log: log, ports: ports,
		parser:      body.Parser{Rules: &event.Rules{EventNames: cfg.EventNames, EventNamesMax: cfg.EventNamesMax}},
		crossOrigin: http.NewCrossOriginProtection(),
		retryAfter:  seconds(cfg.RetryAfter),
		// By then everybody who waits now has been admitted or turned away.
		retryQuestion: seconds(cfg.AnalyticsWait),
		analytics:     newAdmission(&cfg),
		debug:         log.Enabled(context.Background(), slog.LevelDebug),
		draining:      make(chan struct{}),
	}
	host, _, _ := net.SplitHostPort(cfg.Addr) // checked by Validate
	s.local = cfg.Keys == nil && isLoopbackHost(host)
	s.budget = body.NewBudget(cfg.InFlightBytesMax, cfg.AnswerBytesMax)
	s.bodies = body.NewReader(&s.budget[body.ForBodies], cfg.InflateTimeout)
	s.pageReads = make(chan struct{}, cfg.PageReadsMax)
	s.sqlAnswers = make(chan struct{}, cfg.SQLAnswersMax)
	s.exports, s.parquetExport = make(chan struct{}, query.ExportsMax), make(chan struct{}, 1)
	s.agentCalls = make(chan struct{}, AgentCallsMax)
	s.inflateSingle, s.inflateBatch = body.NewInflaters(inflatersSingle), body.NewInflaters(inflatersBatch)
	s.exchanges.New = func() any { return new(exchange) }
	s.batches.New = func() any { return new(batch) }
	var err error
	if s.metrics, err = newMetrics(reg, s.budget, s.analytics); err != nil {
		return nil, fmt.Errorf("register the API's metrics: %w", err)
	}
	s.scrape = promhttp.HandlerFor(ports.Metrics, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError),
		// Each holds all metrics until its reader has taken them.
		MaxRequestsInFlight: scrapesMax,
	})
	for _, origin := range cfg.CORSOrigins {
		if origin == AnyOrigin {
			continue // which has keys, and so no need of crossOrigin
		}
		if err := s.crossOrigin.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("configure the API: CORSOrigins: %w", err)
		}
	}
	s.handler = withRequestID(s.cors(s.routes()))
	return s, nil
}

// seconds is the value of Retry-After.
func seconds(d time.Duration) []string {
	return []string{strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))}
}

// Handler serves the API without a listener of its own, for tests and for
// programs that bring their own server.
func (s *Server) Handler() http.Handler { return s.handler }

// Listen takes the address, so that [Server.Addr] is known before
// [Server.Run], which otherwise does it. Run closes the listener.
func (s *Server) Listen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		return nil
	}
	ln, err := (&net.ListenConfig{Control: limitUnsent}).Listen(ctx, "tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.cfg.Addr, err)
	}
	// A hosts file can point localhost anywhere; what counts is what it became.
	if err := CheckBind(ln.Addr().String(), s.cfg.Keys != nil, s.cfg.Insecure); err != nil {
		return errors.Join(err, ln.Close())
	}
	s.listener = netutil.LimitListener(ln, s.cfg.ConnectionsMax)
	return nil
}

// Addr is the address that the server listens on, nil before [Server.Listen].
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// Run serves until ctx ends, then finishes the requests under way within
// Config.ShutdownTimeout and returns nil. It can be called once. The error says
// why the server could not listen or had to cut requests off.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(ctx); err != nil {
		return err
	}
	// Requests outlive ctx, so that a stop does not break off writes.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	server := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		ReadTimeout:       s.cfg.ReadTimeout,
		WriteTimeout:      s.cfg.WriteTimeout,
		IdleTimeout:       s.cfg.IdleTimeout,
		MaxHeaderBytes:    s.cfg.HeaderBytesMax,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(s.listener) }()
	s.log.LogAttrs(ctx, slog.LevelInfo, "API listens", slog.String("addr", s.Addr().String()))
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	close(s.draining)
	grace, stop := context.WithTimeout(base, s.cfg.ShutdownTimeout)
	defer stop()
	err := server.Shutdown(grace)
	if err != nil {
		err = fmt.Errorf("finish the HTTP requests under way: %w", errors.Join(err, server.Close()))
	}
	if closed := <-served; !errors.Is(closed, http.ErrServerClosed) {
		err = errors.Join(err, closed)
	}
	return err
}

// waitContext returns a context that ends after d, with the request, or when
// the server stops, whichever is first.
func (s *Server) waitContext(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, d)
	go func() {
		select {
		case <-s.draining:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
