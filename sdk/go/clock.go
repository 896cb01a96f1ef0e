package sluice

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/sluicehq/sluice/sdk/go/internal/id"
)

// clockTolerance is the largest error of a clock that does not count as wrong.
const clockTolerance = 5 * time.Minute

// serverTime returns the server's time from the Date header; zero if the header is
// absent or not usable. An answer with an Age header comes from a cache, so that
// its Date is old.
func serverTime(header http.Header) time.Time {
	at, err := http.ParseTime(header.Get("Date"))
	if err != nil || header.Get("Age") != "" || at.Before(timestampMin()) {
		return time.Time{}
	}
	return at
}

// clockOffset returns how far the server's clock is ahead of the local clock; 0 if
// the difference is within the tolerance.
func clockOffset(server, local time.Time) time.Duration {
	if ahead := server.Sub(local); ahead.Abs() > clockTolerance {
		return ahead
	}
	return 0
}

// observe compares this machine's clock with the time in an answer of Sluice.
// refused is the number of writes that the answer refused for their time. While
// the clock is wrong, events without a timestamp get the server's time. A wrong
// clock is reported once, until it is right again.
func (c *Client) observe(server time.Time, refused int) {
	if server.IsZero() {
		return
	}
	local := time.Now()
	ahead := clockOffset(server, local.Round(0))
	if ahead == 0 {
		id.Current().Follow(time.Time{}, local)
		c.toldClock.Store(false)
		return
	}
	id.Current().Follow(server, local)
	if c.toldClock.Swap(true) {
		return
	}
	side := "behind"
	if ahead < 0 {
		side = "ahead of"
	}
	err := fmt.Errorf("%w: it is %s %s the server's: here %s, there %s. "+
		"The ids minted so far have the wrong time. The server refuses ids before the year 2000 or more than 24 hours ahead "+
		"(it just refused %d writes; each goes to OnError), and stores the others under the wrong time. From now on, events without a timestamp "+
		"get the server's time. Set the clock of this machine, for example by NTP; no restart is needed", ErrWrongClock, durationText(ahead.Abs()),
		side, local.UTC().Format(time.RFC3339), server.UTC().Format(time.RFC3339), refused)
	c.opts.Logger.Error("the clock of this machine is wrong", slog.Any("error", err))
	if c.opts.OnError != nil {
		c.report(WriteError{Err: err})
	}
}

func durationText(d time.Duration) string {
	switch {
	case d >= 36*time.Hour:
		return fmt.Sprintf("%.1f days", d.Hours()/24)
	case d >= 90*time.Minute:
		return fmt.Sprintf("%.1f hours", d.Hours())
	}
	return fmt.Sprintf("%.0f minutes", d.Minutes())
}
