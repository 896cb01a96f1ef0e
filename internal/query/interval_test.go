package query_test

import (
	"slices"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/query"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func TestBuckets(t *testing.T) {
	for _, tt := range []struct {
		name, zone, since, until string
		interval                 query.Interval
		want                     []string // the beginnings, then the end
	}{
		{
			"hours are those of UTC", "Asia/Kolkata", "2026-01-05T00:10:00Z", "2026-01-05T02:00:00Z",
			query.Interval{Unit: query.Hour, Count: 1},
			[]string{"2026-01-05T00:00:00Z", "2026-01-05T01:00:00Z", "2026-01-05T02:00:00Z"},
		},
		{
			"minutes", "UTC", "2026-01-05T00:14:00Z", "2026-01-05T00:15:00.000001Z",
			query.Interval{Unit: query.Minute, Count: 5},
			[]string{"2026-01-05T00:10:00Z", "2026-01-05T00:15:00Z", "2026-01-05T00:20:00Z"},
		},
		{
			"days of Kolkata", "Asia/Kolkata", "2026-01-05T00:00:00Z", "2026-01-06T18:30:00Z",
			query.Interval{Unit: query.Day, Count: 1},
			[]string{"2026-01-05T00:00:00+05:30", "2026-01-06T00:00:00+05:30", "2026-01-07T00:00:00+05:30"},
		},
		{
			"a day of 23 hours", "Europe/Berlin", "2026-03-28T23:30:00Z", "2026-03-29T23:00:00Z",
			query.Interval{Unit: query.Day, Count: 1},
			[]string{"2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00", "2026-03-31T00:00:00+02:00"},
		},
		{
			"a day of 25 hours", "America/New_York", "2026-11-01T12:00:00Z", "2026-11-02T04:59:59Z",
			query.Interval{Unit: query.Day, Count: 1},
			[]string{"2026-11-01T00:00:00-04:00", "2026-11-02T00:00:00-05:00"},
		},
		{
			"weeks begin on Monday", "Europe/Berlin", "2026-03-29T21:59:59Z", "2026-03-30T00:00:00Z",
			query.Interval{Unit: query.Week, Count: 1},
			[]string{"2026-03-23T00:00:00+01:00", "2026-03-30T00:00:00+02:00", "2026-04-06T00:00:00+02:00"},
		},
		{
			"months", "America/New_York", "2026-02-01T00:00:00Z", "2026-03-02T00:00:00Z",
			query.Interval{Unit: query.Month, Count: 1},
			[]string{"2026-01-01T00:00:00-05:00", "2026-02-01T00:00:00-05:00", "2026-03-01T00:00:00-05:00", "2026-04-01T00:00:00-04:00"},
		},
		{
			"quarters", "UTC", "2026-02-01T00:00:00Z", "2026-04-01T00:00:00.000001Z",
			query.Interval{Unit: query.Month, Count: 3},
			[]string{"2026-01-01T00:00:00Z", "2026-04-01T00:00:00Z", "2026-07-01T00:00:00Z"},
		},
		{
			"two days since 1970", "UTC", "1970-01-01T00:00:00Z", "1970-01-03T00:00:01Z",
			query.Interval{Unit: query.Day, Count: 2},
			[]string{"1970-01-01T00:00:00Z", "1970-01-03T00:00:00Z", "1970-01-05T00:00:00Z"},
		},
		{
			"the day before 1970 in the west", "America/New_York", "1970-01-01T00:00:00Z", "1970-01-01T05:00:00Z",
			query.Interval{Unit: query.Day, Count: 1},
			[]string{"1969-12-31T00:00:00-05:00", "1970-01-01T00:00:00-05:00"},
		},
		{
			"the week before 1970-01-05", "UTC", "1970-01-01T00:00:00Z", "1970-01-05T00:00:00Z",
			query.Interval{Unit: query.Week, Count: 1},
			[]string{"1969-12-29T00:00:00Z", "1970-01-05T00:00:00Z"},
		},
		{
			"a midnight that does not exist", "America/Sao_Paulo", "2018-11-03T12:00:00Z", "2018-11-05T02:00:00Z",
			query.Interval{Unit: query.Day, Count: 1},
			[]string{"2018-11-03T00:00:00-03:00", "2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"},
		},
		{
			"a date that does not exist", "Pacific/Apia", "2011-12-29T20:00:00Z", "2011-12-31T10:00:00Z",
			query.Interval{Unit: query.Day, Count: 1},
			[]string{"2011-12-29T00:00:00-10:00", "2011-12-31T00:00:00+14:00", "2012-01-01T00:00:00+14:00"},
		},
		{
			"until the last day", "UTC", "2149-06-05T12:00:00Z", "2149-06-06T00:00:00Z",
			query.Interval{Unit: query.Month, Count: 1},
			[]string{"2149-06-01T00:00:00Z", "2149-07-01T00:00:00Z"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := func(text string) time.Time {
				parsed, err := time.Parse(time.RFC3339Nano, text)
				if err != nil {
					t.Fatal(err)
				}
				return parsed
			}
			got, end, ok := tt.interval.Buckets(at(tt.since).UnixMicro(), at(tt.until).UnixMicro(), zone(t, tt.zone), 100)
			if !ok {
				t.Fatal("refused")
			}
			var want []int64
			for _, text := range tt.want {
				want = append(want, at(text).Unix())
			}
			if got = append(got, end); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// Every moment of some years lies in the bucket that begins on the date that the clock shows.
func TestBucketsHaveTheDatesOfTheClock(t *testing.T) {
	for _, name := range []string{"UTC", "Asia/Kolkata", "Europe/Berlin", "America/Sao_Paulo", "Pacific/Apia", "Asia/Beirut", "America/Havana", "Australia/Lord_Howe", "Pacific/Kiritimati"} {
		z := zone(t, name)
		since := time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC)
		until := time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC)
		starts, _, ok := query.Interval{Unit: query.Day, Count: 1}.Buckets(since.UnixMicro(), until.UnixMicro(), z, 4000)
		if !ok || !slices.IsSorted(starts) {
			t.Fatalf("%s: %v", name, ok)
		}
		for at := since; at.Before(until); at = at.Add(10 * time.Minute) {
			i, found := slices.BinarySearch(starts, at.Unix())
			if !found {
				i--
			}
			bucket, clock := time.Unix(starts[i], 0).In(z), at.In(z)
			if bucket.Format(time.DateOnly) != clock.Format(time.DateOnly) {
				t.Fatalf("%s: %v is in the bucket that begins at %v", name, clock, bucket)
			}
		}
	}
}

func TestTooManyBuckets(t *testing.T) {
	hour := query.Interval{Unit: query.Hour, Count: 1}
	const micros = 3600 * 1_000_000
	if _, _, ok := hour.Buckets(0, 10*micros, time.UTC, 10); !ok {
		t.Error("ten hours are refused")
	}
	for name, interval := range map[string]query.Interval{
		"one hour more": hour, "seconds": {Unit: query.Second, Count: 1}, "none": {Unit: query.Hour},
		"too long": {Unit: query.Month, Count: 1 << 62},
	} {
		if _, _, ok := interval.Buckets(1, 10*micros+1, time.UTC, 10); ok {
			t.Errorf("%s: not refused", name)
		}
	}
	if _, _, ok := (query.Interval{Unit: query.Month, Count: 1_000_000_000}).Buckets(0, query.MicrosMax, time.UTC, 10); !ok {
		t.Error("a long interval is refused")
	}
}
