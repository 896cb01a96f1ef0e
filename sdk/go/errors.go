package sluice

import (
	"errors"
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

// withoutDetail returns the text of the error without the server's detail, which
// may quote contents of events.
func withoutDetail(err error) string {
	var refusal *APIError
	if !errors.As(err, &refusal) || refusal.Status < 400 { // this library wrote the detail of a redirect
		return err.Error()
	}
	return (&APIError{Status: refusal.Status, Code: refusal.Code, Field: refusal.Field}).Error()
}
