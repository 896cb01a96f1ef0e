//go:build race

package e2e_test

// raceDetector is whether the tests, and so the binary, have the race detector.
const raceDetector = true

// raceFactor is by how much what bounds time and memory is then wider.
const raceFactor = 4
