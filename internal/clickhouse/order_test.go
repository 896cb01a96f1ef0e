package clickhouse

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
)

// TestBlocksAreInTheServersOrder sorts rows that differ in each part of the
// sort key alone, and has the server sort them too.
func TestBlocksAreInTheServersOrder(t *testing.T) {
	var rows []event.ContentRow
	first := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	for range 1000 {
		micros := first + rand.Int64N(31)*microsPerDay + rand.Int64N(3)*1_000_000 + rand.Int64N(2)
		id := event.MakeID(micros, []uint32{0, 1, 0xff, 0x1234, 1<<24 - 1}[rand.IntN(5)], []uint64{0, 1, 1<<38 - 1}[rand.IntN(3)])
		if rand.IntN(2) == 0 {
			id = id.AsInternal()
		}
		rows = append(rows, event.ContentRow{ID: id, Field: event.FieldInput + event.Field(rand.IntN(2))})
	}
	key := func(r *event.ContentRow) (*event.ID, event.Field) { return &r.ID, r.Field }
	order := identity(len(rows))
	sortBlock(rows, order, make([]uint64, len(rows)), key)

	text := func(r event.ContentRow) string {
		return fmt.Sprintf("%d\t%s\t%d", r.ID.ConversationHash(), r.ID, fieldNumber(r.Field))
	}
	var values, got []string
	for i, o := range order {
		r := rows[i]
		values = append(values, fmt.Sprintf("(%d,%d,'%s',%d)", r.ID.Micros(), r.ID.ConversationHash(), r.ID, fieldNumber(r.Field)))
		got = append(got, text(rows[uint32(o)]))
	}
	want := enginetest.Server(t).Query(t, `SELECT hash, id, field
		FROM values('micros Int64, hash UInt32, id UUID, field UInt8', `+strings.Join(values, ",")+`)
		ORDER BY toDate(fromUnixTimestamp64Micro(micros, 'UTC')), hash, micros, id, field`)
	if diff := cmp.Diff(strings.Split(want, "\n"), got); diff != "" {
		t.Error("order (-server's +ours):\n" + diff)
	}
}

func BenchmarkSortBlock(b *testing.B) {
	for _, conversations := range []int{1, 10_000} {
		b.Run(strconv.Itoa(conversations), func(b *testing.B) {
			rows := make([]event.ContentRow, 100_000)
			for i := range rows {
				id := event.MakeID(1_767_225_600_000_000+int64(i/2), event.ConversationHash(strconv.Itoa(i/2%conversations)), uint64(i/2))
				rows[i] = event.ContentRow{ID: id, Field: event.FieldInput + event.Field(i%2)}
			}
			key := func(r *event.ContentRow) (*event.ID, event.Field) { return &r.ID, r.Field }
			order, spare := make([]uint64, len(rows)), make([]uint64, len(rows))
			b.ReportAllocs()
			for b.Loop() {
				copy(order, identity(len(rows)))
				sortBlock(rows, order, spare, key)
			}
			b.ReportMetric(float64(b.N*len(rows))/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
