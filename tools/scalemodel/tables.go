package main

import (
	"fmt"
	"math"
	"strings"
)

// What an event costs. Bytes were measured by -measure, on 111,878 different
// events of text and on 100,000 with embeddings; those of the log as said in
// commit c35f898 and in docs/operations.md; the rest is of the slow day of
// docs/benchmarks and of scale.md: 2 cores that also ran the load.
const (
	bodyText, bodyVectors     = 449.0, 4592.0 // a create's JSON, embeddings as base64
	recordText, recordVectors = 153.0, 3091.0 // in the log, by snappy
	wireText, wireVectors     = 464.0, 3626.0 // of blocks, not compressed
	diskHot                   = 37.0          // of an earlier scale.md, with more errors; 32 of this one, 35 of real conversations
	diskContents              = 95.0          // of which the index of words takes 31
	diskVectors               = 3215.0        // two of 384 dimensions, of which their signs take 112
	indexText, indexVectors   = 0.0176, 0.0904
	// What a part takes beside its rows.
	partHot, partContents, partVectors = 1800.0, 1300.0, 1300.0
	// What one merge writes a second.
	mergeHot, mergeContents, mergeVectors = 50e6, 44e6, 120e6
	// A small merge takes this long.
	mergeOverhead = 0.03
	// CPU seconds an event, with Apache Kafka.
	cpuSluiceText, cpuSluiceVectors         = 12.9e-6, 35.3e-6
	cpuClickHouseText, cpuClickHouseVectors = 7.5e-6, 32.3e-6
	cpuKafkaText, cpuKafkaVectors           = 14.5e-6, 40.1e-6
	// Events a second that one consumer drains on two cores, which it shares with
	// Kafka and ClickHouse.
	drainText, drainVectors = 179_804.0, 25_435.0
	// Flushes a second of a consumer that is busy: FlushDelayBusy.
	flushes = 2.5

	year       = 365 * day
	longMonth  = 31 * day
	partitions = 12
	replicas   = 3
	retention  = 7 * day
	// Rows a second that two cores counted over 7 days of a billion rows, where
	// nothing was changed and where 1 % was: scale.md.
	countClean, countChanged = 19e6 / 0.22, 19e6 / 0.89
	countCores               = 2
	// Updates a second of events that no consumer holds, anywhere in a billion rows.
	coldUpdates = 5000.0
	// ClickHouse's own bound on what one merge takes in.
	mergeMax = 150 << 30
	// parts_to_delay_insert of the schema, in one month.
	partsDelay = 1000
)

// rates are the events a second of the tables, with the shards and consumers
// that they are given here.
type rate struct {
	events            float64
	shards, consumers int
}

func rates() []rate { return []rate{{10e3, 1, 1}, {100e3, 1, 2}, {1e6, 8, 12}} }

// table is one of the tables in a document.
type table struct {
	name string
	make func() string
	slow bool // takes a minute
}

func tables() []table {
	return []table{
		{"sizes", sizesTable, false},
		{"disk", diskTable, false},
		{"cores", coresTable, false},
		{"parts", partsTable, true},
		{"replay", replayTable, false},
		{"erasure", erasureTable, true},
		{"limits", limitsTable, false},
		{"skew", skewTable, false},
		{"records", recordsTable, false},
	}
}

// markdown is a table of the rows, the first of which is its head.
func markdown(rows [][]string) string {
	var b strings.Builder
	for i, row := range rows {
		b.WriteString("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			b.WriteString(strings.Repeat("|---", len(row)) + "|\n")
		}
	}
	return b.String()
}

// bytesText is n with a decimal unit.
func bytesText(n float64) string { return si(n, "B") }

// si is n in three digits at most, with a decimal prefix.
func si(n float64, unit string) string {
	prefixes := [...]string{"", "k", "M", "G", "T", "P", "E"}
	i := 0
	for ; n >= 999.5 && i+1 < len(prefixes); i++ {
		n /= 1000
	}
	text := fmt.Sprintf("%.0f", n)
	if n < 9.95 && n != math.Trunc(n) {
		text = fmt.Sprintf("%.1f", n)
	}
	return strings.TrimSpace(text + " " + prefixes[i] + unit)
}

// rateText is a number of events a second.
func rateText(events float64) string { return si(events, "") + "/s" }

// span is a time in a unit of its size.
func span(seconds float64) string {
	for _, u := range [...]struct {
		from, seconds float64
		name          string
	}{{1.5 * day, day, "d"}, {3600, 3600, "h"}, {60, 60, "min"}} {
		if seconds >= u.from {
			return si(seconds/u.seconds, u.name)
		}
	}
	return si(seconds, "s")
}

func sizesTable() string {
	sizes := []float64{1e9, 10e9, 100e9}
	rows := [][]string{{"rows, over a year", "1 billion", "10 billion", "100 billion"}}
	add := func(what string, value func(n float64) string) {
		row := []string{what}
		for _, n := range sizes {
			row = append(row, value(n))
		}
		rows = append(rows, row)
	}
	add("events a second, for that", func(n float64) string { return si(n/year, "") })
	for _, s := range storedTables() {
		add(s.name+" on disk", func(n float64) string { return bytesText(s.bytes * n) })
		add("… of which a month", func(n float64) string { return bytesText(s.bytes * n / months) })
	}
	add("primary indexes in memory: text · with embeddings", func(n float64) string {
		return bytesText(indexText*n) + " · " + bytesText(indexVectors*n)
	})
	add("rows of 7 days", func(n float64) string { return si(n*7/365, "") })
	add("… counted on 2 cores, clean · after changes", func(n float64) string {
		return span(n*7/365/countClean) + " · " + span(n*7/365/countChanged)
	})
	add("cores for that in 1 s, if cores add up", func(n float64) string {
		return fmt.Sprintf("%.0f · %.0f", math.Ceil(n*7/365/countClean*countCores), math.Ceil(n*7/365/countChanged*countCores))
	})
	whole := func(each float64) func(float64) string {
		return func(n float64) string { return bytesText(each*n/day) + "/s · " + bytesText(each*n/(7*day)) + "/s" }
	}
	add("merging each month whole, once a day · a week: text", whole(diskHot+diskContents))
	add("… embeddings", whole(diskVectors))
	add("an update of 1 % of all, by random id", func(n float64) string { return span(n / 100 / coldUpdates) })
	return markdown(rows)
}

func diskTable() string {
	rows := [][]string{{"", "a row", "10 k/s", "100 k/s", "1 M/s"}}
	add := func(what, each string, value func(r rate) string) {
		row := []string{what, each}
		for _, r := range rates() {
			row = append(row, value(r))
		}
		rows = append(rows, row)
	}
	add("events a year", "", func(r rate) string { return si(r.events*year, "") })
	add("a billion · 10 · 100 billion rows after", "", func(r rate) string {
		return span(1e9/r.events) + " · " + span(10e9/r.events) + " · " + span(100e9/r.events)
	})
	for _, t := range []struct {
		name  string
		bytes float64
	}{{"`events`", diskHot}, {"`event_contents`", diskContents}, {"`event_embeddings`, two of 384 dimensions", diskVectors}} {
		add(t.name+", a day", bytesText(t.bytes), func(r rate) string { return bytesText(t.bytes * r.events * day) })
		add("… a year", "", func(r rate) string { return bytesText(t.bytes * r.events * year) })
		add("… until a month is 150 GiB", "", func(r rate) string { return span(mergeMax / (t.bytes * r.events)) })
	}
	add("shards for which a month of embeddings is below 1,000 parts of 150 GiB", "", func(r rate) string {
		return fmt.Sprintf("%.0f", math.Ceil(diskVectors*r.events*longMonth/(partsDelay*mergeMax)))
	})
	add("primary indexes of a year, in memory: text", fmt.Sprintf("%.3f B", indexText), func(r rate) string { return bytesText(indexText * r.events * year) })
	add("… with embeddings", fmt.Sprintf("%.3f B", indexVectors), func(r rate) string { return bytesText(indexVectors * r.events * year) })
	add("log, 7 days, 3 replicas: text", bytesText(recordText), func(r rate) string { return bytesText(recordText * r.events * retention * replicas) })
	add("… with embeddings", bytesText(recordVectors), func(r rate) string { return bytesText(recordVectors * r.events * retention * replicas) })
	return markdown(rows)
}

func coresTable() string {
	rows := [][]string{{"", "10 k/s", "100 k/s", "1 M/s", "with embeddings: 10 k/s", "100 k/s", "1 M/s"}}
	add := func(what string, text, vectors float64, value func(each, events float64) string) {
		row := []string{what}
		for _, each := range []float64{text, vectors} {
			for _, r := range rates() {
				row = append(row, value(each, r.events))
			}
		}
		rows = append(rows, row)
	}
	cores := func(each, events float64) string {
		if n := each * events; n >= 9.5 {
			return fmt.Sprintf("%.0f", n)
		}
		return fmt.Sprintf("%.2g", each*events)
	}
	bits := func(each, events float64) string { return si(8*each*events, "bit/s") }
	add("cores: API and consumer", cpuSluiceText, cpuSluiceVectors, cores)
	add("cores: ClickHouse's inserts", cpuClickHouseText, cpuClickHouseVectors, cores)
	add("cores: Kafka, three replicas at the cost of one each", replicas*cpuKafkaText, replicas*cpuKafkaVectors, cores)
	add("network: clients to API", bodyText, bodyVectors, bits)
	add("… API to brokers", recordText, recordVectors, bits)
	add("… between brokers", (replicas-1)*recordText, (replicas-1)*recordVectors, bits)
	add("… brokers to consumers", recordText, recordVectors, bits)
	add("… consumers to ClickHouse", wireText, wireVectors, bits)
	add("a partition of the log, of 12", recordText/partitions, recordVectors/partitions, func(each, events float64) string { return si(each*events, "B/s") })
	return markdown(rows)
}

// stored is a table as merges see it.
type stored struct {
	name           string
	bytes, part    float64 // an event, and a part beside its events
	bytesPerSecond float64 // of a merge
}

func storedTables() []stored {
	return []stored{{"`events`", diskHot, partHot, mergeHot}, {"`event_contents`", diskContents, partContents, mergeContents}, {"`event_embeddings`", diskVectors, partVectors, mergeVectors}}
}

// policyOf is that of Sluice's tables on a server with ClickHouse's default pool.
func policyOf(s stored) policy {
	return policy{
		base: 15, bytesMax: mergeMax, bytesMin: 1 << 20, forceAge: day, slots: 32, slotsLow: 8,
		bytesPerSecond: s.bytesPerSecond, overhead: mergeOverhead, lookEvery: 60,
	}
}

// partsDays is how long the current month is simulated.
const partsDays = 2

func partsTable() string {
	rows := [][]string{{"rate", "table", "parts in, a shard", "of", "times written", "… `base` 5", "… not forced", "parts, mean / peak", "merges write, a shard", "merges at a time"}}
	for _, r := range rates() {
		for _, s := range storedTables() {
			gap := 1 / (flushes * float64(r.consumers))
			bytes := s.part + s.bytes*r.events*gap/float64(r.shards)
			run := func(change func(*policy)) load {
				p := policyOf(s)
				change(&p)
				return simulate(p, 0, every(gap, bytes), partsDays*day)
			}
			l := run(func(*policy) {})
			five := run(func(p *policy) { p.base = 5 })
			free := run(func(p *policy) { p.forceAge = 0 })
			rows = append(rows, []string{
				rateText(r.events), s.name, rateText(1 / gap), bytesText(bytes), fmt.Sprintf("%.1f", l.amplification()),
				fmt.Sprintf("%.1f", five.amplification()), fmt.Sprintf("%.1f", free.amplification()),
				fmt.Sprintf("%.0f / %d", l.partsMean, l.partsPeak), bytesText(l.merged/l.seconds) + "/s", fmt.Sprintf("%.2g", l.busyMean),
			})
		}
	}
	return markdown(rows)
}

func replayTable() string {
	rows := [][]string{{"", "records in 7 days", "consumers", "7 days again, with no new writes", "an hour's outage made up for, with them", "a day's"}}
	for _, kind := range []struct {
		name  string
		drain float64
	}{{"text", drainText}, {"two embeddings", drainVectors}} {
		for _, r := range rates() {
			for _, headroom := range []float64{1.25, 2} {
				n := math.Ceil(headroom * r.events / kind.drain)
				total := n * kind.drain
				behind := func(outage float64) string { return span(outage * r.events / (total - r.events)) }
				rows = append(rows, []string{
					kind.name + ", " + rateText(r.events), si(r.events*retention, ""), fmt.Sprintf("%.0f", n),
					span(r.events * retention / total), behind(3600), behind(day),
				})
				if math.Ceil(2*r.events/kind.drain) == n {
					break
				}
			}
		}
	}
	return markdown(rows)
}

// erasureDays is how long an old month is simulated.
const (
	erasureDays = 60
	months      = 12
)

// erasureTable is about a month that is one part, of a billion rows a year and
// of ten, in event_contents, and is written to at random times: how long a
// tombstone waits for the merge that takes what it deletes off the disk.
func erasureTable() string {
	rows := [][]string{{"an insert into the month about each", "5.3 GB: merged whole, in 60 days", "longest wait of a tombstone", "53 GB: merged whole", "longest wait"}}
	contents := storedTables()[1]
	for _, gap := range []float64{1, 40, 600, 1200, 3600, 4 * 3600, 12 * 3600, 2 * day} {
		row := []string{span(gap)}
		for _, n := range []float64{1e9, 10e9} {
			l := simulate(policyOf(contents), contents.bytes*n/months, about(gap, contents.part+contents.bytes), erasureDays*day)
			wait := span(l.waitPeak)
			if l.waitPeak > (erasureDays-2)*day {
				wait = fmt.Sprintf("all %d days", erasureDays)
			}
			times := fmt.Sprintf("%d times", l.firstMerges)
			if l.firstMerges == 1 {
				times = "once"
			}
			row = append(row, times, wait)
		}
		rows = append(rows, row)
	}
	return markdown(rows)
}

func limitsTable() string {
	const (
		offsetBits, generationBits, countBits = 48, 14, 38
		hashBits                              = 24
	)
	rows := [][]string{{"what", "bound", "which is"}}
	perPartition := 1e6 / partitions
	rows = append(rows,
		[]string{"what one merge takes in", "150 GiB", fmt.Sprintf("a month of `event_contents` from %.0f events/s on, of `event_embeddings` from %.0f/s on", mergeMax/(diskContents*longMonth), mergeMax/(diskVectors*longMonth))},
		[]string{"offset of a partition, in a version", fmt.Sprintf("2^%d", offsetBits), "reached at 1 M events/s over 12 partitions after " + si(math.Pow(2, offsetBits)/perPartition/year, "") + " years"},
		[]string{"generation of the topic, in a version", fmt.Sprintf("2^%d", generationBits), fmt.Sprintf("%.0f changes of the number of partitions", math.Pow(2, generationBits)-1)},
		[]string{"counter of a process, in an id", fmt.Sprintf("2^%d", countBits), "it begins in the lower half, so that " + si(math.Pow(2, countBits-1), "") + " ids come before it starts again, and two processes that mint for one conversation's hash in one microsecond mint the same id once in as many pairs"},
		[]string{"hash of a conversation", fmt.Sprintf("2^%d", hashBits), fmt.Sprintf("at 100 billion rows and 20 events a conversation, %.0f share each: a read of one by its key meets the others' rows of the same days, and tells them apart by the id", 100e9/20/math.Pow(2, hashBits))},
	)
	return markdown(rows)
}
