package sluice

import (
	"errors"
	"net/http"
	"strconv"
)

var (
	// ErrClosed is returned by every call after [Client.Close].
	ErrClosed = errors.New("sluice: the client is closed")
	// ErrQueueFull is returned by a write that finds no room in the queue, at
	// once with [Options].FailWhenFull, else when its context ends first.
	ErrQueueFull = errors.New("sluice: the queue is full")
	// ErrSpoolInUse is returned by [New] when another client, of this process
	// or another, has the spool directory open.
	ErrSpoolInUse = errors.New("sluice: the spool directory is in use")
	// ErrSpoolCorrupt is what the error callback gets for each line of the
	// spool that is torn or whose checksum is wrong.
	ErrSpoolCorrupt = errors.New("sluice: spool_corrupt")
)

// CodeUnknownEvent is the code of the [APIError] for an event that is not
// there, or was deleted.
const CodeUnknownEvent = "unknown_event"

// codeNotYetApplied: the time of a wait is over.
const codeNotYetApplied = "not_yet_applied"

// A FieldError says that a call was refused for one of its arguments. Nothing
// was queued or sent.
type FieldError struct {
	// Field is the name that the API has for it, such as conversation_id or
	// output_embeddings[7], or that of an option. It is empty where the write
	// as a whole is at fault.
	Field string
	// Reason is what is wrong with it.
	Reason string
	// Err is the cause, where there is one.
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

// An APIError is a refusal by the server.
type APIError struct {
	// Status is the HTTP status, of the answer or of one item of it.
	Status int `json:"status"`
	// Code is the server's word for it, such as [CodeUnknownEvent]; empty where
	// something other than Sluice answered, a proxy for one.
	Code string `json:"code"`
	// Detail says more, for people.
	Detail string `json:"detail"`
	// Field is the field or parameter meant, if it is about one.
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

// A WriteError is a write that will not be tried again, or a line of the spool
// that cannot be read. It is what [Options].OnError gets.
type WriteError struct {
	// Op and ID name the write. Both are empty for a line of the spool.
	Op Op
	ID string
	// Err is an [*APIError] for what the server refused. For a write that was
	// given up after [Options].RetryFor it wraps the last error, and it wraps
	// [ErrSpoolCorrupt] for a line of the spool. An event of [Client.Trace]
	// that could not be queued has the error that [Client.TrackEvent] returned.
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

// retriable reports whether it may go better the next time: every error is but
// the refusals of a server that is well.
func retriable(err error) bool {
	var refusal *APIError
	if errors.As(err, &refusal) {
		return refusal.Status == http.StatusTooManyRequests || refusal.Status >= http.StatusInternalServerError
	}
	return true
}
