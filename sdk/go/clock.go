package sluice

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/sluicehq/sluice/sdk/go/internal/id"
)

// clockTolerance is how far a clock may be off before it counts as wrong.
const clockTolerance = 5 * time.Minute

// serverTime is the time of an answer by its Date, zero where that says nothing.
// An answer out of a cache, which has an Age, is an old one.
func serverTime(header http.Header) time.Time {
	at, err := http.ParseTime(header.Get("Date"))
	if err != nil || header.Get("Age") != "" || at.Before(timestampMin()) {
		return time.Time{}
	}
	return at
}

// clockOffset is how far the server's clock is ahead of the local one, 0 for as
// good as not.
func clockOffset(server, local time.Time) time.Duration {
	if ahead := server.Sub(local); ahead.Abs() > clockTolerance {
		return ahead
	}
	return 0
}

// observe learns from an answer of Sluice's, which refused so many writes for
// their time, whether this machine's clock is right. While it is wrong, events
// without a timestamp get the server's time. It is told once.
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
		"Ids that were minted by now have the wrong time: the server refuses those of before the year 2000 or of more than 24 hours ahead "+
		"(of %d writes just now; each goes to OnError), and keeps the others under that time. From now on, events without a timestamp "+
		"get the server's time. Set the clock of this machine, by NTP for one; no restart is needed", ErrWrongClock, durationText(ahead.Abs()),
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
