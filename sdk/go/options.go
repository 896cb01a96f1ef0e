package sluice

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	// writeBytesMax is the maximum size of an encoded write. It is the server's limit.
	writeBytesMax = 1 << 20
	// The server's limits for one request.
	serverBatchWritesMax = 50_000
	serverBatchBytesMax  = 16 << 20
)

// Options are the options of a [Client]. The zero value is ready to use: a field
// that is zero has its default.
type Options struct {
	// URL is the address of the API, http or https. Default http://127.0.0.1:8080.
	URL string
	// APIKey is sent with every request. Default: none.
	APIKey string

	// A batch is sent when it has BatchWritesMax writes (default 500, at most
	// 50,000) or BatchBytesMax bytes (default 1 MiB, at most 16 MiB), when its
	// oldest write has waited for BatchAgeMax (default 100 ms), or on Flush.
	BatchWritesMax int
	BatchBytesMax  int
	BatchAgeMax    time.Duration

	// The queue holds at most QueueWritesMax writes (default 10,000) and
	// QueueBytesMax bytes of encoded writes (default 64 MiB). A write counts until
	// it is answered, including writes that were sent and writes in the spool.
	QueueWritesMax int
	QueueBytesMax  int
	// FailWhenFull makes writes fail with [ErrQueueFull] when the queue is
	// full. By default they wait for room until their context ends.
	FailWhenFull bool

	// RetryFor is how long a write is retried, from its first attempt. The write
	// is then given up and reported to OnError. Default 0: no limit.
	RetryFor time.Duration
	// WaitApplied has the server answer each batch when the batch is applied, or
	// after this time: 1 to 30 s, rounded up to whole seconds. OnError then also
	// gets writes that had no effect: [ErrIDTaken], [ErrEventDeleted],
	// [CodeUnknownEvent]. It slows sending down, because one batch is sent at a
	// time. Default 0: the server answers a batch when it is in the log.
	WaitApplied time.Duration
	// RequestTimeout bounds one request and its answer. A read with [Wait] gets
	// the wait in addition. Default 30 s.
	RequestTimeout time.Duration
	// Gzip compresses bodies of 1 KiB and more. It saves bandwidth and costs CPU
	// time. Default false.
	Gzip bool

	// SpoolDir is a directory that keeps each write until it is answered, so that
	// no write is lost when the process dies: the next client that opens the
	// directory sends the unanswered writes. New makes the directory if it does not
	// exist. One client at a time can have it open. Default none: writes are only
	// in memory.
	SpoolDir string

	// Strict refuses, with a [*FieldError], a write that is too large or whose
	// input, output or metadata does not encode as JSON. If it is false, NaN,
	// functions, channels and cyclic values become text, and a value that is too
	// large is cut and marked sluice_truncated. Traced calls are never strict.
	// Default false.
	Strict bool

	// TraceEventName is the event name of [Client.Trace]. Default event_a.
	TraceEventName string

	// OnError is called for every write that failed for good. The client's
	// goroutine calls it, one call at a time, before a Flush that waits for the
	// write returns. It must not block, so it must not use the client. Two calls
	// come from other goroutines: [Client.Trace] calls OnError if it cannot queue
	// its event, and a read calls it if the server's answer shows that this
	// machine's clock is wrong ([ErrWrongClock]). Default: a warning is logged.
	OnError func(WriteError)
	// Logger gets the warnings and errors. They never have contents of events.
	// Default [slog.Default].
	Logger *slog.Logger
	// CAFile is a PEM file of certificate authorities to trust in addition to the
	// system's. It cannot be set together with HTTPClient. Default: none.
	CAFile string
	// HTTPClient makes the requests, for proxies, certificates or tests. Its
	// Timeout applies in addition to RequestTimeout. Its CheckRedirect does not
	// apply: the client follows only a 307 or 308 to the same server. Default: a
	// client that uses HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
	HTTPClient *http.Client
}

// Validate checks the options. The error joins a [*FieldError] for each wrong
// option.
func (o *Options) Validate() error {
	var errs []error
	check := func(ok bool, field, reason string) {
		if !ok {
			errs = append(errs, &FieldError{Field: field, Reason: reason})
		}
	}
	if o.URL != "" {
		u, err := url.Parse(o.URL)
		check(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.RawQuery == "" && u.Fragment == "",
			"URL", "must be an address such as http://127.0.0.1:8080")
	}
	check(!strings.ContainsFunc(o.APIKey, func(r rune) bool { return r <= ' ' || r > '~' }),
		"APIKey", "must be printable ASCII")
	check(o.BatchWritesMax >= 0 && o.BatchWritesMax <= serverBatchWritesMax, "BatchWritesMax", "must be 1 to 50,000, or 0 for the default")
	check(o.BatchBytesMax >= 0 && o.BatchBytesMax <= serverBatchBytesMax, "BatchBytesMax", "must be 1 byte to 16 MiB, or 0 for the default")
	check(o.BatchAgeMax >= 0, "BatchAgeMax", "must not be negative")
	check(o.QueueWritesMax >= 0, "QueueWritesMax", "must not be negative")
	check(o.QueueBytesMax >= 0, "QueueBytesMax", "must not be negative")
	check(o.RetryFor >= 0, "RetryFor", "must not be negative")
	check(o.WaitApplied == 0 || o.WaitApplied >= waitMin && o.WaitApplied <= waitMax, "WaitApplied", "must be 1 to 30 s, or 0 for none")
	check(o.RequestTimeout >= 0, "RequestTimeout", "must not be negative")
	check(o.CAFile == "" || o.HTTPClient == nil, "CAFile", "cannot be set together with HTTPClient")
	check(len(o.TraceEventName) <= eventNameBytesMax, "TraceEventName", "is longer than 128 bytes")
	return errors.Join(errs...)
}

// authorities returns those of the system and of CAFile, or nil without CAFile.
func (o *Options) authorities() (*x509.CertPool, error) {
	if o.CAFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, &FieldError{Field: "CAFile", Reason: "cannot be read", Err: err}
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's certificate authorities: %w", err)
	}
	if !pool.AppendCertsFromPEM(text) {
		return nil, &FieldError{Field: "CAFile", Reason: "has no certificate in PEM"}
	}
	return pool, nil
}

// withDefaults fills in what is not set.
func (o Options) withDefaults(authorities *x509.CertPool) Options {
	o.URL = strings.TrimRight(cmp.Or(o.URL, "http://127.0.0.1:8080"), "/")
	o.BatchWritesMax = cmp.Or(o.BatchWritesMax, 500)
	o.BatchBytesMax = cmp.Or(o.BatchBytesMax, 1<<20)
	o.BatchAgeMax = cmp.Or(o.BatchAgeMax, 100*time.Millisecond)
	o.QueueWritesMax = cmp.Or(o.QueueWritesMax, 10_000)
	o.QueueBytesMax = cmp.Or(o.QueueBytesMax, 64<<20)
	o.WaitApplied = (o.WaitApplied + time.Second - 1).Truncate(time.Second)
	o.RequestTimeout = cmp.Or(o.RequestTimeout, 30*time.Second)
	o.TraceEventName = cmp.Or(o.TraceEventName, "event_a")
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.HTTPClient == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.WriteBufferSize = 64 << 10 // a batch is up to 1 MiB
		if authorities != nil {
			transport.TLSClientConfig = &tls.Config{RootCAs: authorities, MinVersion: tls.VersionTLS12}
		}
		o.HTTPClient = &http.Client{Transport: transport}
	}
	return o
}
