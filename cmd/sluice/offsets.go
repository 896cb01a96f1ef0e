package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/sluicehq/sluice/internal/app"
	"github.com/sluicehq/sluice/internal/kafka"
)

// offsetsFileBytes is more than the offsets of the most partitions there can be.
const offsetsFileBytes = 8 << 20

type offsetsCmd struct {
	Show   offsetsShowCmd   `cmd:"" help:"Print where the group is, as a JSON object for each partition. Keep this output with a backup."`
	Rewind offsetsRewindCmd `cmd:"" help:"Set the group back, so that the log is applied again from there, which is harmless. No consumer may run meanwhile."`
}

// partitionLine is a line of what "sluice offsets show" prints.
type partitionLine struct {
	Topic     string `json:"topic"`
	TopicID   string `json:"topic_id"`
	Group     string `json:"group"`
	Partition int32  `json:"partition"`
	First     int64  `json:"first"`
	Committed int64  `json:"committed"`
	End       int64  `json:"end"`
	Lag       int64  `json:"lag"`
}

// offsets finds the topic, and where the group is in it.
func (f *brokerFlags) offsets(ctx context.Context, e *env) (
	cfg kafka.Config, info kafka.TopicInfo, partitions []kafka.PartitionOffsets, err error,
) {
	if cfg, err = f.config(); err != nil {
		return cfg, info, nil, err
	}
	info, partitions, err = app.Offsets(ctx, cfg, e.log)
	return cfg, info, partitions, err
}

type offsetsShowCmd struct{ brokerFlags }

// Run prints the group's offsets.
func (c *offsetsShowCmd) Run(ctx context.Context, e *env) error {
	cfg, info, partitions, err := c.offsets(ctx, e)
	if err != nil {
		return err
	}
	out := json.NewEncoder(e.stdout)
	for _, p := range partitions {
		at := p.Committed
		if at < 0 {
			at = p.First // nothing was committed yet
		}
		if err := out.Encode(partitionLine{
			info.Topic, info.ID, cfg.WithDefaults().Group, p.Partition, p.First, at, p.End, p.End - at,
		}); err != nil {
			return err
		}
	}
	return nil
}

type offsetsRewindCmd struct {
	brokerFlags
	File string `arg:"" optional:"" help:"File with the output of \"sluice offsets show\" from the beginning of the backup." type:"existingfile"`
	All  bool   `help:"Set the group back to the first record that the log still has, instead of the offsets in a file."`

	AcceptLoss bool `help:"With --all, continue even if records are gone from the log that were never applied."`
}

// Run sets the group back.
func (c *offsetsRewindCmd) Run(ctx context.Context, e *env) error {
	switch {
	case (c.File == "") != c.All:
		return errors.New("either a file of offsets or --all is required")
	case c.AcceptLoss && !c.All:
		return errors.New("--accept-loss: needs --all")
	}
	cfg, info, partitions, err := c.offsets(ctx, e)
	if err != nil {
		return err
	}
	var to map[int32]int64 // all
	if !c.All {
		if to, err = c.read(info); err != nil {
			return err
		}
	}
	records, err := app.Rewind(ctx, cfg, app.RewindOptions{Topic: info, Partitions: partitions, To: to, AcceptLoss: c.AcceptLoss}, e.log)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%d records of %s will be applied\n", records, info.Topic)
	return err
}

// read reads the offsets in the file, which must be of the topic that there is.
func (c *offsetsRewindCmd) read(info kafka.TopicInfo) (map[int32]int64, error) {
	file, err := os.Open(c.File)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // it was only read
	to := make(map[int32]int64)
	for in := json.NewDecoder(io.LimitReader(file, offsetsFileBytes)); ; {
		var line partitionLine
		if err := in.Decode(&line); errors.Is(err, io.EOF) {
			return to, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: is not what \"sluice offsets show\" prints: %w", c.File, err)
		}
		if line.Topic != info.Topic || line.TopicID != info.ID {
			return nil, fmt.Errorf("%s: is of topic %s with id %s, and the brokers have %s with id %s",
				c.File, line.Topic, line.TopicID, info.Topic, info.ID)
		}
		to[line.Partition] = line.Committed
	}
}
