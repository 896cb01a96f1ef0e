package main

import (
	"bytes"
	"fmt"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/bench/workload"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// skewTable compares how evenly two keys spread the conversations that come with
// Sluice over the partitions, by the client's own choice of a partition.
func skewTable() string {
	const (
		window = 1000
		events = 15_777 // the whole corpus, once
	)
	from, err := newEvents(events, workload.Text, "")
	if err != nil {
		return err.Error()
	}
	keys := []struct {
		name string
		of   func(w *event.Write) string
	}{
		{"event id", func(w *event.Write) string { return w.ID.String() }},
		{"conversation", func(w *event.Write) string { return w.ConversationID }},
	}
	chosen := make([][]int, len(keys)) // by key, event
	choose := kgo.StickyKeyPartitioner(nil).ForTopic("")
	parser := body.Parser{Rules: &event.Rules{EventNames: event.DefaultEventNames()}}
	for i := range events {
		w, err := parser.ParseCreate(from.plan.AppendCreate(nil, i), time.Now())
		if err != nil {
			return err.Error()
		}
		for k, key := range keys {
			chosen[k] = append(chosen[k], choose.Partition(&kgo.Record{Key: []byte(key.of(&w))}, partitions))
		}
	}
	// fullest is the load of the fullest partition over the mean, of some events.
	fullest := func(of []int) float64 {
		var counts [partitions]int
		most := 0
		for _, p := range of {
			counts[p]++
			most = max(most, counts[p])
		}
		return float64(most) * partitions / float64(len(of))
	}
	rows := [][]string{{"key", "of all events", fmt.Sprintf("of %d in a row, mean", window), "… worst"}}
	for k, key := range keys {
		var sum, worst float64
		n := 0
		for i := 0; i+window <= events; i += window {
			f := fullest(chosen[k][i : i+window])
			sum, worst, n = sum+f, max(worst, f), n+1
		}
		rows = append(rows, []string{key.name, fmt.Sprintf("%.2f", fullest(chosen[k])), fmt.Sprintf("%.2f", sum/float64(n)), fmt.Sprintf("%.2f", worst)})
	}
	return markdown(rows)
}

// recordsTable compares the bytes of creates as JSON and as records.
func recordsTable() string {
	const batch = 1000
	rows := [][]string{{"bytes a create", "JSON, as sent", "Protobuf", "JSON, 1,000 by snappy", "Protobuf, 1,000 by snappy"}}
	for _, kind := range []struct {
		name     string
		events   int
		encoding workload.Encoding
	}{
		{"text", 15_000, workload.Text},
		{"two 384-dim embeddings, base64", 4_000, workload.Base64},
		{"two 384-dim embeddings, arrays of numbers", 4_000, workload.JSONArrays},
	} {
		from, err := newEvents(kind.events, kind.encoding, "")
		if err != nil {
			return err.Error()
		}
		var (
			parser                     = body.Parser{Rules: &event.Rules{EventNames: event.DefaultEventNames()}}
			bodies, records            []byte
			json, proto, jsonC, protoC int
		)
		for i := range kind.events {
			body := from.plan.AppendCreate(nil, i)
			w, err := parser.ParseCreate(bytes.Clone(body), time.Now())
			if err != nil {
				return err.Error()
			}
			bodies = append(bodies, body...)
			records = record.AppendWrite(records, &w)
			if (i+1)%batch == 0 {
				json, proto = json+len(bodies), proto+len(records)
				jsonC, protoC = jsonC+len(s2.EncodeSnappy(nil, bodies)), protoC+len(s2.EncodeSnappy(nil, records))
				bodies, records = bodies[:0], records[:0]
			}
		}
		row := []string{kind.name}
		for _, n := range []int{json, proto, jsonC, protoC} {
			row = append(row, fmt.Sprintf("%d", n/kind.events))
		}
		rows = append(rows, row)
	}
	return markdown(rows)
}
