// Package e2e holds the end-to-end tests: they build the sluice binary, run it
// as real processes with a real Kafka-protocol broker and a real ClickHouse,
// and compare what it answers with answers computed in plain Go from the same
// input. They use nothing of the pipeline's own code but event.NewID, which is
// what a client mints ids with.
//
// Tests that wait for most of their time run beside each other.
package e2e
