package sluice_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// If only a part of a line fits on the disk, the call returns an error, and the
// next line is intact. A file size limit of this process stands for the disk.
func TestSpoolOfAFullDisk(t *testing.T) {
	const variable = "SLUICE_TEST_FULL_DISK"
	if os.Getenv(variable) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSpoolOfAFullDisk$")
		cmd.Env = append(os.Environ(), variable+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1000, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	client := open(t, dead(), sluice.Options{SpoolDir: dir})
	e := event("c1")
	e.Input = strings.Repeat("x", 300)
	taken := 0
	for {
		if _, err := client.TrackEvent(context.Background(), e); err != nil {
			if !errors.Is(err, syscall.EFBIG) {
				t.Fatal(err)
			}
			break
		}
		taken++
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	mustTrack(t, client, e)
	abandon(client)

	api := new(fakeAPI)
	var reported errorLog
	client = open(t, api, sluice.Options{SpoolDir: dir, OnError: reported.add})
	mustFlush(t, client)
	if sent, errs := len(api.items()), reported.all(); sent != taken+1 || len(errs) != 0 || taken == 0 {
		t.Errorf("%d were taken, then one; %d were sent, and %v reported", taken, sent, errs)
	}
}
