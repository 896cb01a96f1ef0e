package query

// Retention asks, of the subjects that did something in a period, how many did something in
// each period from that one on.
type Retention struct {
	// Filter narrows the events of both.
	Filter
	// Did and Returned choose the events of each by what is not about their time or
	// conversation. A subject that did something in several periods counts in each.
	Did, Returned Filter
	Subject       Subject
	// PeriodSeconds are the beginnings of the periods in Unix seconds, ascending. The first
	// is not after the filter's time.
	PeriodSeconds []int64
}

// RetentionRow has the subjects that did something in one period.
type RetentionRow struct {
	// Subjects is how many there are.
	Subjects uint64
	// Returned has how many of them have an event of Retention.Returned in the period itself,
	// whether before or after the other event, and in each period after it.
	Returned []uint64
}
