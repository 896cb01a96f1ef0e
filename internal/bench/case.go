package bench

import (
	"context"
	"errors"
	"log/slog"
)

// CaseConfig says what [MeasureCase] measures.
type CaseConfig struct {
	System SystemConfig
	// Broker names the broker in the report. Default: [EmbeddedBroker].
	Broker string
	Load   LoadConfig
	// LimitEvents is how many of the creates [MeasureLimits] takes, and
	// AlternativeEvents how many [MeasureAlternative]; 0 does without.
	LimitEvents, AlternativeEvents int
}

// MeasureCase starts a Sluice of its own, runs the load on it, compares it with
// what is asked for, and stops it. Its data stays in the system's directory.
func MeasureCase(ctx context.Context, cfg CaseConfig, log *slog.Logger) (_ *Case, err error) {
	if err := cfg.Load.Validate(); err != nil {
		return nil, err
	}
	if cfg.AlternativeEvents > 0 {
		cfg.System.ServerSettings = AlternativeSettings()
	}
	system, err := Start(ctx, cfg.System, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, system.Close()) }()
	target, err := system.Serve(ctx)
	if err != nil {
		return nil, err
	}
	cfg.Load.Observe = system
	c := NewCase(cfg.Load, cfg.Broker)
	if c.Phases, err = Load(ctx, target, cfg.Load); err != nil {
		return nil, err
	}
	if cfg.LimitEvents > 0 {
		if c.Limits, err = MeasureLimits(ctx, system, cfg.Load, cfg.LimitEvents); err != nil {
			return nil, err
		}
	}
	if cfg.AlternativeEvents > 0 {
		if c.Alternative, err = MeasureAlternative(ctx, system, cfg.Load, cfg.AlternativeEvents); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// NewCase describes a load on a broker, by default the embedded one; its
// figures are to come.
func NewCase(cfg LoadConfig, broker string) *Case {
	if broker == "" {
		broker = EmbeddedBroker
	}
	return &Case{Name: cfg.Encoding.String(), Broker: broker, Batch: cfg.Batch, Connections: cfg.Connections}
}
