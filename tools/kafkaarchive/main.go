// Kafkaarchive makes the archive of Apache Kafka's classes, loaded and
// verified, with which kafkatest's brokers start in half the time. It does
// nothing where the archive is.
package main

import (
	"fmt"
	"os"

	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

func main() {
	if err := kafkatest.Archive(); err != nil {
		// Brokers start without it too.
		fmt.Fprintf(os.Stderr, "kafkaarchive: %v\n", err)
	}
}
