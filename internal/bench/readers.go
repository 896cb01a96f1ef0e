package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"github.com/sluicehq/sluice/internal/bench/workload"
)

const (
	// manyReaders is how many read at once, where it is not one.
	manyReaders = 64
	// calmPause is what a reader waits between reads, where it is measured how
	// long reads take and not how many there can be.
	calmPause = 20 * time.Millisecond
	// dearQuestion takes all conversations, and has three quantiles computed of each.
	dearQuestion = "/analytics/latency?limit=10000&q=0.5&q=0.9&q=0.99"
	// readPlaces is how many events and conversations the readers read.
	readPlaces = 1000
)

// ReadersConfig says what [Readers] measures.
type ReadersConfig struct {
	System SystemConfig
	// Events are created first.
	Events int
	// Step is how long each step lasts.
	Step time.Duration
	// Askers is how many ask the dearest question at a time, each again and again.
	Askers int
	Seed   uint64
	// Progress is shown of the creates, and each step when it has ended.
	Progress io.Writer
}

// Validate reports every mistake, naming the fields.
func (c ReadersConfig) Validate() error {
	var v validation
	v.check(c.Events >= readPlaces, "Events", fmt.Sprintf("must be at least %d", readPlaces))
	v.check(c.Step > 0, "Step", "must be positive")
	v.check(c.Askers > 0, "Askers", "must be positive")
	return v.err()
}

// ReadersReport is what [Readers] measured.
type ReadersReport struct {
	Machine Machine       `json:"machine"`
	Events  int           `json:"events"`
	Steps   []ReadersStep `json:"steps"`
}

// ReadersStep is what readers met for a while.
type ReadersStep struct {
	Name string `json:"name"`
	// Readers read as fast as they can, but for one that pauses in the steps where
	// there is something else.
	Readers   int       `json:"readers"`
	PerSecond float64   `json:"reads_per_second"`
	Millis    Quantiles `json:"read_ms"`
	// FreshMillis is from the acknowledgement of single writes until they are
	// read, in the steps that have them.
	FreshMillis Quantiles `json:"fresh_ms"`
	// Questions is how many were answered.
	Questions int `json:"questions"`
}

// readersRun is one run of [Readers].
type readersRun struct {
	cfg                   ReadersConfig
	load                  *load
	events, conversations []string // paths
}

// Readers measures reads of single events and of pages by one reader and by
// many, then reads and freshness alone, beside busy processors, and beside
// askers. What askers cost more than busy processors do is what they take beside
// the processor.
func Readers(ctx context.Context, cfg ReadersConfig, log *slog.Logger) (_ *ReadersReport, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	system, err := Start(ctx, cfg.System, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, system.Close()) }()
	to, err := system.Serve(ctx)
	if err != nil {
		return nil, err
	}
	r, err := newReadersRun(ctx, cfg, to)
	if err != nil {
		return nil, err
	}
	report := &ReadersReport{Events: cfg.Events}
	for _, step := range []struct {
		name    string
		paths   []string
		readers int
		beside  func(ctx context.Context) (questions int, err error)
	}{
		{"events, one reader", r.events, 1, nil},
		{"events, many readers", r.events, manyReaders, nil},
		{"pages, one reader", r.conversations, 1, nil},
		{"pages, many readers", r.conversations, manyReaders, nil},
		{"events and freshness, alone", r.events, 1, r.nothing},
		{"beside busy processors", r.events, 1, r.busy},
		{"beside askers", r.events, 1, r.ask},
	} {
		s, err := r.step(ctx, step.paths, step.readers, step.beside)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
		s.Name = step.name
		fmt.Fprintf(cfg.Progress, "%-28s %2d readers: %6.0f reads/s, p50 %6.1f ms, p99 %6.1f ms", s.Name, s.Readers, s.PerSecond, s.Millis.P50, s.Millis.P99)
		if step.beside != nil {
			fmt.Fprintf(cfg.Progress, "; fresh after p50 %5.0f ms, p99 %5.0f ms; %d questions", s.FreshMillis.P50, s.FreshMillis.P99, s.Questions)
		}
		fmt.Fprintln(cfg.Progress)
		report.Steps = append(report.Steps, *s)
	}
	return report, nil
}

func newReadersRun(ctx context.Context, cfg ReadersConfig, to workload.Target) (*readersRun, error) {
	create := LoadConfig{Seed: cfg.Seed, Events: cfg.Events, Batch: 1000, Connections: 4, Progress: cfg.Progress}
	plan, err := planOf(create)
	if err != nil {
		return nil, err
	}
	// A client that keeps a connection for each reader and asker.
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: manyReaders + cfg.Askers}}
	l := &load{
		cfg: create, to: to, plan: plan, progress: NewProgress(cfg.Progress),
		verify: &workload.Verifier{To: to, HTTP: client},
	}
	if _, err := l.phase(ctx, "create", cfg.Events, l.creates); err != nil {
		return nil, err
	}
	r := &readersRun{cfg: cfg, load: l}
	for _, i := range plan.Choose(readPlaces, 3) {
		path := "/event/" + plan.ID(i).String()
		var e struct {
			ConversationID string `json:"conversation_id"`
		}
		if err := r.get(ctx, path, &e); err != nil {
			return nil, err
		}
		r.events = append(r.events, path)
		r.conversations = append(r.conversations, "/conversations/"+url.PathEscape(e.ConversationID)+"/events?limit=100")
	}
	return r, nil
}

func (r *readersRun) get(ctx context.Context, path string, into any) error {
	status, err := r.load.verify.Get(ctx, path, into)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("GET %s: status %d", path, status)
	}
	return err
}

// step reads the paths for a while. Where there is something beside it, one
// reader pauses between its reads, and single writes are probed too.
func (r *readersRun) step(ctx context.Context, paths []string, readers int, beside func(context.Context) (int, error)) (*ReadersStep, error) {
	s := &ReadersStep{Readers: readers}
	stepping, stop := context.WithTimeout(ctx, r.cfg.Step)
	defer stop()
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		times []time.Duration
		errs  []error
	)
	failed := func(err error) {
		if stepping.Err() != nil {
			return // the end of the step cut it off
		}
		mu.Lock()
		errs = append(errs, err)
		mu.Unlock()
		stop()
	}
	begun := time.Now()
	for range readers {
		all.Go(func() {
			for stepping.Err() == nil {
				asked := time.Now()
				if err := r.get(stepping, paths[rand.IntN(len(paths))], new(any)); err != nil {
					failed(err)
					return
				}
				took := time.Since(asked)
				mu.Lock()
				times = append(times, took)
				mu.Unlock()
				if beside != nil {
					pause(stepping)
				}
			}
		})
	}
	if beside != nil {
		all.Go(func() { s.FreshMillis = quantiles(r.load.probe(stepping)) })
		all.Go(func() {
			var err error
			if s.Questions, err = beside(stepping); err != nil {
				failed(err)
			}
		})
	}
	all.Wait()
	s.PerSecond = float64(len(times)) / time.Since(begun).Seconds()
	s.Millis = quantiles(times)
	return s, errors.Join(errs...)
}

// pause waits calmPause, or until the step ends.
func pause(ctx context.Context) {
	select {
	case <-time.After(calmPause):
	case <-ctx.Done():
	}
}

func (r *readersRun) nothing(ctx context.Context) (questions int, err error) {
	<-ctx.Done()
	return 0, nil
}

// busy has a process for each processor that does nothing but run.
func (r *readersRun) busy(ctx context.Context) (questions int, err error) {
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() { _ = exec.CommandContext(ctx, "sh", "-c", "while :; do :; done").Run() }) // it is killed
	}
	all.Wait()
	return 0, nil
}

// ask asks the dearest question again and again. Askers who find the queue of
// questions full are answered 429, and ask again soon.
func (r *readersRun) ask(ctx context.Context) (questions int, err error) {
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for range r.cfg.Askers {
		all.Go(func() {
			for ctx.Err() == nil {
				status, err := r.load.verify.Get(ctx, dearQuestion, new(any))
				mu.Lock()
				switch {
				case err != nil && ctx.Err() == nil:
					errs = append(errs, err)
				case status == http.StatusOK:
					questions++
				}
				mu.Unlock()
				switch {
				case err != nil:
					return
				case status != http.StatusOK:
					pause(ctx)
				}
			}
		})
	}
	all.Wait()
	return questions, errors.Join(errs...)
}
