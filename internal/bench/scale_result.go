package bench

// ScaleReport is the cost of writes and queries against the size of the hot
// table, as it is written to JSON. All times are in the units that their names
// end in.
type ScaleReport struct {
	Machine Machine `json:"machine"`
	// Days is the time before the run that the rows are spread over.
	Days  int         `json:"days"`
	Sizes []ScaleSize `json:"sizes"`
}

// ScaleSize is what was measured at one size.
type ScaleSize struct {
	// Rows of the hot table, one for each event, before anything was changed.
	Rows int `json:"rows"`
	// FillSeconds is of generating and inserting the rows, MergeSeconds of
	// merging each month into one part.
	FillSeconds  float64 `json:"fill_seconds"`
	MergeSeconds float64 `json:"merge_seconds"`
	// DiskBytes and Parts are of the merged hot table.
	DiskBytes int64 `json:"disk_bytes"`
	Parts     int   `json:"parts"`
	// Queries are measured on the merged table, and again after ChangedUpdates
	// and ChangedDeletes of random rows of the last 30 days.
	ChangedUpdates int          `json:"changed_updates"`
	ChangedDeletes int          `json:"changed_deletes"`
	Queries        []ScaleQuery `json:"queries"`
	Writes         []ScaleWrite `json:"writes"`
}

// The kinds of writes of a [ScaleWrite].
const (
	// ScaleDelete is of random rows.
	ScaleDelete = "delete"
	// ScaleUpdateRecent is of events that were created just before, whose rows
	// the consumer holds.
	ScaleUpdateRecent = "update_recent"
	// ScaleUpdateCold is of random rows that the consumer never held.
	ScaleUpdateCold = "update_cold"
)

// ScaleWrite is one kind of write, through the whole pipeline: the median of
// some rounds, which come after one that does not count.
type ScaleWrite struct {
	Name   string `json:"name"`
	Writes int    `json:"writes"`
	// AckedSeconds is until the last acknowledgement, VisibleSeconds until all
	// is applied and readable, both from the first request.
	AckedSeconds   float64 `json:"acked_seconds"`
	VisibleSeconds float64 `json:"visible_seconds"`
	// LookupSeconds is the time of the consumer's queries for core rows,
	// LookupQueries their number.
	LookupSeconds float64 `json:"lookup_seconds"`
	LookupQueries float64 `json:"lookup_queries"`
	// RoundSeconds are the VisibleSeconds of all rounds that count.
	RoundSeconds []float64 `json:"round_seconds"`
}

// MicrosPerWrite is the time until visible of one write's share.
func (w *ScaleWrite) MicrosPerWrite() float64 { return 1e6 * w.VisibleSeconds / float64(w.Writes) }

// WritesPerSecond is the rate until everything was visible.
func (w *ScaleWrite) WritesPerSecond() float64 { return float64(w.Writes) / w.VisibleSeconds }

// The queries of a [ScaleQuery].
const (
	// ScaleErrors counts the errors of one event name in 7 days.
	ScaleErrors = "errors_7d"
	// ScaleLatency is the 95th percentile of latency by event name and
	// conversation in a day.
	ScaleLatency = "latency_1d"
	// ScaleSession is one conversation in time order, its time unknown.
	ScaleSession = "session"
	// ScaleTop is the conversations with the highest error rate in 7 days.
	ScaleTop = "top_7d"
)

// ScaleQuery is one query through the HTTP API.
type ScaleQuery struct {
	Name    string     `json:"name"`
	Clean   ScaleTimes `json:"clean"`
	Changed ScaleTimes `json:"changed"`
}

// ScaleTimes are of several runs of a query.
type ScaleTimes struct {
	BestMillis   float64 `json:"best_ms"`
	MedianMillis float64 `json:"median_ms"`
}
