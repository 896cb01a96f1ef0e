// Package kafka speaks Kafka: it makes and checks the topics, produces writes,
// consumes them as a member of a group, tells when a write is applied, keeps
// the dead letters, and runs the embedded broker. The brokers are the same to
// all of it: Apache Kafka and the embedded one pass the same tests.
package kafka
