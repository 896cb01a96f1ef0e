package bench

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Markdown writes the report as tables, and judges the targets. A target that
// the run says nothing about is listed as not measured.
func (r *Report) Markdown(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString("# Benchmark\n\n")
	b.WriteString("Times are from the first request: *acked* until the last acknowledgement, *visible* until a query of ClickHouse showed every write,\n")
	b.WriteString("which was then verified. Rates are until visible; a MB is 10⁶ bytes of request bodies. *Fresh* is from a single write's acknowledgement\n")
	b.WriteString("until a read shows it, during the load. The load generator runs on the same machine. Written by `make bench-report`.\n\n")
	r.Machine.markdown(&b)
	b.WriteString("## Targets\n\n")
	targets := targetTable(r.targets(), true)
	targets.markdown(&b)
	if len(r.Cases) > 0 {
		b.WriteString("![Time of each phase](phases.svg)\n\n![Rates against what limits them](limits.svg)\n\n")
	}
	for i := range r.Cases {
		r.Cases[i].markdown(&b)
	}
	return flush(w, &b)
}

// Text writes the figures for a terminal: the tables of each case, and the
// targets that it can judge.
func (r *Report) Text(w io.Writer) error {
	var b bytes.Buffer
	for i := range r.Cases {
		fmt.Fprintf(&b, "%s\n", r.Cases[i].Title())
		targets := targetTable((&Report{Cases: r.Cases[i : i+1]}).targets(), false)
		targets.drop(targetWhere)
		for _, t := range append(r.Cases[i].tables(), targets) {
			if len(t.rows) > 0 {
				t.text(&b)
				b.WriteByte('\n')
			}
		}
	}
	return flush(w, &b)
}

// Markdown writes the costs by size as tables, and judges the targets that are
// about size.
func (r *ScaleReport) Markdown(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString("# Cost against size\n\n")
	fmt.Fprintf(&b, "The rows are spread over %d days. Writes go through the whole pipeline, until visible; times of queries are medians through the\n", r.Days)
	b.WriteString("HTTP API, on the merged table and after random updates and deletes of 1 % of the last 30 days' rows.\n\n")
	r.Machine.markdown(&b)
	b.WriteString("## Targets\n\n")
	for _, t := range []table{targetTable(r.targets(), true), r.sizeTable(), r.writeTable(), r.queryTable()} {
		if len(t.rows) > 0 {
			t.markdown(&b)
		}
	}
	return flush(w, &b)
}

// flush writes all, with one empty line less at the end.
func flush(w io.Writer, b *bytes.Buffer) error {
	_, err := w.Write(append(bytes.TrimRight(b.Bytes(), "\n"), '\n'))
	return err
}

// markdown writes what is known of the machine.
func (m *Machine) markdown(b *bytes.Buffer) {
	t := table{header: []string{"machine", ""}}
	for _, row := range [][2]string{
		{"processor", m.CPU},
		{"cores", known(float64(m.Cores), count)},
		{"memory", known(float64(m.Memory)/(1<<30), func(v float64) string { return fmt.Sprintf("%.1f GiB", v) })},
		{"system", m.System},
		{"Go", m.Go},
		{"embedded ClickHouse", m.Engine},
		{"Sluice", m.Sluice},
		{"date", m.Date},
	} {
		if row[1] != "" {
			t.add(row[0], row[1])
		}
	}
	if len(t.rows) > 0 {
		t.markdown(b)
	}
}

// known is empty for 0.
func known(v float64, format func(float64) string) string {
	if v == 0 {
		return ""
	}
	return format(v)
}

// Title says what was sent, how, and through which broker.
func (c *Case) Title() string {
	how := fmt.Sprintf("batches of %s", count(float64(c.Batch)))
	if c.Batch == 1 {
		how = "single requests"
	}
	connections := "connections"
	if c.Connections == 1 {
		connections = "connection"
	}
	broker := c.Broker
	if broker == EmbeddedBroker {
		broker = "embedded broker"
	}
	return fmt.Sprintf("%s; %s on %d %s; %s", c.Name, how, c.Connections, connections, broker)
}

func (c *Case) markdown(b *bytes.Buffer) {
	fmt.Fprintf(b, "## %s\n\n", c.Title())
	for _, t := range c.tables() {
		t.markdown(b)
	}
	if c.Alternative != nil && c.Alternative.How != "" {
		fmt.Fprintf(b, "The drain: %s\n\n", strings.TrimSpace(c.Alternative.How))
	}
}

// tables are those that the case has figures for.
func (c *Case) tables() []table {
	var tables []table
	for _, t := range []table{c.phaseTable(), c.processTable(), c.ratioTable()} {
		if len(t.rows) > 0 {
			tables = append(tables, t)
		}
	}
	return tables
}

func (c *Case) phaseTable() table {
	t := table{header: []string{
		"phase", "writes", "acked", "visible", "writes/s", "MB/s",
		"ack p50 / p99 ms", "fresh p50 / p99 ms", "probes", "parts", "merges",
	}}
	for i := range c.Phases {
		p := &c.Phases[i]
		t.add(p.Name, count(float64(p.Writes)), seconds(p.AckedSeconds), seconds(p.VisibleSeconds),
			count(p.WritesPerSecond()), fmt.Sprintf("%.1f", float64(p.Bytes)/1e6/p.VisibleSeconds),
			p.AckMillis.pair(), p.FreshMillis.pair(), count(float64(p.FreshMillis.N)), count(p.Parts), count(p.Merges))
	}
	return t
}

// pair is the median and the 99th percentile.
func (q Quantiles) pair() string {
	if q.N == 0 {
		return "–"
	}
	return millisNumber(q.P50) + " / " + millisNumber(q.P99)
}

// processTable has a row for each process, and the CPU time of each phase.
func (c *Case) processTable() table {
	t := table{header: []string{"process"}}
	var names []string
	for i := range c.Phases {
		t.header = append(t.header, c.Phases[i].Name+" CPU")
		for _, u := range c.Phases[i].Processes {
			if !slices.Contains(names, u.Name) {
				names = append(names, u.Name)
			}
		}
	}
	t.header = append(t.header, "peak memory")
	for _, name := range names {
		row := []string{name}
		var peak int64
		for i := range c.Phases {
			u := c.Phases[i].process(name)
			row = append(row, seconds(u.CPUSeconds))
			peak = max(peak, u.PeakBytes)
		}
		t.add(append(row, mebibytes(float64(peak)/(1<<20)))...)
	}
	return t
}

func (p *Phase) process(name string) (used ProcessUsage) {
	for _, u := range p.Processes {
		if u.Name == name {
			return u
		}
	}
	return used
}

// ratioTable compares with the limits and the alternative.
func (c *Case) ratioTable() table {
	t := table{header: []string{"in the same run", "its rate", "ours", "ratio"}}
	add := func(what string, rate, ours float64) {
		if rate > 0 && ours > 0 {
			t.add(what, perSecond(rate), perSecond(ours), times(ours/rate))
		}
	}
	if ours, ok := createRate(c); ok && c.Limits != nil {
		add("limit: the same rows inserted straight", c.Limits.InsertPerSecond, ours)
		add("limit: the same records produced straight", c.Limits.ProducePerSecond, ours)
		add("limit: the same requests read and discarded", c.Limits.DiscardPerSecond, ours)
	}
	if a := c.Alternative; a != nil {
		add(fmt.Sprintf("alternative: ClickHouse's Kafka engine draining %s events", count(float64(a.Events))), a.KafkaEnginePerSecond, a.SluicePerSecond)
	}
	return t
}

func (r *ScaleReport) sizeTable() table {
	t := table{header: []string{"rows", "on disk", "bytes/row", "parts", "filled in"}}
	for _, s := range r.Sizes {
		t.add(count(float64(s.Rows)), fmt.Sprintf("%.2f GB", float64(s.DiskBytes)/1e9),
			fmt.Sprintf("%.1f", float64(s.DiskBytes)/float64(s.Rows)), count(float64(s.Parts)), seconds(s.FillSeconds))
	}
	return t
}

func (r *ScaleReport) writeTable() table {
	t := table{header: []string{"rows", "kind of write", "writes", "visible", "µs/write", "writes/s", "of it lookups"}}
	for i := range r.Sizes {
		s := &r.Sizes[i]
		for j := range s.Writes {
			w := &s.Writes[j]
			t.add(count(float64(s.Rows)), strings.ReplaceAll(w.Name, "_", " "), count(float64(w.Writes)), seconds(w.VisibleSeconds),
				fmt.Sprintf("%.1f", w.MicrosPerWrite()), count(w.WritesPerSecond()), seconds(w.LookupSeconds))
		}
	}
	return t
}

func (r *ScaleReport) queryTable() table {
	t := table{header: []string{"rows", "query", "clean", "after changes"}}
	for _, s := range r.Sizes {
		for _, q := range s.Queries {
			t.add(count(float64(s.Rows)), strings.ReplaceAll(q.Name, "_", " "), milliseconds(q.Clean.MedianMillis), milliseconds(q.Changed.MedianMillis))
		}
	}
	return t
}
