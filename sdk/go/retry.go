package sluice

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"time"
)

const (
	pauseMin = 100 * time.Millisecond
	pauseMax = 10 * time.Second
)

// A foreignError is an [APIError] whose answer is not a problem document of
// Sluice. It probably came from a proxy.
type foreignError struct{ *APIError }

func (e *foreignError) Unwrap() error { return e.APIError }

// plain returns the error without the private type foreignError.
func plain(err error) error {
	if foreign, ok := err.(*foreignError); ok { //nolint:errorlint // a wrapped foreignError may stay
		return foreign.APIError
	}
	return err
}

// isTransient reports whether the status passes by itself, so that a retry may
// succeed.
func isTransient(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return status >= http.StatusInternalServerError
}

// isFinalCode reports whether Sluice refuses a write for good by the code. Other
// codes are about the request, its sender or the server.
func isFinalCode(code string) bool {
	switch code {
	case "invalid_json", "too_deep", "duplicate_field", "unknown_field", "invalid_type", "required",
		"invalid_value", "too_large", "immutable", "id_mismatch", CodeUnknownEvent, "bad_record",
		"unsupported_version", "unreadable_batch", "rejected_by_store", codeIDTaken, codeEventDeleted:
		return true
	}
	return false
}

// isFinal reports whether the error of a request with one write refuses that write
// for good. Sluice does so by a final code. A proxy does so only by 413.
func isFinal(err error) bool {
	if hasStatus(err, http.StatusRequestEntityTooLarge) {
		return true
	}
	var refusal *APIError
	return isSluices(err) && errors.As(err, &refusal) && isFinalCode(refusal.Code)
}

// isSluices reports whether the error is a problem document of Sluice.
func isSluices(err error) bool {
	var foreign *foreignError
	var refusal *APIError
	return !errors.As(err, &foreign) && errors.As(err, &refusal)
}

// refusesTime reports whether the server refused a write for its time, which may
// be in the timestamp or in a minted id.
func refusesTime(err error) bool {
	var refusal *APIError
	return errors.As(err, &refusal) && refusal.Code == "invalid_value" && (refusal.Field == "id" || refusal.Field == "timestamp")
}

// isHeld reports whether the error holds writes: they are retried, but somebody
// must change something before they can succeed.
func isHeld(err error) bool {
	var refusal *APIError
	return errors.Is(err, errBadAnswer) || errors.As(err, &refusal) && !isTransient(refusal.Status)
}

// mayHaveWritten reports whether the writes of a request may have reached the log
// although the request ended with the error.
func mayHaveWritten(err error) bool {
	var refusal *APIError
	if errors.As(err, &refusal) {
		return refusal.Status >= http.StatusInternalServerError || refusal.Status == http.StatusRequestTimeout
	}
	var network *net.OpError
	return !errors.As(err, &network) || network.Op != "dial"
}

// retriable reports whether a retry of a read may succeed after the error.
func retriable(err error) bool {
	var refusal *APIError
	// 501 means that the server is not set up for the read.
	return !errors.As(err, &refusal) || isTransient(refusal.Status) && refusal.Status != http.StatusNotImplemented
}

func hasStatus(err error, status int) bool {
	var refusal *APIError
	return errors.As(err, &refusal) && refusal.Status == status
}

// backoff returns the pause after the given number of earlier failures. The pause
// doubles from pauseMin to pauseMax, with a random factor from 0.5 to 1.
func backoff(failures int) time.Duration {
	whole := min(pauseMin<<min(failures, 10), pauseMax)
	return whole/2 + rand.N(whole/2+1) //nolint:gosec // spreads load, hides nothing
}
