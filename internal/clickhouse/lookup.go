package clickhouse

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
)

// Cores returns the core row with the highest version for each event that has one
// within the retention, tombstones included. Duplicate ids are allowed. The error
// wraps [event.ErrQueryTooLarge] if the rows take more than [Config.LookupBytesMax];
// the rows of one event never do.
func (s *Store) Cores(ctx context.Context, ids []event.ID) (map[event.ID]event.Core, error) {
	cores, err := s.cores(ctx, conn.RoleWrite, ids, &room{left: s.cfg.LookupBytesMax})
	if isTooLarge(err) {
		// Older versions, which no merge has removed yet, may be what does not fit.
		cores, err = s.cores(ctx, conn.RoleWrite, ids, &room{left: s.cfg.LookupBytesMax, newest: true})
	}
	if isTooLarge(err) {
		return nil, fmt.Errorf("%w: core rows of %d events (%w)", event.ErrQueryTooLarge, len(ids), err)
	}
	return cores, err
}

func (s *Store) cores(ctx context.Context, r conn.Role, ids []event.ID, into *room) (map[event.ID]event.Core, error) {
	cores := make(map[event.ID]event.Core, len(ids))
	err := s.eachKeys(ctx, r, "cores", s.cfg.LookupTimeout, ids, func(byKey string) ch.Query {
		columns := newCoreResult()
		return ch.Query{
			Body:     "SELECT " + coreColumns + " FROM events" + into.final() + byKey + " AND visible",
			Settings: into.settings(),
			Result:   columns.result(),
			OnResult: func(context.Context, proto.Block) error {
				for i := range columns.id {
					if old, ok := cores[event.ID(columns.id[i])]; !ok || event.Version(columns.version[i]) > old.Version {
						core := columns.core(i)
						cores[core.ID] = core
						into.takeCore(&core)
					}
				}
				return into.check()
			},
		}
	})
	if err != nil {
		return nil, err
	}
	return cores, nil
}

// CoreStates is [Store.Cores], but returns only ID, Created, Version and Deleted. It is
// for updates that change no other column of the core row, because each column of a
// lookup costs time.
func (s *Store) CoreStates(ctx context.Context, ids []event.ID) (map[event.ID]event.Core, error) {
	cores := make(map[event.ID]event.Core, len(ids))
	err := s.eachKeys(ctx, conn.RoleWrite, "core_states", s.cfg.LookupTimeout, ids, func(byKey string) ch.Query {
		var (
			id               proto.ColUUID
			created, version proto.ColUInt64
			deleted          proto.ColUInt8
		)
		return ch.Query{
			Body: "SELECT id, created, version, deleted FROM events" + byKey + " AND visible",
			Result: proto.Results{
				{Name: "id", Data: &id},
				{Name: "created", Data: &created},
				{Name: "version", Data: &version},
				{Name: "deleted", Data: &deleted},
			},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					key := event.ID(id[i])
					if old, ok := cores[key]; !ok || event.Version(version[i]) > old.Version {
						cores[key] = event.Core{
							ID: key, Created: event.Position(created[i]),
							Version: event.Version(version[i]), Deleted: deleted[i] != 0,
						}
					}
				}
				return nil
			},
		}
	})
	if err != nil {
		return nil, err
	}
	return cores, nil
}

// Aliases returns the row with the highest version for each alias that has one,
// tombstones included.
func (s *Store) Aliases(ctx context.Context, aliases []string) (map[string]event.AliasRow, error) {
	return s.aliases(ctx, conn.RoleWrite, aliases)
}

func (s *Store) aliases(ctx context.Context, r conn.Role, aliases []string) (map[string]event.AliasRow, error) {
	found := make(map[string]event.AliasRow, len(aliases))
	// The aliases are sorted, so that each chunk reads its own part of the table.
	aliases = slices.Clone(aliases)
	slices.Sort(aliases)
	for chunk := range slices.Chunk(slices.Compact(aliases), s.cfg.LookupKeysMax) {
		var keys, alias proto.ColStr
		keys.AppendArr(chunk)
		var (
			id      proto.ColUUID
			version proto.ColUInt64
			deleted proto.ColUInt8
		)
		err := s.db.Query(ctx, r, "aliases", s.cfg.LookupTimeout, ch.Query{
			Body:          "SELECT alias, id, version, deleted FROM event_aliases WHERE alias IN (SELECT alias FROM keys)",
			ExternalTable: "keys",
			ExternalData:  proto.Input{{Name: "alias", Data: &keys}},
			Settings:      conn.LookupSettings,
			Result: proto.Results{
				{Name: "alias", Data: &alias},
				{Name: "id", Data: &id},
				{Name: "version", Data: &version},
				{Name: "deleted", Data: &deleted},
			},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					row := event.AliasRow{
						Alias: alias.Row(i), ID: event.ID(id[i]),
						Version: event.Version(version[i]), Deleted: deleted[i] == aliasDeleted, Refused: deleted[i] == aliasRefused,
					}
					// The mark of a create that was refused outranks that create's own row.
					if old, ok := found[row.Alias]; !ok || row.Version > old.Version || row.Version == old.Version && row.Refused {
						found[row.Alias] = row
					}
				}
				return nil
			},
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// Histories returns what the tables know about each event, deleted or not, within the
// retention or not. An event without any row has no entry. It needs one lookup by the
// primary key for all events, after one lookup of the aliases if there are any. Each
// lookup is split into chunks of [Config.LookupKeysMax].
func (s *Store) Histories(ctx context.Context, refs []event.Ref) (map[event.Ref]event.History, error) {
	histories := make(map[event.Ref]event.History, len(refs))
	var (
		ids     []event.ID
		aliases []string
	)
	for _, ref := range refs {
		if ref.Alias != "" {
			aliases = append(aliases, ref.Alias)
		} else {
			ids = append(ids, ref.ID)
		}
	}
	// internal has the alias of each internal id.
	internal := make(map[event.ID]string)
	if len(aliases) > 0 {
		rows, err := s.aliases(ctx, conn.RoleRead, aliases)
		if err != nil {
			return nil, err
		}
		for alias, row := range rows {
			if row.Refused {
				continue
			}
			h := event.History{}
			if row.Deleted {
				h.Deleted = row.Version.Position()
			} else {
				// The row is of the create that won. It stays when the event is gone.
				h.Created = row.Version.Position()
				ids, internal[row.ID] = append(ids, row.ID), alias
			}
			histories[event.Ref{Alias: alias}] = h
		}
	}
	err := s.eachKeys(ctx, conn.RoleRead, "histories", s.cfg.LookupTimeout, ids, func(byKey string) ch.Query {
		var (
			id               proto.ColUUID
			created, deleted proto.ColUInt64
			visible          proto.ColUInt8
		)
		return ch.Query{
			// This reads all versions that no merge has removed. An update has the
			// created of its event, so the least created is that of the first create.
			Body: "SELECT id, minIf(created, deleted = 0) AS first_create, minIf(version, deleted = 1) AS first_delete," +
				" toUInt8(max(visible)) AS is_visible FROM events" + byKey + " GROUP BY id",
			Result: proto.Results{
				{Name: "id", Data: &id},
				{Name: "first_create", Data: &created},
				{Name: "first_delete", Data: &deleted},
				{Name: "is_visible", Data: &visible},
			},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					key := event.ID(id[i])
					ref := event.Ref{ID: key}
					if alias, ok := internal[key]; ok {
						ref = event.Ref{Alias: alias}
					}
					h := histories[ref]
					if created[i] != 0 {
						h.Created = event.Position(created[i])
					}
					if deleted[i] != 0 {
						h.Deleted = event.Version(deleted[i]).Position()
					}
					h.Stored, h.Expired = true, visible[i] == 0
					histories[ref] = h
				}
				return nil
			},
		}
	})
	if err != nil {
		return nil, err
	}
	return histories, nil
}

// Refused returns the refused creates of ids without an alias, one row for each id; see
// [event.AliasRow]. It returns at most rowsMax rows, and more says that there are
// others.
func (s *Store) Refused(ctx context.Context, rowsMax int) (refused []event.AliasRow, more bool, err error) {
	var (
		alias   proto.ColStr
		id      proto.ColUUID
		version proto.ColUInt64
	)
	err = s.db.Query(ctx, conn.RoleWrite, "refused", s.cfg.LookupTimeout, ch.Query{
		// The marks of refused creates come first in the order of the table.
		Body: "SELECT alias, any(id) AS id, max(version) AS version FROM event_aliases " +
			"WHERE alias < char(1) AND deleted = " + strconv.Itoa(int(aliasRefused)) + " GROUP BY alias LIMIT {limit:UInt64}",
		Parameters: conn.Parameters{}.Int("limit", int64(rowsMax)+1),
		Settings:   conn.LookupSettings,
		Result:     proto.Results{{Name: "alias", Data: &alias}, {Name: "id", Data: &id}, {Name: "version", Data: &version}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range id {
				refused = append(refused, event.AliasRow{
					Alias: alias.Row(i), ID: event.ID(id[i]), Version: event.Version(version[i]), Refused: true,
				})
			}
			return nil
		},
	})
	if err != nil {
		return nil, false, err
	}
	if len(refused) > rowsMax {
		return refused[:rowsMax], true, nil
	}
	return refused, false, nil
}
