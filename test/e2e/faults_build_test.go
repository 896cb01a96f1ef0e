//go:build faults

package e2e_test

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// buildTags are those of the program that the tests run: it can be killed at
// the points of package fault.
const buildTags = "faults"

// size is how much of the fault suite is run.
type size struct {
	// goKills is how often each part that is Go is killed, otherKills how often
	// the brokers and ClickHouse are.
	goKills, otherKills int
	// slowReaders and askers are how many read at once, for readTime.
	slowReaders, askers int
	readTime            time.Duration
}

// suiteSize is set by make faults.
func suiteSize(t *testing.T) size {
	t.Helper()
	switch of := os.Getenv("SLUICE_FAULTS"); of {
	case "", "short":
		return size{goKills: 100, otherKills: 25, slowReaders: 200, askers: 10, readTime: 15 * time.Second}
	case "smoke":
		return size{goKills: 24, otherKills: 3, slowReaders: 50, askers: 5, readTime: 5 * time.Second}
	case "full":
		return size{goKills: 250, otherKills: 50, slowReaders: 1000, askers: 50, readTime: time.Minute}
	case "release":
		return size{goKills: 3000, otherKills: 500, slowReaders: 1000, askers: 50, readTime: 5 * time.Minute}
	default:
		t.Fatalf("SLUICE_FAULTS=%s is none of smoke, short, full and release", of)
		return size{}
	}
}

// newRandom is what decides at random in a test. SLUICE_FAULTS_SEED repeats the
// decisions of a run that printed it.
func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SLUICE_FAULTS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SLUICE_FAULTS_SEED: %v", err)
		}
	}
	t.Logf("SLUICE_FAULTS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// upTo is a random time below the bound.
func upTo(random *rand.Rand, bound time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(bound)))
}
