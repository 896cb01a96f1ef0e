package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// parts runs the long-lived parts of a process. They are started one after the
// other and stopped in reverse, each only after those that stand on it.
type parts struct {
	running []*part
	// ended receives the first part that returns before it is stopped.
	ended chan *part
}

type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func newParts() *parts { return &parts{ended: make(chan *part, 1)} }

// start runs a part until it is stopped. It is not stopped by ctx, whose
// values it gets, but by stop alone: the order matters.
func (ps *parts) start(ctx context.Context, name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &part{name: name, cancel: cancel, done: make(chan struct{})}
	ps.running = append(ps.running, p)
	go func() {
		p.err = run(ctx)
		if p.err == nil && ctx.Err() == nil {
			p.err = errors.New("ended by itself")
		}
		close(p.done)
		select {
		case ps.ended <- p:
		default:
		}
	}()
}

// onStop adds a step that stop takes at this place of the order.
func (ps *parts) onStop(name string, stop func() error) {
	p := &part{name: name, done: make(chan struct{})}
	p.cancel = func() {
		p.err = stop()
		close(p.done)
	}
	ps.running = append(ps.running, p)
}

// wait returns when ctx is over or a part has ended.
func (ps *parts) wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case p := <-ps.ended:
		ps.ended <- p // for the next caller
	}
}

// stop stops all parts, the last one first, and returns what went wrong.
func (ps *parts) stop() error {
	var errs []error
	for _, p := range slices.Backward(ps.running) {
		p.cancel()
		<-p.done
		if p.err != nil && !errors.Is(p.err, context.Canceled) {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, p.err))
		}
	}
	ps.running = nil
	return errors.Join(errs...)
}
