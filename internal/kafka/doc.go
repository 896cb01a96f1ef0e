// Package kafka speaks Kafka: it creates and checks the topics, produces writes,
// consumes them as a member of a consumer group, tells when a write is applied,
// and keeps the dead letters. It does not know which broker it talks to: Apache
// Kafka and the embedded one (package broker) pass the same tests.
package kafka
