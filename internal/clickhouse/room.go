package clickhouse

import (
	"context"
	"errors"
	"strconv"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/event"
)

const (
	// eventBytes is what an event takes beside its texts, contents and vectors:
	// its struct, its core row, and its entries in the maps that put it together.
	eventBytes = 1 << 10
	// roomSlackBytes is what a result may be larger than the room for it: what the
	// server counts beside the rows, such as the dictionary of event names.
	roomSlackBytes = 8 << 10
	// measuresMax is how often an answer is measured before it is given up: it
	// has to be measured again when it grew meanwhile.
	measuresMax = 4

	resultTooLarge = 396 // TOO_MANY_ROWS_OR_BYTES
)

// room bounds the memory of one answer, which is read by several queries. The
// server ends a query whose result does not fit into what is left, before it
// has sent it. A nil room is without a bound.
//
// A first try reads the rows as they are, and takes the newest version of each
// key itself, which is the fastest where it fits. After a try that did not fit,
// the answer is measured, and newest is set.
type room struct {
	left int
	// newest has the server send only the newest version of each row.
	newest bool
}

// final is what comes after the name of a table.
func (r *room) final() string {
	if r != nil && r.newest {
		return " FINAL"
	}
	return ""
}

// settings are those of a query whose result goes into the room.
func (r *room) settings() []ch.Setting {
	if r == nil {
		return nil
	}
	return []ch.Setting{
		conn.Setting("max_result_bytes", strconv.Itoa(max(0, r.left)+roomSlackBytes)),
		conn.Setting("result_overflow_mode", "throw"),
	}
}

// take reserves n bytes of the room.
func (r *room) take(n int) {
	if r != nil {
		r.left -= n
	}
}

// takeCore reserves what a core row takes, and leaves half of eventBytes to the
// rows of its contents and vectors.
func (r *room) takeCore(c *event.Core) {
	r.take(eventBytes/2 + len(c.ConversationID) + len(c.Error) + len(c.Metadata) + len(c.Alias))
}

// errNoRoom says that a result was larger than the room for it, by less than
// roomSlackBytes.
var errNoRoom = errors.New("the result does not fit")

// check is called after each result.
func (r *room) check() error {
	if r != nil && r.left < 0 {
		return errNoRoom
	}
	return nil
}

// isTooLarge reports whether a result did not fit.
func isTooLarge(err error) bool {
	return errors.Is(err, errNoRoom) || conn.HasCode(err, resultTooLarge)
}

// sized is an event and the memory that it takes.
type sized struct {
	id    event.ID
	bytes int
}

// fitting is how many of the events, from the first, fit into bytesMax.
func fitting(events []sized, bytesMax int) int {
	left := bytesMax
	for i := range events {
		if left -= events[i].bytes; left < 0 {
			return i
		}
	}
	return len(events)
}

// measure adds the sizes of the contents, and of the embeddings, to those of
// the core rows.
func (s *Store) measure(ctx context.Context, events []sized, withEmbeddings bool) error {
	at := make(map[event.ID]int, len(events))
	ids := make([]event.ID, len(events))
	for i := range events {
		ids[i], at[events[i].id] = events[i].id, i
	}
	add := func(table, size string) error {
		var (
			id    proto.ColUUID
			bytes proto.ColUInt64
		)
		return s.eachKeys(ctx, conn.RoleRead, "sizes", s.readTimeout(), ids, func(byKey string) ch.Query {
			return ch.Query{
				Body:     "SELECT id, toUInt64(sum(" + size + ")) AS bytes FROM " + table + " FINAL" + byKey + " GROUP BY id",
				Settings: s.readSettings(),
				Result:   proto.Results{{Name: "id", Data: &id}, {Name: "bytes", Data: &bytes}},
				OnResult: func(context.Context, proto.Block) error {
					for i := range id {
						if j, ok := at[event.ID(id[i])]; ok {
							events[j].bytes += int(bytes[i])
						}
					}
					return nil
				},
			}
		})
	}
	if err := add(schema.TableContents, "length(content)"); err != nil || !withEmbeddings {
		return err
	}
	return add(schema.TableEmbeddings, "4 * length(vector)")
}

// coreBytes is the size of the texts of a core row, as takeCore has it.
const coreBytes = "length(conversation_id) + ifNull(length(error), 0) + length(metadata) + length(alias)"
