package app

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluicehq/sluice/internal/api"
)

const (
	metricsTimeout = 30 * time.Second
	profileTimeout = 2 * time.Minute
)

// startMetrics serves the metrics of a process that has no API.
func (p *process) startMetrics(ctx context.Context, addr string) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	at, err := p.startHTTP(ctx, "metrics", addr, mux, metricsTimeout)
	if err != nil {
		return err
	}
	p.log.Info("listening for metrics", "addr", at.String())
	return nil
}

// startProfiles serves Go's profiles. They tell everything about the process, so
// only this machine may ask for them, and no page that a browser on it has open.
func (p *process) startProfiles(ctx context.Context, addr string) (net.Addr, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("%q is not a loopback address", host)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	at, err := p.startHTTP(ctx, "profiles", addr, localOnly(mux), profileTimeout)
	if err == nil {
		p.log.Info("listening for profiles", "addr", at.String())
	}
	return at, err
}

// localOnly refuses what a page in a browser on this machine can ask for under
// a name of its own that it has rebound to a loopback address.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !api.IsLocal(r) {
			http.Error(w, "only localhost, 127.0.0.1 and [::1] are answered", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// startHTTP serves what is for operators.
func (p *process) startHTTP(ctx context.Context, name, addr string, handler http.Handler, timeout time.Duration) (net.Addr, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	server := &http.Server{
		Handler: handler, ReadTimeout: 10 * time.Second, WriteTimeout: timeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	p.start(ctx, name, func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- server.Serve(listener) }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
			return closing(ctx, server.Shutdown)
		}
	})
	return listener.Addr(), nil
}
