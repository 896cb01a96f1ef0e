package sluice

import (
	"errors"
	"net"
	"net/http"
	"strconv"
)

var (
	// ErrClosed is returned by every call after [Client.Close].
	ErrClosed = errors.New("sluice: the client is closed")
	// ErrQueueFull is returned by a write for which the queue has no room: at once
	// with [Options].FailWhenFull, otherwise when its context ends before there is
	// room.
	ErrQueueFull = errors.New("sluice: the queue is full")
	// ErrSpoolInUse is returned by [New] when another client, of this process
	// or another, has the spool directory open.
	ErrSpoolInUse = errors.New("sluice: the spool directory is in use")
	// ErrIDTaken means that a create with an id of your own had no effect, because
	// an event with that id exists. With [Options].WaitApplied, [Options].OnError
	// gets an [APIError] for which [errors.Is] reports ErrIDTaken. If the client
	// may have sent the same create before, the create counts as applied instead.
	ErrIDTaken = errors.New("sluice: the id is taken")
	// ErrEventDeleted means that a create or update had no effect, because its
	// event was deleted. It is reported like ErrIDTaken.
	ErrEventDeleted = errors.New("sluice: the event was deleted")
	// ErrSpoolCorrupt goes to [Options].OnError for each line of the spool that is
	// torn or whose checksum is wrong.
	ErrSpoolCorrupt = errors.New("sluice: spool_corrupt")
	// ErrWrongClock goes to [Options].OnError once when an answer of the server
	// shows that this machine's clock is wrong. Its text says how far the clock is
	// off, and what to do. It may come from the goroutine of a read.
	ErrWrongClock = errors.New("sluice: the clock of this machine is wrong")
)

// CodeUnknownEvent is the code of the [APIError] for an event that does not exist
// or was deleted.
const CodeUnknownEvent = "unknown_event"

const (
	codeIDTaken      = "id_taken"
	codeEventDeleted = "event_deleted"
	// codeNotYetApplied means that a read's wait timed out.
	codeNotYetApplied = "not_yet_applied"
)

// A FieldError means that an argument of a call is invalid. Nothing was queued or
// sent.
type FieldError struct {
	// Field is the argument's name in the API, such as conversation_id or
	// output_embeddings[7], or the name of an option. It is empty if the write as
	// a whole is invalid.
	Field string
	// Reason says what is wrong with the field.
	Reason string
	// Err is the cause, or nil.
	Err error
}

func (e *FieldError) Error() string {
	s := "sluice: " + e.Reason
	if e.Field != "" {
		s = "sluice: " + e.Field + " " + e.Reason
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *FieldError) Unwrap() error { return e.Err }

// An APIError means that the server refused a request or a write.
type APIError struct {
	// Status is the HTTP status of the answer, or of the write within a batch.
	Status int `json:"status"`
	// Code is the code of the server's problem document, such as
	// [CodeUnknownEvent]; empty if a proxy answered and not Sluice.
	Code string `json:"code"`
	// Detail is an explanation for humans.
	Detail string `json:"detail"`
	// Field is the field or parameter at fault, by its name in the API; empty if
	// there is none.
	Field string `json:"field"`
}

func (e *APIError) Error() string {
	s := "sluice: the server answered " + strconv.Itoa(e.Status) + " " + e.Code
	if e.Code == "" {
		s += http.StatusText(e.Status)
	}
	if e.Field != "" {
		s += ": " + e.Field
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// A WriteError is a failure that [Options].OnError gets: a write that failed for
// good, a corrupt line of the spool, or a wrong clock.
type WriteError struct {
	// Op and ID name the write. Both are empty if the failure is not about a write.
	Op Op
	ID string
	// Err is the cause:
	//   - an [*APIError] if the server refused the write
	//   - the last error, wrapped, if the write was given up after [Options].RetryFor
	//   - the error of [Client.TrackEvent] if the event of a traced call could not
	//     be queued
	//   - an error that wraps [ErrSpoolCorrupt] or [ErrWrongClock]
	Err error
}

func (e WriteError) Error() string {
	if e.Op == "" {
		return e.Err.Error()
	}
	return string(e.Op) + " " + e.ID + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e WriteError) Unwrap() error { return e.Err }

// Is reports whether the code is that of the target, if the target is
// [ErrIDTaken] or [ErrEventDeleted].
func (e *APIError) Is(target error) bool {
	return target == ErrIDTaken && e.Code == codeIDTaken || target == ErrEventDeleted && e.Code == codeEventDeleted
}

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
	return !errors.As(err, &refusal) || isTransient(refusal.Status)
}

// withoutDetail returns the text of the error without the server's detail, which
// may quote contents of events.
func withoutDetail(err error) string {
	var refusal *APIError
	if !errors.As(err, &refusal) || refusal.Status < 400 { // this library wrote the detail of a redirect
		return err.Error()
	}
	return (&APIError{Status: refusal.Status, Code: refusal.Code, Field: refusal.Field}).Error()
}

func hasStatus(err error, status int) bool {
	var refusal *APIError
	return errors.As(err, &refusal) && refusal.Status == status
}
