package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
)

// markReplayed records in the dead-letter topic that the letters at the places were
// replayed.
func (d *DeadLetters) markReplayed(ctx context.Context, places []int64) error {
	if len(places) == 0 {
		return nil
	}
	return d.send(ctx, []*kgo.Record{{
		Topic: d.topic, Value: appendPlaces(nil, places),
		Headers: []kgo.RecordHeader{{Key: headerReplayed, Value: []byte("1")}},
	}})
}

// Replayed returns a function that reports whether the letter at a place was
// replayed before the call of Replayed. The place must not be before from.
func (d *DeadLetters) Replayed(ctx context.Context, from int64) (func(place int64) bool, error) {
	done, err := d.replayed(ctx, from)
	return done.has, err
}

func (d *DeadLetters) replayed(ctx context.Context, from int64) (placeSet, error) {
	done := make(placeSet)
	_, err := d.read(ctx, from, func(rec *kgo.Record) error {
		if !isReplayed(rec) {
			return nil
		}
		return done.addList(rec)
	})
	return done, err
}

// isReplayed reports whether the record of the dead-letter topic is no letter,
// but lists letters that were replayed.
func isReplayed(r *kgo.Record) bool {
	return slices.ContainsFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == headerReplayed })
}

// appendPlaces appends the places as text, such as 3-7,9. It sorts them.
func appendPlaces(b []byte, places []int64) []byte {
	slices.Sort(places)
	for i := 0; i < len(places); {
		first := places[i]
		last := first
		for i++; i < len(places) && places[i] <= last+1; i++ {
			last = places[i]
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, first, 10)
		if last > first {
			b = strconv.AppendInt(append(b, '-'), last, 10)
		}
	}
	return b
}

// placeSet is a set of places in the dead-letter topic, 64 of them a word.
type placeSet map[int64]uint64

func (s placeSet) has(place int64) bool { return s[place>>6]>>(place&63)&1 != 0 }

var errBadPlaces = errors.New("the list of replayed letters is malformed")

// addList adds the places that the record lists. They are before its own place.
func (s placeSet) addList(r *kgo.Record) error {
	for part := range strings.SplitSeq(string(r.Value), ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.ParseInt(first, 10, 64)
		to := from
		if err == nil && isRange {
			to, err = strconv.ParseInt(last, 10, 64)
		}
		if err != nil || from < 0 || to < from || to >= r.Offset {
			return fmt.Errorf("topic %s offset %d: %w", r.Topic, r.Offset, errBadPlaces)
		}
		for place := from; place <= to; place++ {
			s[place>>6] |= 1 << (place & 63)
		}
	}
	return nil
}
