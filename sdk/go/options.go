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
	// writeBytesMax is the longest write as encoded, which is the server's limit.
	writeBytesMax = 1 << 20
	// Limits of the server's for one request.
	serverBatchWritesMax = 50_000
	serverBatchBytesMax  = 16 << 20
)

// Options are the options of a [Client]. The zero value is ready to use: each
// field says what its zero means.
type Options struct {
	// URL is the address of the API, http or https. Default http://127.0.0.1:8080.
	URL string
	// APIKey is sent with every request. Default none.
	APIKey string

	// A batch is sent when it has BatchWritesMax writes (default 500, at most
	// 50,000) or BatchBytesMax bytes (default 1 MiB, at most 16 MiB), when its
	// oldest write has waited for BatchAgeMax (default 100 ms), or on Flush.
	BatchWritesMax int
	BatchBytesMax  int
	BatchAgeMax    time.Duration

	// The queue holds at most QueueWritesMax writes (default 10,000) and
	// QueueBytesMax bytes of them as encoded (default 64 MiB). What was sent
	// counts until it is answered, and so does what is in the spool.
	QueueWritesMax int
	QueueBytesMax  int
	// FailWhenFull makes writes fail with [ErrQueueFull] when the queue is
	// full. By default they wait for room until their context ends.
	FailWhenFull bool

	// RetryFor is how long a write is tried, from its first time; it is then
	// given up and reported. Default for ever.
	RetryFor time.Duration
	// WaitApplied has the server answer each batch only once it is applied, or
	// after this time: 1 to 30 s, rounded up to whole seconds. OnError is then
	// also told of writes that had no effect: [ErrIDTaken], [ErrEventDeleted],
	// [CodeUnknownEvent]. It slows sending down, as one batch is sent at a time.
	// Default 0: a batch is answered when it is in the log.
	WaitApplied time.Duration
	// RequestTimeout bounds one request with its answer; a read that waits gets
	// its wait on top. Default 30 s.
	RequestTimeout time.Duration
	// Gzip compresses bodies of 1 KiB and more, which spares bandwidth and costs
	// CPU time. Default off.
	Gzip bool

	// SpoolDir is a directory, made if need be, that keeps each write until it
	// was answered, so that none is lost when the process dies: the next client
	// that opens it sends the rest. One client at a time can have it open.
	// Default none: writes are in memory alone.
	SpoolDir string

	// Strict refuses a write, with a [*FieldError], whose input, output or metadata
	// does not encode as JSON, or that is too large. By default NaN, functions,
	// channels and what is within itself become text, and what is too large is cut
	// and says so. Traced calls always do that. Default off.
	Strict bool

	// TraceEventName is the event name of [Client.Trace]. Default event_a.
	TraceEventName string

	// OnError is told of every write that is not tried again. It is called by
	// the client's own goroutine, one call at a time, before a Flush that waits
	// for the write returns. It must not block, and so not use the client. A
	// [Client.Trace] that cannot queue its event calls it as well, from where
	// it was called, and a read whose answer shows that this machine's clock is
	// wrong ([ErrWrongClock]) from where that was. Default: a warning is logged.
	OnError func(WriteError)
	// Logger gets the warnings, which never hold contents. Default [slog.Default].
	Logger *slog.Logger
	// CAFile is a PEM file of certificate authorities that are trusted beside the
	// system's. It cannot be set together with HTTPClient. Default none.
	CAFile string
	// HTTPClient makes the requests, for proxies, certificates or tests. Its
	// Timeout applies beside RequestTimeout, its CheckRedirect does not: a 307 or
	// 308 to the same server is followed, no other redirect is. Default: one of
	// its own, which heeds HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
	HTTPClient *http.Client
}

// Validate reports everything that is wrong with the options, each as a
// [*FieldError] that names the field.
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
