//go:build !faults

package e2e_test

// buildTags are those of the program that the tests run.
const buildTags = ""
