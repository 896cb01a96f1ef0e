package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/sluicehq/sluice/internal/bench/workload"
)

const (
	// span is the time that a load's events are spread over.
	span = 10 * time.Minute
	// sampleDefault is that of LoadConfig.Sample.
	sampleDefault = 300
	// probeInterval is the pause between the probes of freshness.
	probeInterval = 100 * time.Millisecond
	ndjson        = "application/x-ndjson"
)

// LoadConfig is the load of one case.
type LoadConfig struct {
	Encoding workload.Encoding
	// Corpus is a file to use instead of the events that come with Sluice.
	Corpus string
	Seed   uint64
	// Events are created, then Updates and Deletes of random ones made.
	Events, Updates, Deletes int
	// Batch is the number of writes of a request; 1 sends each by a request
	// of its own. Connections is the number of requests under way.
	Batch, Connections int
	// Sample is how many random events are compared in all fields after each
	// phase. Default: 300.
	Sample int
	// Observe measures the system of the load; nil measures nothing of it.
	Observe *System
	// Progress is shown of each phase. Default: none.
	Progress io.Writer
}

// Validate reports every mistake, naming the fields.
func (c LoadConfig) Validate() error {
	var v validation
	v.check(c.Events > 0, "Events", "must be positive")
	v.check(c.Updates >= 0 && c.Updates <= c.Events, "Updates", "must be from 0 to Events")
	v.check(c.Deletes >= 0 && c.Deletes <= c.Events, "Deletes", "must be from 0 to Events")
	v.check(c.Batch > 0, "Batch", "must be positive")
	v.check(c.Connections > 0, "Connections", "must be positive")
	return v.err()
}

// validation collects what is wrong with a configuration.
type validation []error

func (v *validation) check(ok bool, field, must string) {
	if !ok {
		*v = append(*v, fmt.Errorf("%s: %s", field, must))
	}
}

func (v *validation) err() error { return errors.Join(*v...) }

// load is a run of one case.
type load struct {
	cfg    LoadConfig
	to     workload.Target
	plan   *workload.Plan
	verify *workload.Verifier
	state  workload.State

	progress *Progress
}

// Load runs a case: it creates the events, updates and deletes some of them,
// and returns the figures of the phases. The error wraps
// [workload.ErrDifferent] when what is there is not what was sent; no figure
// of such a phase is returned.
func Load(ctx context.Context, to workload.Target, cfg LoadConfig) ([]Phase, error) {
	plan, err := planOf(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	if cfg.Sample == 0 {
		cfg.Sample = sampleDefault
	}
	l := &load{
		cfg: cfg, to: to, progress: NewProgress(cfg.Progress), plan: plan,
		verify: &workload.Verifier{To: to, HTTP: &http.Client{Timeout: time.Minute}},
	}
	if empty, err := l.verify.Empty(ctx, l.plan); err != nil {
		return nil, err
	} else if !empty {
		return nil, fmt.Errorf("there are other events from %s to %s", plan.Start, l.plan.Until())
	}
	updates, deletes := l.plan.Choose(cfg.Updates, 1), l.plan.Choose(cfg.Deletes, 2)
	l.state = workload.State{Updated: make([]bool, cfg.Events), Deleted: make([]bool, cfg.Events)}
	var phases []Phase
	for _, step := range []struct {
		name string
		n    int
		send func(r *workload.Request, from, to int)
		done func()
	}{
		{"create", cfg.Events, l.creates, func() {}},
		{"update", cfg.Updates, func(r *workload.Request, from, to int) { l.updates(r, updates[from:to]) }, func() { mark(l.state.Updated, updates) }},
		{"delete", cfg.Deletes, func(r *workload.Request, from, to int) { l.deletes(r, deletes[from:to]) }, func() { mark(l.state.Deleted, deletes) }},
	} {
		if step.n == 0 {
			continue
		}
		step.done()
		phase, err := l.phase(ctx, step.name, step.n, step.send)
		if err != nil {
			return phases, fmt.Errorf("%s: %w", step.name, err)
		}
		phases = append(phases, *phase)
	}
	return phases, nil
}

// planOf is the plan of a load that begins now.
func planOf(cfg LoadConfig) (*workload.Plan, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	corpus, err := workload.OpenCorpus(cfg.Corpus, cfg.Encoding)
	if err != nil {
		return nil, err
	}
	start := time.Now().Add(-span).Truncate(time.Millisecond)
	return &workload.Plan{
		Corpus: corpus, Encoding: cfg.Encoding, Seed: cfg.Seed, Events: cfg.Events, Start: start, Span: span,
		Run: strconv.FormatInt(start.UnixMilli(), 36),
	}, nil
}

func mark(set []bool, events []int) {
	for _, i := range events {
		set[i] = true
	}
}

// phase sends n writes, waits until they are visible, and verifies.
func (l *load) phase(ctx context.Context, name string, n int, build func(r *workload.Request, from, to int)) (*Phase, error) {
	l.progress.Start(name, n)
	observed := observe(ctx, l.cfg.Observe)
	probing, stop := context.WithCancel(ctx)
	probed := make(chan []time.Duration, 1)
	go func() { probed <- l.probe(probing) }()

	requests := (n + l.cfg.Batch - 1) / l.cfg.Batch
	sent, err := workload.Send(ctx, l.to, l.cfg.Connections, requests, func(r *workload.Request, i int) {
		from, to := i*l.cfg.Batch, min(n, (i+1)*l.cfg.Batch)
		build(r, from, to)
		l.progress.Add(to - from)
	})
	var seen time.Time
	if err == nil {
		seen, err = l.verify.Visible(ctx, l.plan, &l.state, sent.Last)
	}
	stop()
	fresh := <-probed
	if err != nil {
		l.progress.Done("failed")
		return nil, err
	}
	p := &Phase{
		Name: name, Writes: n, Bytes: sent.Bytes,
		AckedSeconds: sent.Acked.Sub(sent.Begun).Seconds(), VisibleSeconds: seen.Sub(sent.Begun).Seconds(),
		AckMillis: quantiles(sent.Latencies), FreshMillis: quantiles(fresh),
	}
	l.progress.Done(fmt.Sprintf("acknowledged %.2f s, visible %.2f s", p.AckedSeconds, p.VisibleSeconds))
	if err := observed.finish(ctx, p); err != nil {
		return nil, err
	}
	events := l.plan.Choose(min(l.cfg.Sample, l.plan.Events), uint64(time.Now().UnixNano()))
	p.Sampled = len(events)
	return p, l.verify.Sample(ctx, l.plan, &l.state, events)
}

func (l *load) creates(r *workload.Request, from, to int) {
	if l.cfg.Batch == 1 {
		*r = workload.Request{Method: http.MethodPost, Path: "/event", ContentType: "application/json", Body: l.plan.AppendCreate(r.Body, from)}
		return
	}
	batch(r, from, to, l.plan.AppendCreate)
}

func (l *load) updates(r *workload.Request, events []int) {
	if l.cfg.Batch == 1 {
		*r = workload.Request{
			Method: http.MethodPut, Path: "/event/" + l.plan.ID(events[0]).String(), ContentType: "application/json",
			Body: l.plan.AppendUpdate(r.Body, events[0]),
		}
		return
	}
	batch(r, 0, len(events), func(b []byte, i int) []byte { return l.plan.AppendUpdateItem(b, events[i]) })
}

func (l *load) deletes(r *workload.Request, events []int) {
	if l.cfg.Batch == 1 {
		*r = workload.Request{Method: http.MethodDelete, Path: "/event/" + l.plan.ID(events[0]).String(), Body: r.Body}
		return
	}
	batch(r, 0, len(events), func(b []byte, i int) []byte { return l.plan.AppendDeleteItem(b, events[i]) })
}

func batch(r *workload.Request, from, to int, item func(b []byte, i int) []byte) {
	r.Method, r.Path, r.ContentType = http.MethodPost, "/events", ndjson
	for i := from; i < to; i++ {
		r.Body = append(item(r.Body, i), '\n')
	}
}

// probe sends single events, whose time is outside of the plan's, and measures
// from each one's acknowledgement until a read shows it. A probe that the end
// of the load cuts off does not count.
func (l *load) probe(ctx context.Context) []time.Duration {
	var times []time.Duration
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return times
		}
		sent, err := workload.Send(ctx, l.to, 1, 1, func(r *workload.Request, _ int) {
			r.Method, r.Path, r.ContentType = http.MethodPost, "/event", "application/json"
			r.Body = fmt.Appendf(r.Body, `{"conversation_id":"probe-%s","event_name":"event_c"}`, l.plan.Run)
		})
		if err != nil {
			continue // the load itself meets the same error, and reports it
		}
		if status, err := l.verify.Get(ctx, "/conversations/probe-"+l.plan.Run+"/events?limit=1&after="+sent.Last[0].String(), new(any)); err == nil && status == http.StatusOK {
			times = append(times, time.Since(sent.Acked))
		}
	}
}

// observation measures a system during a phase.
type observation struct {
	system *System
	meter  *meter
	begun  [2]float64
}

func observe(ctx context.Context, s *System) *observation {
	if s == nil {
		return &observation{}
	}
	o := &observation{system: s, meter: startMeter(append(s.processes(), processID{"load generator", os.Getpid()}))}
	o.begun, _ = o.counters(ctx) // an error comes again at the end
	return o
}

// counters are the parts that inserts created and the merges, since the engine's start.
func (o *observation) counters(ctx context.Context) (n [2]float64, err error) {
	for i, name := range []string{"MergeTreeDataWriterBlocks", "Merge"} {
		if n[i], err = o.system.Number(ctx, "SELECT sum(value) FROM system.events WHERE event = '"+name+"'"); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (o *observation) finish(ctx context.Context, p *Phase) error {
	if o.system == nil {
		return nil
	}
	p.Processes = o.meter.stop()
	n, err := o.counters(ctx)
	p.Parts, p.Merges = n[0]-o.begun[0], n[1]-o.begun[1]
	return err
}
