package api

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
)

// Defaults of [Config].
const (
	DefaultAddr               = "127.0.0.1:8080"
	DefaultBodyBytesMax       = 1 << 20
	DefaultBatchBytesMax      = 16 << 20
	DefaultBatchItemsMax      = 50_000
	DefaultInFlightBytesMax   = 256 << 20
	DefaultAnswerBytesMax     = 64 << 20
	DefaultConnectionsMax     = 4096
	DefaultHeaderBytesMax     = 16 << 10
	DefaultPageEventsMax      = 1000
	DefaultPageBytesMax       = 64 << 20
	DefaultPageReadsMax       = 4
	DefaultRowsMax            = 10_000
	DefaultSQLBytesMax        = 64 << 10
	DefaultSQLAnswersMax      = 16
	DefaultSQLAnswerTimeout   = 10 * time.Minute
	DefaultBucketsMax         = 10_000
	DefaultQuantilesMax       = 16
	DefaultMetadataFiltersMax = 16
	DefaultReceiptsMax        = 100
	DefaultWaitMax            = 30 * time.Second
	DefaultAfterWait          = 5 * time.Second
	DefaultRetryAfter         = time.Second
	DefaultQueryTimeout       = 40 * time.Second
	DefaultAnalyticsQueue     = 100
	DefaultAnalyticsWait      = 10 * time.Second
	DefaultPageTimeout        = 30 * time.Minute
	DefaultAnswerWait         = 10 * time.Second
	DefaultAnswerStallTimeout = 30 * time.Second
	DefaultReadyTimeout       = 2 * time.Second
	DefaultHeaderTimeout      = 5 * time.Second
	DefaultReadTimeout        = 30 * time.Second
	DefaultBatchReadTimeout   = 60 * time.Second
	DefaultInflateTimeout     = 15 * time.Second
	DefaultDrainBytesMax      = 256 << 20
	DefaultDrainTimeout       = 30 * time.Second
	DefaultDrainIdleTimeout   = 5 * time.Second
	DefaultWriteTimeout       = 90 * time.Second
	DefaultIdleTimeout        = 2 * time.Minute
	DefaultShutdownTimeout    = 15 * time.Second

	DefaultAnswerBytesPerSecondMin = 8 << 10
)

// AnswerBytesLeast is the least Config.AnswerBytesMax: half of it is enough to
// read an event of the largest size, and to send it.
const AnswerBytesLeast = 16 << 20

// inflatersSingle and inflatersBatch are how many bodies of single writes and of
// batches are inflated at once.
const (
	inflatersSingle = 2
	inflatersBatch  = 1
)

// InflateBytes is the memory that a [Server] holds to inflate compressed
// bodies, beside Config.InFlightBytesMax.
const InflateBytes = (inflatersSingle + inflatersBatch) * body.InflaterBytes

// Config says where a [Server] listens and what it accepts. The zero value of
// a field stands for its default, the constant of the same name.
type Config struct {
	// Addr is the TCP address to listen on, host:port; port 0 chooses a free
	// one. Default: [DefaultAddr]. [CheckBind] must allow it.
	Addr string
	// Keys are the API keys. Where it is set, keys are demanded on every
	// address, also on loopback and also while the file holds none. Default:
	// none.
	Keys *KeyStore
	// Insecure allows an address other than loopback without keys.
	Insecure bool
	// CORSOrigins are the origins whose pages may use the API from a browser, as
	// browsers send them, such as https://app.example. [AnyOrigin] allows all, and
	// needs Keys. On a server without keys on loopback, their pages may write too.
	// Default: none.
	CORSOrigins []string
	// EventNames are the event names that writes may use; one that ends in "*" is a
	// pattern. Default: event.DefaultEventNames.
	EventNames []string
	// EventNamesMax bounds the distinct names that patterns let in, until the
	// process ends. Default: event.DefaultEventNamesMax.
	EventNamesMax int

	// BodyBytesMax bounds the body of a single write and each item of a batch,
	// after inflation.
	BodyBytesMax int
	// BatchBytesMax bounds the body of a batch, after inflation and before.
	BatchBytesMax int
	// BatchItemsMax bounds the items of a batch.
	BatchItemsMax int
	// InFlightBytesMax bounds the memory of all requests: of the bodies being
	// read or waiting for the log's acknowledgement, and of the answers. A body
	// beyond it is answered 503 at once, which bounds the server's memory while
	// the log is slow or away. Beside it, what inflates compressed bodies holds
	// up to [InflateBytes].
	InFlightBytesMax int64
	// AnswerBytesMax is how much of InFlightBytesMax is for answers, the rest
	// being for bodies: one half for events, the other for the rows of analytics.
	// A read beyond it waits for AnswerWait.
	AnswerBytesMax int64
	// ConnectionsMax bounds open connections; further ones wait in the kernel.
	ConnectionsMax int
	// HeaderBytesMax bounds the request line and headers.
	HeaderBytesMax int

	// PageEventsMax bounds the events of one page of a conversation.
	PageEventsMax int
	// PageBytesMax bounds the JSON of one page of a conversation. A page ends
	// early, with a cursor, after the part that reaches it.
	PageBytesMax int
	// PageReadsMax bounds the parts of pages that are read from the database at
	// once. Others wait for AnswerWait.
	PageReadsMax int
	// RowsMax bounds the rows that an analytics query may ask for.
	RowsMax int
	// SQLBytesMax bounds the text of a query in SQL.
	SQLBytesMax int
	// SQLAnswersMax bounds the queries in SQL that wait, run or are being sent. The
	// database keeps an answer on its disk until it is sent. Others wait for AnswerWait.
	SQLAnswersMax int
	// SQLAnswerTimeout is how long a reader may take for the answer to a query in SQL.
	SQLAnswerTimeout time.Duration
	// BucketsMax bounds the buckets that a time series may span.
	BucketsMax int
	// QuantilesMax bounds the quantiles of one query.
	QuantilesMax int
	// MetadataFiltersMax bounds the metadata filters of one query.
	MetadataFiltersMax int
	// ReceiptsMax bounds the receipts that one read waits for.
	ReceiptsMax int

	// WaitMax bounds "Prefer: wait".
	WaitMax time.Duration
	// AfterWait is how long a read with "after" waits when it states no wait.
	AfterWait time.Duration
	// RetryAfter is the Retry-After of a 503, rounded up to seconds.
	RetryAfter time.Duration
	// QueryTimeout bounds one read of the database, of which a page can need
	// several. It should be above the database's own bound, whose error says that
	// the query took too long, and not only that there was no answer.
	QueryTimeout time.Duration
	// PageTimeout is how long a page of a conversation may take. It ends early,
	// with a cursor, after the part that is being sent then.
	PageTimeout time.Duration
	// AnswerWait is how long a read waits for memory, or for PageReadsMax; then it is answered 503, or
	// a page that has begun ends early, with a cursor.
	AnswerWait time.Duration
	// AnswerBytesPerSecondMin is the least rate at which a reader must take an
	// answer that is sent by the piece, on average, with AnswerStallTimeout in
	// advance. An answer that is taken slower is broken off.
	AnswerBytesPerSecondMin int
	// AnswerStallTimeout is how long a reader may take nothing: see
	// AnswerBytesPerSecondMin.
	AnswerStallTimeout time.Duration
	// AnalyticsQueriesMax is how many questions of analytics the database works on
	// at once. Default: the number of cores, at least 2.
	AnalyticsQueriesMax int
	// AnalyticsQueueMax is how many more may wait; those beyond are answered 429.
	// Default: [DefaultAnalyticsQueue].
	AnalyticsQueueMax int
	// AnalyticsWait is how long a question may wait; then it is answered 429. It is
	// the Retry-After of 429, rounded up to seconds. Default:
	// [DefaultAnalyticsWait].
	AnalyticsWait time.Duration
	// ReadyTimeout bounds the checks of /readyz.
	ReadyTimeout time.Duration
	// HeaderTimeout bounds the reading of a request's headers.
	HeaderTimeout time.Duration
	// ReadTimeout bounds the reading of a request, body included.
	ReadTimeout time.Duration
	// BatchReadTimeout is ReadTimeout for POST /events.
	BatchReadTimeout time.Duration
	// InflateTimeout bounds how long a compressed body waits to be inflated,
	// which is done to a few at once; then the request is answered 503.
	InflateTimeout time.Duration
	// DrainBytesMax is how much is read of a body that is not wanted, such as one
	// that is too large, so that a client that sends all of it before it looks for
	// an answer finds one. Nothing of it is kept. Beyond it, or beyond DrainTimeout
	// or a pause of DrainIdleTimeout, the connection is closed.
	DrainBytesMax    int64
	DrainTimeout     time.Duration
	DrainIdleTimeout time.Duration
	// WriteTimeout bounds a request from the end of its headers to the end of
	// its answer. It must leave room for ReadTimeout, InflateTimeout and
	// WaitMax, and for WaitMax, AnalyticsWait, AnswerWait and QueryTimeout, or the
	// answers of slow requests are cut off. A batch gets BatchReadTimeout more.
	// Default: [DefaultWriteTimeout], or the latter sum where that is more.
	WriteTimeout time.Duration
	// IdleTimeout closes connections without requests.
	IdleTimeout time.Duration
	// ShutdownTimeout bounds how long a stop waits for requests under way.
	ShutdownTimeout time.Duration

	// Now is the clock. Default: [time.Now].
	Now func() time.Time
}

// Validate reports everything that is wrong with the configuration, one error
// per field, joined. Zero values are valid: they stand for the defaults.
func (c Config) Validate() error {
	var errs []error
	d := c.withDefaults()
	if err := CheckBind(d.Addr, c.Keys != nil, c.Insecure); err != nil {
		errs = append(errs, fmt.Errorf("Addr: %w", err))
	}
	if err := (&event.Rules{EventNames: d.EventNames, EventNamesMax: d.EventNamesMax}).Validate(); err != nil {
		errs = append(errs, err)
	}
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"BodyBytesMax", int64(d.BodyBytesMax)},
		{"BatchBytesMax", int64(d.BatchBytesMax)},
		{"BatchItemsMax", int64(d.BatchItemsMax)},
		{"InFlightBytesMax", d.InFlightBytesMax},
		{"ConnectionsMax", int64(d.ConnectionsMax)},
		{"HeaderBytesMax", int64(d.HeaderBytesMax)},
		{"AnswerBytesMax", d.AnswerBytesMax},
		{"PageEventsMax", int64(d.PageEventsMax)},
		{"PageBytesMax", int64(d.PageBytesMax)},
		{"PageReadsMax", int64(d.PageReadsMax)},
		{"RowsMax", int64(d.RowsMax)},
		{"SQLBytesMax", int64(d.SQLBytesMax)},
		{"SQLAnswersMax", int64(d.SQLAnswersMax)},
		{"SQLAnswerTimeout", int64(d.SQLAnswerTimeout)},
		{"BucketsMax", int64(d.BucketsMax)},
		{"QuantilesMax", int64(d.QuantilesMax)},
		{"MetadataFiltersMax", int64(d.MetadataFiltersMax)},
		{"ReceiptsMax", int64(d.ReceiptsMax)},
		{"WaitMax", int64(d.WaitMax)},
		{"AfterWait", int64(d.AfterWait)},
		{"RetryAfter", int64(d.RetryAfter)},
		{"QueryTimeout", int64(d.QueryTimeout)},
		{"AnalyticsQueriesMax", int64(d.AnalyticsQueriesMax)},
		{"AnalyticsQueueMax", int64(d.AnalyticsQueueMax)},
		{"AnalyticsWait", int64(d.AnalyticsWait)},
		{"PageTimeout", int64(d.PageTimeout)},
		{"AnswerWait", int64(d.AnswerWait)},
		{"AnswerBytesPerSecondMin", int64(d.AnswerBytesPerSecondMin)},
		{"AnswerStallTimeout", int64(d.AnswerStallTimeout)},
		{"ReadyTimeout", int64(d.ReadyTimeout)},
		{"HeaderTimeout", int64(d.HeaderTimeout)},
		{"ReadTimeout", int64(d.ReadTimeout)},
		{"BatchReadTimeout", int64(d.BatchReadTimeout)},
		{"InflateTimeout", int64(d.InflateTimeout)},
		{"DrainBytesMax", d.DrainBytesMax},
		{"DrainTimeout", int64(d.DrainTimeout)},
		{"DrainIdleTimeout", int64(d.DrainIdleTimeout)},
		{"WriteTimeout", int64(d.WriteTimeout)},
		{"IdleTimeout", int64(d.IdleTimeout)},
		{"ShutdownTimeout", int64(d.ShutdownTimeout)},
	} {
		if f.value < 0 {
			errs = append(errs, fmt.Errorf("%s: must not be negative", f.name))
		}
	}
	if err := CheckOrigins(d.CORSOrigins, d.Keys != nil); err != nil {
		errs = append(errs, fmt.Errorf("CORSOrigins: %w", err))
	}
	if d.BodyBytesMax > d.BatchBytesMax {
		errs = append(errs, errors.New("BodyBytesMax: must not be above BatchBytesMax"))
	}
	if least := d.InFlightBytesLeast(); d.InFlightBytesMax < least {
		errs = append(errs, fmt.Errorf("InFlightBytesMax: must be at least %d for batches of this size and AnswerBytesMax", least))
	}
	if d.AnswerBytesMax < AnswerBytesLeast {
		errs = append(errs, fmt.Errorf("AnswerBytesMax: must be at least %d", AnswerBytesLeast))
	}
	if d.WriteTimeout < d.ReadTimeout+d.InflateTimeout+d.WaitMax {
		errs = append(errs, errors.New("WriteTimeout: must be at least ReadTimeout, InflateTimeout and WaitMax together"))
	}
	if d.WriteTimeout < d.readingMax() {
		errs = append(errs, errors.New("WriteTimeout: must be at least WaitMax, AnalyticsWait, AnswerWait and QueryTimeout together"))
	}
	return errors.Join(errs...)
}

// InFlightBytesLeast is the least InFlightBytesMax with which one batch of the
// largest size gets the memory that it needs, beside that for answers: for its
// body and the buffers that it was compressed in or outgrew, or for its body and
// what is made of its items.
func (c Config) InFlightBytesLeast() int64 {
	d := c.withDefaults()
	batch := int64(d.BatchBytesMax)
	return max(3*batch, batch+int64(d.BatchItemsMax)*itemBytes) + d.AnswerBytesMax
}

func (c Config) withDefaults() Config {
	c.Addr = cmp.Or(c.Addr, DefaultAddr)
	c.BodyBytesMax = cmp.Or(c.BodyBytesMax, DefaultBodyBytesMax)
	c.BatchBytesMax = cmp.Or(c.BatchBytesMax, DefaultBatchBytesMax)
	c.BatchItemsMax = cmp.Or(c.BatchItemsMax, DefaultBatchItemsMax)
	c.InFlightBytesMax = cmp.Or(c.InFlightBytesMax, DefaultInFlightBytesMax)
	c.ConnectionsMax = cmp.Or(c.ConnectionsMax, DefaultConnectionsMax)
	c.HeaderBytesMax = cmp.Or(c.HeaderBytesMax, DefaultHeaderBytesMax)
	c.AnswerBytesMax = cmp.Or(c.AnswerBytesMax, min(DefaultAnswerBytesMax, c.InFlightBytesMax/4))
	c.PageEventsMax = cmp.Or(c.PageEventsMax, DefaultPageEventsMax)
	c.PageBytesMax = cmp.Or(c.PageBytesMax, DefaultPageBytesMax)
	c.PageReadsMax = cmp.Or(c.PageReadsMax, DefaultPageReadsMax)
	c.RowsMax = cmp.Or(c.RowsMax, DefaultRowsMax)
	c.SQLBytesMax = cmp.Or(c.SQLBytesMax, DefaultSQLBytesMax)
	c.SQLAnswersMax = cmp.Or(c.SQLAnswersMax, DefaultSQLAnswersMax)
	c.SQLAnswerTimeout = cmp.Or(c.SQLAnswerTimeout, DefaultSQLAnswerTimeout)
	c.BucketsMax = cmp.Or(c.BucketsMax, DefaultBucketsMax)
	c.QuantilesMax = cmp.Or(c.QuantilesMax, DefaultQuantilesMax)
	c.MetadataFiltersMax = cmp.Or(c.MetadataFiltersMax, DefaultMetadataFiltersMax)
	c.ReceiptsMax = cmp.Or(c.ReceiptsMax, DefaultReceiptsMax)
	c.WaitMax = cmp.Or(c.WaitMax, DefaultWaitMax)
	c.AfterWait = cmp.Or(c.AfterWait, DefaultAfterWait)
	c.RetryAfter = cmp.Or(c.RetryAfter, DefaultRetryAfter)
	c.QueryTimeout = cmp.Or(c.QueryTimeout, DefaultQueryTimeout)
	c.AnalyticsQueriesMax = cmp.Or(c.AnalyticsQueriesMax, max(2, runtime.GOMAXPROCS(0)))
	c.AnalyticsQueueMax = cmp.Or(c.AnalyticsQueueMax, DefaultAnalyticsQueue)
	c.AnalyticsWait = cmp.Or(c.AnalyticsWait, DefaultAnalyticsWait)
	c.PageTimeout = cmp.Or(c.PageTimeout, DefaultPageTimeout)
	c.AnswerWait = cmp.Or(c.AnswerWait, DefaultAnswerWait)
	c.AnswerBytesPerSecondMin = cmp.Or(c.AnswerBytesPerSecondMin, DefaultAnswerBytesPerSecondMin)
	c.AnswerStallTimeout = cmp.Or(c.AnswerStallTimeout, DefaultAnswerStallTimeout)
	c.ReadyTimeout = cmp.Or(c.ReadyTimeout, DefaultReadyTimeout)
	c.HeaderTimeout = cmp.Or(c.HeaderTimeout, DefaultHeaderTimeout)
	c.ReadTimeout = cmp.Or(c.ReadTimeout, DefaultReadTimeout)
	c.BatchReadTimeout = cmp.Or(c.BatchReadTimeout, DefaultBatchReadTimeout)
	c.InflateTimeout = cmp.Or(c.InflateTimeout, DefaultInflateTimeout)
	c.DrainBytesMax = cmp.Or(c.DrainBytesMax, DefaultDrainBytesMax)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, DefaultDrainTimeout)
	c.DrainIdleTimeout = cmp.Or(c.DrainIdleTimeout, DefaultDrainIdleTimeout)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, max(DefaultWriteTimeout, c.readingMax()))
	c.IdleTimeout = cmp.Or(c.IdleTimeout, DefaultIdleTimeout)
	c.ShutdownTimeout = cmp.Or(c.ShutdownTimeout, DefaultShutdownTimeout)
	if c.EventNames == nil {
		c.EventNames = event.DefaultEventNames()
	}
	c.EventNamesMax = cmp.Or(c.EventNamesMax, event.DefaultEventNamesMax)
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// readingMax is how long a question may take until its answer begins.
func (c *Config) readingMax() time.Duration {
	return c.WaitMax + c.AnalyticsWait + c.AnswerWait + c.QueryTimeout
}
