package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/event"
)

// Codes of problems that are HTTP's own, beside those of [event.Code]. They
// are part of the HTTP contract: never rename one.
const (
	// CodeInvalidRequest: the request is malformed outside of its JSON: query
	// string, framing, or compressed data.
	CodeInvalidRequest event.Code = "invalid_request"
	// CodeUnauthorized: there is no API key, or one that is not known.
	CodeUnauthorized event.Code = "unauthorized"
	// CodeForbidden: the API key lacks the scope, or a browser sent the
	// request on behalf of another site.
	CodeForbidden event.Code = "forbidden"
	// CodeNotFound: there is no such resource.
	CodeNotFound event.Code = "not_found"
	// CodeMethodNotAllowed: the resource does not take the method.
	CodeMethodNotAllowed event.Code = "method_not_allowed"
	// CodeRequestTimeout: the body did not arrive in time.
	CodeRequestTimeout event.Code = "request_timeout"
	// CodeUnsupportedMediaType: Content-Type is none that the resource takes.
	CodeUnsupportedMediaType event.Code = "unsupported_media_type"
	// CodeUnsupportedEncoding: Content-Encoding is neither gzip nor zstd.
	CodeUnsupportedEncoding event.Code = "unsupported_encoding"
	// CodeInternal: a fault of the server's.
	CodeInternal event.Code = "internal"
	// CodeUnavailable: the log did not acknowledge in time, or the database did not answer.
	CodeUnavailable event.Code = "unavailable"
	// CodeWritesStopped: this process takes no writes any more; another one may.
	CodeWritesStopped event.Code = "writes_stopped"
	// CodeOverloaded: the bodies in flight, or the answers, use all the memory they may.
	CodeOverloaded event.Code = "overloaded"
	// CodeNotYetApplied: the write that a read was to wait for is not applied yet.
	CodeNotYetApplied event.Code = "not_yet_applied"
	// CodeTooManyQueries: too many questions of analytics are being asked, and
	// this one was not.
	CodeTooManyQueries event.Code = "too_many_queries"
	// CodeQueryTimeout: the database worked on the question longer than it may.
	CodeQueryTimeout event.Code = "query_timeout"
	// CodeQueryTooLarge: the question takes more memory or rows than it may.
	CodeQueryTooLarge event.Code = "query_too_large"
	// CodeInvalidQuery: the query in SQL is wrong.
	CodeInvalidQuery event.Code = "invalid_query"
	// CodeQueryNotAllowed: the query in SQL asks for more than the live views.
	CodeQueryNotAllowed event.Code = "query_not_allowed"
	// CodeSQLNotSetUp: there is no user of the database for queries in SQL, or one that
	// may do too much.
	CodeSQLNotSetUp event.Code = "sql_not_set_up"
)

// problem is an error with the status that it is answered with.
type problem struct {
	status int
	code   event.Code
	field  string
	detail string
	// written says that the write is in the log, with the id and receipt. createdBy
	// is the receipt of the create that won, zero where it is not known.
	written   bool
	id        string
	receipt   event.Receipt
	createdBy event.Receipt
	// cause is for the log only; nil where the caller is at fault.
	cause error
	// closes says that the rest of the body cannot be read, so that the
	// connection must go.
	closes bool
}

func (p *problem) Error() string { return p.detail }
func (p *problem) Unwrap() error { return p.cause }

// statusOf is the status of an [event.Error]. Codes that only the consumer
// gives are here as well, for writes that were waited for.
func statusOf(code event.Code) int {
	switch code {
	case event.CodeInvalidJSON, event.CodeTooDeep, event.CodeDuplicateField,
		event.CodeUnknownField, event.CodeInvalidType:
		return http.StatusBadRequest
	case event.CodeRequired, event.CodeInvalidValue, event.CodeImmutable,
		event.CodeIDMismatch, event.CodeRejectedByStore, event.CodeEventExpired:
		return http.StatusUnprocessableEntity
	case event.CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case event.CodeUnknownEvent:
		return http.StatusNotFound
	case event.CodeIDTaken, event.CodeEventDeleted:
		return http.StatusConflict
	case event.CodeBadRecord, event.CodeUnsupportedVersion, event.CodeUnreadableBatch:
		return http.StatusInternalServerError
	}
	return http.StatusInternalServerError
}

// titleOf is the summary of a code, the same in every problem of that code.
func titleOf(code event.Code) string {
	switch code {
	case event.CodeInvalidJSON:
		return "The body is not valid JSON"
	case event.CodeTooDeep:
		return "The JSON nests too deep"
	case event.CodeDuplicateField:
		return "A field is given twice"
	case event.CodeUnknownField:
		return "A field is not known"
	case event.CodeInvalidType:
		return "A field has the wrong type"
	case event.CodeRequired:
		return "A field is missing"
	case event.CodeInvalidValue:
		return "A value is not valid"
	case event.CodeTooLarge:
		return "A value or body is too large"
	case event.CodeImmutable:
		return "The field never changes"
	case event.CodeIDMismatch:
		return "The id does not match its event"
	case event.CodeUnknownEvent:
		return "There is no such event"
	case event.CodeIDTaken:
		return "There is an event with this id"
	case event.CodeEventDeleted:
		return "The event was deleted"
	case event.CodeEventExpired:
		return "The event is older than the retention"
	case event.CodeBadRecord, event.CodeUnsupportedVersion, event.CodeUnreadableBatch:
		return "The consumer could not read the write"
	case event.CodeRejectedByStore:
		return "The database refused the write"
	case CodeInvalidRequest:
		return "The request is malformed"
	case CodeUnauthorized:
		return "A valid API key is needed"
	case CodeForbidden:
		return "The request is not allowed"
	case CodeNotFound:
		return "There is no such resource"
	case CodeMethodNotAllowed:
		return "The resource does not take this method"
	case CodeRequestTimeout:
		return "The request did not arrive in time"
	case CodeUnsupportedMediaType:
		return "The content type is not supported"
	case CodeUnsupportedEncoding:
		return "The content encoding is not supported"
	case CodeUnavailable:
		return "A part of the service does not answer"
	case CodeWritesStopped:
		return "This process takes no more writes"
	case CodeOverloaded:
		return "The server has too much under way"
	case CodeNotYetApplied:
		return "The write is not applied yet"
	case CodeTooManyQueries:
		return "Too many questions are being asked"
	case CodeQueryTimeout:
		return "The query took too long"
	case CodeQueryTooLarge:
		return "The query takes too much memory"
	case CodeInvalidQuery:
		return "The query is not valid"
	case CodeQueryNotAllowed:
		return "The query asks for more than it may"
	case CodeSQLNotSetUp:
		return "SQL is not set up"
	}
	return "The server failed"
}

// asProblem says how an error of a handler is answered.
func asProblem(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	var e *event.Error
	if errors.As(err, &e) {
		return &problem{status: statusOf(e.Code), code: e.Code, field: e.Field, detail: e.Message}
	}
	if errors.Is(err, event.ErrWritesStopped) {
		return &problem{
			status: http.StatusServiceUnavailable, code: CodeWritesStopped,
			detail: "the log has moved on to a later generation, or was replaced, and this process was left on the earlier one; " +
				"the write may or may not be in the log; send it again with the same id, to another process",
		}
	}
	if errors.Is(err, event.ErrUnavailable) {
		return &problem{
			status: http.StatusServiceUnavailable, code: CodeUnavailable,
			detail: "the write was not acknowledged, and may or may not be in the log; send it again with the same id",
		}
	}
	return &problem{
		status: http.StatusInternalServerError, code: CodeInternal,
		detail: "the server failed; its log says more", cause: err,
	}
}

// storageProblem says how an error of the database is answered.
func storageProblem(err error) error {
	var p *problem
	if err == nil || errors.As(err, &p) {
		return err
	}
	if errors.Is(err, event.ErrQueryTooLarge) {
		return &problem{
			status: http.StatusUnprocessableEntity, code: CodeQueryTooLarge,
			detail: "the query takes more memory or rows than it may; narrow it",
		}
	}
	detail := "the database does not answer"
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, event.ErrQueryTimeout):
		detail = "the database did not answer in time"
	case errors.Is(err, event.ErrSchemaMissing):
		detail = `the database has no tables yet; "sluice migrate" or a consumer makes them`
	case errors.Is(err, event.ErrSchemaOld):
		detail = `the database's tables are older than this process; "sluice migrate" or a consumer brings them up to date`
	case errors.Is(err, event.ErrDatabaseOld):
		detail = "the database is older than the oldest version that works; the log of this process names both"
	}
	return &problem{status: http.StatusServiceUnavailable, code: CodeUnavailable, detail: detail, cause: err}
}

// questionProblem is storageProblem for questions about many events. One that
// the database worked on for too long is too large, as few run at once. A read of
// a few events never is: there it is the database that is slow.
func questionProblem(err error) error {
	if errors.Is(err, event.ErrQueryTimeout) {
		return &problem{
			status: http.StatusUnprocessableEntity, code: CodeQueryTimeout,
			detail: "the query did not finish in the time that it may take; narrow its time or filters",
		}
	}
	if errors.Is(err, event.ErrQueryTooLarge) {
		return &problem{
			status: http.StatusUnprocessableEntity, code: CodeQueryTooLarge,
			detail: "the query takes more memory or rows than it may; narrow its time or filters, ask for fewer rows, or group by something with fewer values",
		}
	}
	return storageProblem(err)
}

// searchProblem is questionProblem for a read that looks for events by several queries,
// so that its time may also be over between two of them. It returns other errors
// unchanged.
func (x *exchange) searchProblem(err error) error {
	if errors.Is(err, event.ErrQueryTimeout) || errors.Is(err, context.DeadlineExceeded) && x.r.Context().Err() == nil {
		return questionProblem(event.ErrQueryTimeout)
	}
	return err
}

func badRequest(format string) *problem {
	return &problem{status: http.StatusBadRequest, code: CodeInvalidRequest, detail: format}
}

func tooLarge(bytesMax int) *problem {
	return &problem{
		status: http.StatusRequestEntityTooLarge, code: event.CodeTooLarge,
		detail: "the body is longer than " + strconv.Itoa(bytesMax) + " bytes", closes: true,
	}
}

// appendProblem appends the body of RFC 9457.
func appendProblem(b []byte, p *problem) []byte {
	b = append(b, `{"type":"urn:sluice:problem:`...)
	b = append(b, p.code...)
	b = append(b, `","title":`...)
	b = appendString(b, titleOf(p.code))
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(p.status), 10)
	b = append(b, `,"detail":`...)
	b = appendString(b, p.detail)
	b = append(b, `,"code":"`...)
	b = append(b, p.code...)
	b = append(b, '"')
	if p.field != "" {
		b = append(b, `,"field":`...)
		b = appendString(b, p.field)
	}
	return append(appendPlace(b, p), "}\n"...)
}

// appendItemError appends the error of one item of a batch.
func appendItemError(b []byte, p *problem) []byte {
	b = append(b, `{"error":{"status":`...)
	b = strconv.AppendInt(b, int64(p.status), 10)
	b = append(b, `,"code":"`...)
	b = append(b, p.code...)
	b = append(b, `","detail":`...)
	b = appendString(b, p.detail)
	if p.field != "" {
		b = append(b, `,"field":`...)
		b = appendString(b, p.field)
	}
	return append(appendPlace(b, p), "}}"...)
}

// appendPlace appends the members that say where in the log a write is that is
// there and had no effect.
func appendPlace(b []byte, p *problem) []byte {
	if !p.written {
		return b
	}
	b = append(b, `,"id":`...)
	b = appendString(b, p.id)
	b = append(b, `,"receipt":"`...)
	b = p.receipt.AppendText(b)
	if p.createdBy != (event.Receipt{}) {
		b = append(b, `","created_by_receipt":"`...)
		b = p.createdBy.AppendText(b)
	}
	return append(b, '"')
}

// appendString appends s as a JSON string; bytes that are not UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s) // the error only tells of replaced bytes
	return b
}
