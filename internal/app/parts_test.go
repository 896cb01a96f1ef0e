package app

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestPartsStopInReverse(t *testing.T) {
	var stopped []string
	ps := newParts()
	for _, name := range []string{"first", "second"} {
		ps.start(t.Context(), name, func(ctx context.Context) error {
			<-ctx.Done()
			stopped = append(stopped, name)
			return ctx.Err()
		})
		ps.onStop(name+" client", func() error {
			stopped = append(stopped, name+" client")
			return nil
		})
	}
	if err := ps.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	want := []string{"second client", "second", "first client", "first"}
	if !slices.Equal(stopped, want) {
		t.Errorf("stopped %v, want %v", stopped, want)
	}
}

func TestPartThatEndsIsAnError(t *testing.T) {
	broken := errors.New("broken")
	for name, run := range map[string]func(context.Context) error{
		"with an error": func(context.Context) error { return broken },
		"by itself":     func(context.Context) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			ps := newParts()
			ps.start(t.Context(), "good", func(ctx context.Context) error { <-ctx.Done(); return nil })
			ps.start(t.Context(), "bad", run)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			ps.wait(ctx)
			if ctx.Err() != nil {
				t.Fatal("wait did not notice")
			}
			err := ps.stop()
			if err == nil {
				t.Fatal("stop returned nil")
			}
			if name == "with an error" && !errors.Is(err, broken) {
				t.Errorf("stop: %v, want it to wrap %v", err, broken)
			}
		})
	}
}
