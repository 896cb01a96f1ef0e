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
	// eventBytes is the memory of an event besides its texts, contents and vectors: its
	// struct, its core row, and its entries in the maps of assemble.
	eventBytes = 1 << 10
	// roomSlackBytes is how much larger than its room a result may be, because the server
	// counts more than the rows, for example the dictionary of event names.
	roomSlackBytes = 8 << 10
	// measuresMax is how often an answer is measured before it is given up. It must be
	// measured again if it grew meanwhile.
	measuresMax = 4

	resultTooLarge = 396 // TOO_MANY_ROWS_OR_BYTES
)

// room bounds the memory of one answer that is read by several queries. The server ends
// a query whose result does not fit into the rest of the room, before it sends the
// result. A nil room has no bound.
//
// The first try reads all versions of the rows and picks the newest of each key here,
// which is the fastest if it fits. After a try that did not fit, the answer is
// measured and newest is set.
type room struct {
	left int
	// newest has the server send only the newest version of each row.
	newest bool
}

// final returns what comes after the name of a table in a query.
func (r *room) final() string {
	if r != nil && r.newest {
		return " FINAL"
	}
	return ""
}

// settings returns the settings of a query whose result goes into the room.
func (r *room) settings() []ch.Setting {
	if r == nil {
		return nil
	}
	return resultSettings(max(0, r.left))
}

// resultSettings end a query whose result is larger than bytesMax.
func resultSettings(bytesMax int) []ch.Setting {
	return []ch.Setting{
		conn.Setting("max_result_bytes", strconv.Itoa(bytesMax+roomSlackBytes)),
		conn.Setting("result_overflow_mode", "throw"),
	}
}

// take reserves n bytes of the room.
func (r *room) take(n int) {
	if r != nil {
		r.left -= n
	}
}

// takeCore reserves the memory of a core row. Half of eventBytes is left for the rows of
// its contents and vectors.
func (r *room) takeCore(c *event.Core) {
	r.take(eventBytes/2 + len(c.ConversationID) + len(c.Error) + len(c.Metadata) + len(c.Alias))
}

// errNoRoom says that a result was larger than the room for it, by less than
// roomSlackBytes.
var errNoRoom = errors.New("the result does not fit")

// check returns errNoRoom if the room is used up. It is called after each result.
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

// fitting returns how many of the events, from the first, fit into bytesMax.
func fitting(events []sized, bytesMax int) int {
	left := bytesMax
	for i := range events {
		if left -= events[i].bytes; left < 0 {
			return i
		}
	}
	return len(events)
}

// coreBytes is the SQL of the size of a core row's texts, as takeCore counts them.
const coreBytes = "length(conversation_id) + ifNull(length(error), 0) + length(metadata) + length(alias)"

// sizes returns the memory that each of the events takes, with the embeddings if asked.
func (s *Store) sizes(ctx context.Context, ids []event.ID, withEmbeddings bool) ([]sized, error) {
	events := make([]sized, len(ids))
	for i, id := range ids {
		events[i] = sized{id, eventBytes}
	}
	if err := s.addSizes(ctx, events, schema.TableEvents, coreBytes); err != nil {
		return nil, err
	}
	return events, s.measure(ctx, events, withEmbeddings)
}

// measure adds the sizes of the contents, and of the embeddings if asked, to the sizes
// of the events.
func (s *Store) measure(ctx context.Context, events []sized, withEmbeddings bool) error {
	if err := s.addSizes(ctx, events, schema.TableContents, "length(content)"); err != nil || !withEmbeddings {
		return err
	}
	return s.addSizes(ctx, events, schema.TableEmbeddings, "4 * length(vector)")
}

// addSizes adds the size of each event's rows of a table to the sizes of the events.
// size is the SQL of the size of a row.
func (s *Store) addSizes(ctx context.Context, events []sized, table, size string) error {
	at := make(map[event.ID]int, len(events))
	ids := make([]event.ID, len(events))
	for i := range events {
		ids[i], at[events[i].id] = events[i].id, i
	}
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
