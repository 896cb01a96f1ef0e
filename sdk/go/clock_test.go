package sluice_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
	"github.com/sluicehq/sluice/sdk/go/internal/id"
)

func TestVectorsOfClocks(t *testing.T) {
	var vectors struct {
		Clocks []struct {
			Name          string
			Local         time.Time
			Headers       map[string]string
			OffsetSeconds *float64 `json:"offset_seconds"`
		}
	}
	text, err := os.ReadFile("../spec/vectors/clocks.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors.Clocks) == 0 {
		t.Fatal(err, "or no vectors")
	}
	for _, v := range vectors.Clocks {
		header := make(http.Header)
		for name, value := range v.Headers {
			header.Set(name, value)
		}
		server := sluice.ServerTime(header)
		if server.IsZero() != (v.OffsetSeconds == nil) {
			t.Errorf("%s: the server's time is %v", v.Name, server)
		} else if !server.IsZero() {
			if got := sluice.ClockOffset(server, v.Local).Seconds(); got != *v.OffsetSeconds {
				t.Errorf("%s: %v s, want %v", v.Name, got, *v.OffsetSeconds)
			}
		}
	}
}

const day = 24 * time.Hour

// aheadOf returns how far the time of a minted id is ahead of the clock.
func aheadOf(t *testing.T, id string) time.Duration {
	t.Helper()
	millis, err := strconv.ParseInt(strings.ReplaceAll(id, "-", "")[:12], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Until(time.UnixMilli(millis))
}

// dated returns the header of a server whose clock is ahead by the given time.
func dated(ahead time.Duration) map[string]string {
	return map[string]string{"Date": time.Now().Add(ahead).UTC().Format(http.TimeFormat)}
}

// rightAgain resets the time of the process to the system's clock for the tests that follow.
func rightAgain(t *testing.T) {
	t.Cleanup(func() { id.Current().Follow(time.Time{}, time.Now()) })
}

func wantAhead(t *testing.T, id string, want time.Duration) {
	t.Helper()
	if got := aheadOf(t, id); math.Abs((got - want).Seconds()) > 60 {
		t.Errorf("the id %s is %s ahead, want %s", id, got, want)
	}
}

func TestWrongClock(t *testing.T) {
	for _, days := range []time.Duration{-2, 2, 20_000} {
		t.Run(fmt.Sprint(int(days), " days"), func(t *testing.T) {
			rightAgain(t)
			ahead := days * day
			api := &fakeAPI{answer: func(n int, r request) answer {
				switch {
				case n == 0:
					return answer{status: 422, header: dated(ahead), results: []string{`{"error":{"status":422,"code":"invalid_value","field":"id","detail":"no"}}`}}
				case ahead == 0:
					return answer{status: 202, header: dated(0)}
				}
				return answer{status: 202, header: dated(ahead)}
			}}
			var reported errorLog
			var log bytes.Buffer
			client := open(t, api, sluice.Options{OnError: reported.add, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			first := mustTrack(t, client, event("c1"))
			mustFlush(t, client)
			errs := reported.all()
			if len(errs) != 2 || !errors.Is(errs[0], sluice.ErrWrongClock) || errs[0].Op != "" || errs[1].ID != first {
				t.Fatalf("reported %v", errs)
			}
			side := map[bool]string{true: "behind", false: "ahead of"}[days > 0]
			for _, part := range []string{fmt.Sprintf("%d.0 days %s the server's", max(days, -days), side), "just refused 1 writes", "Set the clock"} {
				if !strings.Contains(errs[0].Error(), part) || strings.Count(log.String(), part) != 1 {
					t.Errorf("%q is not in %v, or not once in %s", part, errs[0], log.String())
				}
			}

			ids := []string{mustTrack(t, client, event("c1")), mustTrack(t, client, event("c1"))}
			if !slices.IsSorted(ids) {
				t.Errorf("the ids are %v", ids)
			}
			traced, _ := client.Trace(t.Context(), "c1", func(context.Context, *sluice.Span) error { return nil })
			for _, id := range append(ids, traced) {
				wantAhead(t, id, ahead)
			}
			soon := event("c1")
			soon.Timestamp = time.Now().Add(ahead + day/2)
			mustTrack(t, client, soon)
			mustFlush(t, client)
			if n := strings.Count(log.String(), "Set the clock"); n != 1 {
				t.Errorf("told %d times", n)
			}

			ahead = 0 // somebody set the clock
			mustTrack(t, client, event("c1"))
			mustFlush(t, client)
			wantAhead(t, mustTrack(t, client, event("c1")), 0)
		})
	}
}

func TestReadReportsWrongClock(t *testing.T) {
	rightAgain(t)
	header := dated(2 * day)
	header["Content-Type"] = "application/problem+json"
	api := &fakeAPI{answer: func(int, request) answer {
		return answer{status: 404, header: header, body: `{"type":"urn:sluice:problem:unknown_event","status":404,"code":"unknown_event"}`}
	}}
	var reported errorLog
	client := open(t, api, sluice.Options{OnError: reported.add})
	if _, err := client.Event(t.Context(), "a"); err == nil {
		t.Error("no error")
	}
	if errs := reported.all(); len(errs) != 1 || !errors.Is(errs[0], sluice.ErrWrongClock) {
		t.Errorf("reported %v", errs)
	}
	wantAhead(t, mustTrack(t, client, event("c1")), 2*day)
}

func TestDateOfAProxyIsIgnored(t *testing.T) {
	api := &fakeAPI{answer: func(n int, _ request) answer {
		if n == 0 {
			return answer{status: 200, header: dated(2 * day), body: "<html>"}
		}
		return answer{status: 202}
	}}
	client := open(t, api, sluice.Options{})
	mustTrack(t, client, event("c1"))
	mustFlush(t, client)
	wantAhead(t, mustTrack(t, client, event("c1")), 0)
}
