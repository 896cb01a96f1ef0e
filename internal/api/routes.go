package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/sdk/spec"
)

// route is one operation of the API.
type route struct {
	method, path string
	// scopes are those of which a key needs one; 0 demands no key.
	scopes Scope
	// writes says that a refusal is a refused write.
	writes bool
	handle func(*Server, *exchange) error
}

func (r *route) name() string {
	if r.method == "" {
		return "other"
	}
	return r.method + " " + r.path
}

// table returns every operation of the API.
func table() []route {
	return []route{
		{"POST", "/event", ScopeWrite, true, (*Server).createEvent},
		{"GET", "/event", ScopeRead, false, (*Server).getEvent},
		{"PUT", "/event", ScopeWrite, true, (*Server).updateEvent},
		{"PATCH", "/event", ScopeWrite, true, (*Server).patchEvent},
		{"DELETE", "/event", ScopeWrite, true, (*Server).deleteEvent},
		{"GET", "/event/{id}", ScopeRead, false, (*Server).getEvent},
		{"PUT", "/event/{id}", ScopeWrite, true, (*Server).updateEvent},
		{"PATCH", "/event/{id}", ScopeWrite, true, (*Server).patchEvent},
		{"DELETE", "/event/{id}", ScopeWrite, true, (*Server).deleteEvent},
		{"POST", "/events", ScopeWrite, true, (*Server).writeBatch},
		{"GET", "/events", ScopeRead, false, (*Server).listEvents},
		{"GET", "/conversations", ScopeRead, false, (*Server).listConversations},
		{"GET", "/conversation/events", ScopeRead, false, (*Server).listConversation},
		{"GET", "/conversations/{id}/events", ScopeRead, false, (*Server).listConversation},
		{"GET", "/export", ScopeRead, false, (*Server).exportEvents},
		{"POST", "/search", ScopeRead, false, (*Server).searchEvents},
		{"GET", "/analytics/errors", ScopeRead, false, (*Server).analyseErrors},
		{"GET", "/analytics/latency", ScopeRead, false, (*Server).analyseLatency},
		{"GET", "/analytics/conversations", ScopeRead, false, (*Server).analyseConversations},
		{"GET", "/analytics/timeseries", ScopeRead, false, (*Server).analyseTimeSeries},
		{"GET", "/analytics/insights", ScopeRead, false, (*Server).analyseInsights},
		{"GET", "/analytics/funnel", ScopeRead, false, (*Server).analyseFunnel},
		{"GET", "/analytics/retention", ScopeRead, false, (*Server).analyseRetention},
		{"POST", "/sql", ScopeRead, false, (*Server).runSQL},
		{"POST", pathAgents, ScopeRead, false, (*Server).serveAgent},
		{"GET", "/healthz", 0, false, (*Server).health},
		{"GET", "/readyz", 0, false, (*Server).ready},
		{"GET", "/metrics", ScopeRead | ScopeAdmin, false, (*Server).serveMetrics},
		{"GET", "/openapi.yaml", ScopeRead, false, (*Server).openAPI},
	}
}

// Routes are the patterns of all operations, such as "GET /event/{id}".
func Routes() []string {
	var names []string
	for _, r := range table() {
		names = append(names, r.name())
	}
	return names
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	other := s.metrics.route("other")
	methods := map[string][]string{}
	nothing := &endpoint{s: s, route: &route{handle: (*Server).notFound}, metrics: other}
	handle := func(pattern string, e *endpoint) {
		mux.Handle(pattern, e)
		// An id that is one slash is to ServeMux the end of a path like "/event/",
		// which no wildcard matches.
		if strings.Contains(pattern, "{id}") {
			mux.HandleFunc(strings.Replace(pattern, "{id}", "%2F", 1), func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.EscapedPath(), "/") {
					nothing.ServeHTTP(w, r)
					return
				}
				r.SetPathValue("id", "/")
				e.ServeHTTP(w, r)
			})
		}
	}
	for _, r := range table() {
		handle(r.name(), &endpoint{s: s, route: &r, metrics: s.metrics.route(r.name())})
		methods[r.path] = append(methods[r.path], r.method)
		if r.method == http.MethodGet {
			methods[r.path] = append(methods[r.path], http.MethodHead)
		}
	}
	for path, allowed := range methods {
		slices.Sort(allowed)
		refuse := refuseMethod(strings.Join(allowed, ", "))
		handle(path, &endpoint{s: s, route: &route{handle: refuse}, metrics: other})
	}
	mux.Handle("/", nothing)
	return mux
}

func refuseMethod(allow string) func(*Server, *exchange) error {
	return func(_ *Server, x *exchange) error {
		x.w.Header().Set("Allow", allow)
		return &problem{
			status: http.StatusMethodNotAllowed, code: CodeMethodNotAllowed, detail: "the resource takes " + allow,
		}
	}
}

func (s *Server) notFound(x *exchange) error {
	detail := "there is nothing at this path"
	switch path := x.r.URL.Path; {
	case strings.HasPrefix(path, "/event/"):
		detail += "; an id with a slash goes into /event?id="
	case strings.HasPrefix(path, "/conversations/") && strings.HasSuffix(path, "/events"):
		detail += "; an id with a slash goes into /conversation/events?id="
	}
	return &problem{status: http.StatusNotFound, code: CodeNotFound, detail: detail}
}

func (s *Server) health(x *exchange) error {
	x.out = append(x.out, `{"status":"ok"}`+"\n"...)
	x.reply(http.StatusOK, headerJSON)
	return nil
}

// readiness is what a part of the service, or what it is for, is answered with.
type readiness string

const (
	isOK            readiness = "ok"
	isUnavailable   readiness = "unavailable"
	isStopped       readiness = "stopped"
	isSchemaMissing readiness = "schema_missing"
	isSchemaOld     readiness = "schema_old"
	isVersionOld    readiness = "version_old"
)

// ready asks the log and the database at once. The status is about what the
// parameter "for" names, by default about everything. The answer is open to
// everybody, so that it says which part fails and not why.
func (s *Server) ready(x *exchange) error {
	wanted := x.r.URL.Query().Get("for")
	switch wanted {
	case "", "writes", "reads", "traffic":
	default:
		return event.Errorf(event.CodeInvalidValue, "for", "must be writes, reads or traffic")
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), s.cfg.ReadyTimeout)
	defer cancel()
	logErr := make(chan error, 1)
	go func() { logErr <- s.ports.Log.Ready(ctx) }()
	clickhouse := s.readyPart(ctx, x, "clickhouse", s.ports.Events.Ready(ctx))
	kafka := s.readyPart(ctx, x, "kafka", <-logErr)
	writes, reads := kafka, isOK
	if clickhouse != isOK {
		reads = isUnavailable
	}
	if kafka == isStopped {
		kafka = isOK
	}
	var ok bool
	switch wanted {
	case "writes":
		ok = writes == isOK
	case "reads":
		ok = reads == isOK
	case "traffic":
		// Where Kafka is away from all processes alike, reads are still worth
		// sending here. A process that has stopped for good is not.
		ok = writes == isOK || writes == isUnavailable && reads == isOK
	default:
		ok = writes == isOK && reads == isOK
	}
	status, summary := http.StatusOK, "ready"
	if !ok {
		status, summary = http.StatusServiceUnavailable, "not_ready"
		x.w.Header()["Retry-After"] = s.retryAfter
	}
	for i, member := range [...]struct {
		name  string
		value readiness
	}{
		{"status", readiness(summary)}, {"kafka", kafka}, {"clickhouse", clickhouse}, {"writes", writes}, {"reads", reads},
	} {
		x.out = appendMember(x.out, "{,"[min(i, 1)], member.name)
		x.out = append(append(append(x.out, '"'), member.value...), '"')
	}
	x.out = append(x.out, "}\n"...)
	x.reply(status, headerJSON)
	return nil
}

// readyPart is the answer about a part that was asked whether it is ready.
func (s *Server) readyPart(ctx context.Context, x *exchange, name string, err error) readiness {
	if err == nil {
		return isOK
	}
	x.log().LogAttrs(ctx, slog.LevelWarn, "not ready", slog.String("part", name), slog.Any("error", err))
	switch {
	case errors.Is(err, event.ErrWritesStopped):
		return isStopped
	case errors.Is(err, event.ErrSchemaMissing):
		return isSchemaMissing
	case errors.Is(err, event.ErrSchemaOld):
		return isSchemaOld
	case errors.Is(err, event.ErrDatabaseOld):
		return isVersionOld
	}
	return isUnavailable
}

func (s *Server) serveMetrics(x *exchange) error {
	x.status = http.StatusOK
	s.scrape.ServeHTTP(x.w, x.r)
	return nil
}

func (s *Server) openAPI(x *exchange) error {
	x.head(http.StatusOK, []string{"application/yaml"})
	x.w.Header()["Content-Length"] = []string{strconv.Itoa(len(spec.OpenAPI()))}
	_, _ = io.WriteString(x.w, spec.OpenAPI()) // not copied for each reader; one that has gone is nobody to tell
	return nil
}
