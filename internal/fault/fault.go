// Package fault has the places at which a test build can be killed or stopped, and
// its clock that jumps. Only a build with the tag "faults" has them; in any other,
// [Point] does nothing and [Now] is [time.Now].
package fault

// The points, in the order in which a write passes them.
const (
	// ProduceBegun: the writes of a request were checked, and none was sent.
	ProduceBegun = "produce.begun"
	// ProduceSent: all were handed to the client, and none may be acknowledged.
	ProduceSent = "produce.sent"
	// ProduceAcked: all were acknowledged, and the request was not answered.
	ProduceAcked = "produce.acked"
	// BrokerSynced: the embedded broker has written and synced, and answered nobody.
	BrokerSynced = "broker.synced"
	// Polled: records were fetched, and nothing is done with them.
	Polled = "consume.polled"
	// Refused: the dead letters of a flush were sent, and no row is written.
	Refused = "consume.refused"
	// InsertBegun: nothing of a flush is written.
	InsertBegun = "insert.begun"
	// InsertOthers: all but the core rows of a flush are written.
	InsertOthers = "insert.others"
	// Inserted: all rows of a flush are written, and no offset is committed.
	Inserted = "consume.inserted"
	// Committed: the offsets of a flush are committed.
	Committed = "consume.committed"
	// Revoked: partitions were given up, and the group does not know.
	Revoked = "consume.revoked"
)

// APIPoints are passed by a process that serves the API.
func APIPoints() []string { return []string{ProduceBegun, ProduceSent, ProduceAcked} }

// ConsumerPoints are passed by a process that consumes.
func ConsumerPoints() []string {
	return []string{Polled, Refused, InsertBegun, InsertOthers, Inserted, Committed, Revoked}
}

// BrokerPoints are passed by the embedded broker.
func BrokerPoints() []string { return []string{BrokerSynced} }

// The variables that a test build reads.
const (
	// PointVariable is a point and the number of the pass at which the process
	// kills itself with SIGKILL, such as "consume.inserted:3", or, with ":stop"
	// after it, stops itself with SIGSTOP.
	PointVariable = "SLUICE_FAULT_POINT"
	// ClockVariable is by how much the process's clock jumps and how long after
	// its start, such as "-24h@2s".
	ClockVariable = "SLUICE_FAULT_CLOCK"
)
