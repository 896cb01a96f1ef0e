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
	// ErrQueueFull is returned by a write that finds no room in the queue, at
	// once with [Options].FailWhenFull, else when its context ends first.
	ErrQueueFull = errors.New("sluice: the queue is full")
	// ErrSpoolInUse is returned by [New] when another client, of this process
	// or another, has the spool directory open.
	ErrSpoolInUse = errors.New("sluice: the spool directory is in use")
	// ErrIDTaken says that the create of an id of the caller's own had no effect,
	// as there is an event of that id. [errors.Is] finds it in the [APIError]
	// that [Options].OnError gets where the client waits for writes to be applied
	// ([Options].WaitApplied). A create that the client may have sent before
	// counts as applied instead.
	ErrIDTaken = errors.New("sluice: the id is taken")
	// ErrEventDeleted says in the same way that a create or update had no effect,
	// as its event was deleted.
	ErrEventDeleted = errors.New("sluice: the event was deleted")
	// ErrSpoolCorrupt is what the error callback gets for each line of the
	// spool that is torn or whose checksum is wrong.
	ErrSpoolCorrupt = errors.New("sluice: spool_corrupt")
	// ErrWrongClock is what the error callback gets, once, where the server's
	// answers show that this machine's clock is wrong. Its text says how far, and
	// what to do. It may come from a read's goroutine.
	ErrWrongClock = errors.New("sluice: the clock of this machine is wrong")
)

// CodeUnknownEvent is the code of the [APIError] for an event that is not
// there, or was deleted.
const CodeUnknownEvent = "unknown_event"

const (
	codeIDTaken      = "id_taken"
	codeEventDeleted = "event_deleted"
	// codeNotYetApplied: the time of a wait is over.
	codeNotYetApplied = "not_yet_applied"
)

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

// A WriteError is a write that will not be tried again, a line of the spool
// that cannot be read, or a clock that is wrong. It is what [Options].OnError gets.
type WriteError struct {
	// Op and ID name the write. Both are empty where it is about none.
	Op Op
	ID string
	// Err is an [*APIError] for what the server refused. For a write that was
	// given up after [Options].RetryFor it wraps the last error, and it wraps
	// [ErrSpoolCorrupt] for a line of the spool, [ErrWrongClock] for the clock. An event of [Client.Trace]
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

// Is reports whether the target is [ErrIDTaken] or [ErrEventDeleted], by the
// code.
func (e *APIError) Is(target error) bool {
	return target == ErrIDTaken && e.Code == codeIDTaken || target == ErrEventDeleted && e.Code == codeEventDeleted
}

// A foreignError is an [APIError] that is not Sluice's, as far as the answer
// shows: a proxy's.
type foreignError struct{ *APIError }

func (e *foreignError) Unwrap() error { return e.APIError }

// plain returns the error as callers know it.
func plain(err error) error {
	if foreign, ok := err.(*foreignError); ok { //nolint:errorlint // where it is wrapped, it may stay so
		return foreign.APIError
	}
	return err
}

// isTransient reports whether a status says by itself that it may go better the
// next time.
func isTransient(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return status >= http.StatusInternalServerError
}

// judgesWrite reports whether the code is one by which Sluice says that a write
// can never be. Other codes are about the request, its sender or the server.
func judgesWrite(code string) bool {
	switch code {
	case "invalid_json", "too_deep", "duplicate_field", "unknown_field", "invalid_type", "required",
		"invalid_value", "too_large", "immutable", "id_mismatch", CodeUnknownEvent, "bad_record",
		"unsupported_version", "unreadable_batch", "rejected_by_store", codeIDTaken, codeEventDeleted:
		return true
	}
	return false
}

// isFinal reports whether the error of a request with one write judges that
// write: Sluice does by its code, and anything by saying that it is too large.
func isFinal(err error) bool {
	if hasStatus(err, http.StatusRequestEntityTooLarge) {
		return true
	}
	var refusal *APIError
	return isSluices(err) && errors.As(err, &refusal) && judgesWrite(refusal.Code)
}

// isSluices reports whether the error is a problem of Sluice's own.
func isSluices(err error) bool {
	var foreign *foreignError
	var refusal *APIError
	return !errors.As(err, &foreign) && errors.As(err, &refusal)
}

// isOfTime reports whether the server refused the time of a write, which a
// minted id has.
func isOfTime(err error) bool {
	var refusal *APIError
	return errors.As(err, &refusal) && refusal.Code == "invalid_value" && (refusal.Field == "id" || refusal.Field == "timestamp")
}

// isHeld reports whether the error needs somebody to change something, rather
// than time.
func isHeld(err error) bool {
	var refusal *APIError
	return errors.Is(err, errBadAnswer) || errors.As(err, &refusal) && !isTransient(refusal.Status)
}

// mayHaveWritten reports whether a request that ended with the error may have
// put its writes into the log.
func mayHaveWritten(err error) bool {
	var refusal *APIError
	if errors.As(err, &refusal) {
		return refusal.Status >= http.StatusInternalServerError || refusal.Status == http.StatusRequestTimeout
	}
	var network *net.OpError
	return !errors.As(err, &network) || network.Op != "dial"
}

// retriable reports whether a read may go better the next time: not after a
// refusal by a server that is well.
func retriable(err error) bool {
	var refusal *APIError
	return !errors.As(err, &refusal) || isTransient(refusal.Status)
}

// withoutDetail is the text of the error, without what may quote contents.
func withoutDetail(err error) string {
	var refusal *APIError
	if !errors.As(err, &refusal) || refusal.Status < 400 { // whose detail is this library's
		return err.Error()
	}
	return (&APIError{Status: refusal.Status, Code: refusal.Code, Field: refusal.Field}).Error()
}

func hasStatus(err error, status int) bool {
	var refusal *APIError
	return errors.As(err, &refusal) && refusal.Status == status
}
