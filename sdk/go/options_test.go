package sluice_test

import (
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

func TestVectorsOfOptions(t *testing.T) {
	var vectors struct {
		Options []struct {
			Option string
			Value  any
			Valid  bool
		}
	}
	readVectors(t, &vectors)
	if len(vectors.Options) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Options {
		number, _ := v.Value.(float64)
		text, _ := v.Value.(string)
		var o sluice.Options
		switch v.Option {
		case "batch_bytes_max":
			o.BatchBytesMax = int(number)
		case "batch_writes_max":
			o.BatchWritesMax = int(number)
		case "queue_writes_max":
			o.QueueWritesMax = int(number)
		case "queue_bytes_max":
			o.QueueBytesMax = int(number)
		case "wait_applied":
			o.WaitApplied = time.Duration(number) * time.Second
		case "url":
			o.URL = text
		case "api_key":
			o.APIKey = text
		default:
			t.Fatalf("the option %s", v.Option)
		}
		if err := o.Validate(); (err == nil) != v.Valid {
			t.Errorf("%s of %v: %v", v.Option, v.Value, err)
		}
	}
}

func TestCAFile(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []sluice.Options{
		{CAFile: empty}, {CAFile: empty + ".missing"}, {CAFile: empty, HTTPClient: new(http.Client)},
	} {
		client, err := sluice.New(o)
		var refused *sluice.FieldError
		if client != nil || !errors.As(err, &refused) || refused.Field != "CAFile" {
			t.Errorf("%v: the error is %v", o.CAFile, err)
		}
	}
}

func TestWarningsByDefault(t *testing.T) {
	api := &fakeAPI{answer: func(n int, _ request) answer {
		if n == 0 {
			return unavailable()
		}
		return answer{status: 207, results: []string{refusedItem(422, "invalid_value")}}
	}}
	var log strings.Builder
	client := open(t, api, sluice.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	e := event("c1")
	e.ID, e.Input = "order-1", "confidential"
	mustTrack(t, client, e)
	mustFlush(t, client)
	abandon(client)
	for _, want := range []string{`msg="write refused" op=create id=order-1 error=`, "422 invalid_value", `msg="writes not acknowledged, trying again"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	if strings.Contains(log.String(), "confidential") {
		t.Error("the log has contents")
	}
}

func TestOptions(t *testing.T) {
	for field, o := range map[string]sluice.Options{
		"URL":            {URL: "localhost:8080"},
		"APIKey":         {APIKey: "a\nb"},
		"BatchWritesMax": {BatchWritesMax: 50_001},
		"BatchBytesMax":  {BatchBytesMax: -1},
		"BatchAgeMax":    {BatchAgeMax: -1},
		"QueueWritesMax": {QueueWritesMax: -1},
		"QueueBytesMax":  {QueueBytesMax: -1},
		"RetryFor":       {RetryFor: -1},
		"RequestTimeout": {RequestTimeout: -1},
		"WaitApplied":    {WaitApplied: 31 * time.Second},
		"TraceEventName": {TraceEventName: strings.Repeat("x", 129)},
	} {
		client, err := sluice.New(o)
		var refused *sluice.FieldError
		if client != nil || !errors.As(err, &refused) || refused.Field != field {
			t.Errorf("%s: the error is %v", field, err)
		}
	}
	err := (&sluice.Options{QueueWritesMax: -1, RetryFor: -1}).Validate()
	if err == nil || !strings.Contains(err.Error(), "QueueWritesMax") || !strings.Contains(err.Error(), "RetryFor") {
		t.Errorf("two mistakes are %v", err)
	}
}
