package kafka

import (
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// newRecord returns the record of the events topic of a generation.
func newRecord(generation int, r *kgo.Record) record.Record {
	return record.Record{
		Generation: generation, Partition: r.Partition, Offset: r.Offset,
		Key: r.Key, Value: r.Value, Version: recordVersion(r.Headers), AppendTime: r.Timestamp,
		ReplayOf: replayOf(r.Headers),
	}
}

// replayOf returns the receipt of the write that a record repeats, or zero if its
// headers name none.
func replayOf(headers []kgo.RecordHeader) event.Receipt {
	for _, h := range headers {
		if h.Key == headerReplayOf {
			r, _ := event.ParseReceipt(string(h.Value)) // zero if it is none
			return r
		}
	}
	return event.Receipt{}
}

// recordVersion returns the value of the version header, or 0 if there is no such
// header or it is not a number.
func recordVersion(headers []kgo.RecordHeader) int {
	for _, h := range headers {
		if h.Key == headerVersion {
			if len(h.Value) == 1 && h.Value[0] >= '0' && h.Value[0] <= '9' {
				return int(h.Value[0] - '0')
			}
			n, err := strconv.Atoi(string(h.Value))
			if err != nil || n < 0 {
				return 0
			}
			return n
		}
	}
	return 0
}
