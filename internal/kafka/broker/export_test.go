package broker

import (
	"context"
	"log/slog"
	"os"

	"github.com/twmb/franz-go/pkg/kadm"
)

// NewFsync is [New] with fsync instead of (*os.File).Sync.
func NewFsync(cfg Config, log *slog.Logger, fsync func(*os.File) error) (*Broker, error) {
	return start(cfg, log, fsync)
}

// Retain runs one round of retention.
func (b *Broker) Retain(ctx context.Context, adm *kadm.Client) error { return b.retain(ctx, adm) }
