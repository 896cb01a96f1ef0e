package kafka

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluicehq/sluice/internal/event"
)

// Generation is an events topic that there is.
type Generation struct {
	Number int
	Topic  string
	// Pending is the number of its records that the group has not committed.
	Pending int64
}

// Generations are all events topics under the prefix, the oldest first.
// Neither the config's generation nor its partitions matter.
func Generations(ctx context.Context, cfg Config, log *slog.Logger) ([]Generation, error) {
	cl, err := newClient(&cfg, log)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	topics, err := adm.ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var generations []Generation
	for _, topic := range topics.Names() {
		digits, ok := strings.CutPrefix(topic, cfg.TopicPrefix+".g")
		n, err := strconv.Atoi(digits)
		if !ok || err != nil || n < 1 || n > event.GenerationMax || strconv.Itoa(n) != digits || topics[topic].Err != nil {
			continue
		}
		partitions, err := readOffsets(ctx, adm, cfg.Group, topic)
		if err != nil {
			return nil, err
		}
		g := Generation{Number: n, Topic: topic}
		for _, p := range partitions {
			g.Pending += p.End - max(p.First, p.Committed)
		}
		generations = append(generations, g)
	}
	slices.SortFunc(generations, func(a, b Generation) int { return cmp.Compare(a.Number, b.Number) })
	return generations, nil
}
