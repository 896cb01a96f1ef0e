package kafka

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
)

var (
	// ErrDataLoss is wrapped by [Consumer.Poll] when records that were never
	// read are gone from the log: it was truncated, expired before it was
	// consumed, or made anew; and by [CheckCommits]. It names the partition and
	// the offsets, and is final: going on would skip acknowledged writes.
	ErrDataLoss = errors.New("records are missing from the log")

	// ErrFenced is wrapped by [Consumer.Commit] when the group has gone on without
	// this member. The member joins again by itself; the [RevokedFunc] is called
	// for the partitions that it does not get back.
	ErrFenced = errors.New("the consumer group has gone on without this member")

	// ErrGenerationOver is wrapped when a write would go to a generation of the
	// events topic after a later generation has begun.
	ErrGenerationOver = errors.New("a later generation has begun: writes to this one would lose to its")

	// ErrNotDrained is wrapped by [BeginGeneration] when records of an earlier
	// generation are not applied, and no consumer is there to apply them.
	ErrNotDrained = errors.New("the generation before is not drained: consume it to its end first")

	// ErrGenerationGap is wrapped by [BeginGeneration] where the generation is too
	// far from those before it for their processes to notice it.
	ErrGenerationGap = errors.New("the generation is too far from those before it")

	// ErrTopicMismatch is wrapped by [EnsureTopics] when a topic exists and is
	// not as it has to be.
	ErrTopicMismatch = errors.New("topic is not as configured")

	// ErrGroupActive is wrapped by [Rewind] while the consumer group has members.
	ErrGroupActive = errors.New("the consumer group has members; stop the consumers")

	// ErrForward is wrapped by [Rewind] when an offset is after the group's.
	ErrForward = errors.New("records that were never applied would be passed over")
)

func lostError(topic string, partition int32, format string, args ...any) error {
	return fmt.Errorf("%w: topic %s partition %d: %s", ErrDataLoss, topic, partition, fmt.Sprintf(format, args...))
}

// isFenced reports whether the broker refused a commit because the member is
// not, or no longer, one of the group's generation.
func isFenced(err error) bool {
	for _, e := range []error{
		kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.FencedInstanceID,
		kerr.FencedMemberEpoch, kerr.StaleMemberEpoch, kerr.UnreleasedInstanceID,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
