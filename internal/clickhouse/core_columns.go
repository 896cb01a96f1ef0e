package clickhouse

import (
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/event"
)

const coreColumns = "id, conversation_id, event_name, error, latency, metadata, alias, created, version, deleted"

// coreResult decodes blocks of coreColumns.
type coreResult struct {
	id                              proto.ColUUID
	conversationID, metadata, alias proto.ColStr
	eventName                       *proto.ColLowCardinality[string]
	errorText                       proto.ColStr
	error                           *proto.ColNullable[string]
	latencies                       proto.ColFloat64
	latency                         *proto.ColNullable[float64]
	created, version                proto.ColUInt64
	deleted                         proto.ColUInt8
}

func newCoreResult() *coreResult {
	r := &coreResult{eventName: new(proto.ColStr).LowCardinality()}
	r.error, r.latency = r.errorText.Nullable(), r.latencies.Nullable()
	return r
}

func (r *coreResult) result() proto.Results {
	return proto.Results{
		{Name: "id", Data: &r.id},
		{Name: "conversation_id", Data: &r.conversationID},
		{Name: "event_name", Data: r.eventName},
		{Name: "error", Data: r.error},
		{Name: "latency", Data: r.latency},
		{Name: "metadata", Data: &r.metadata},
		{Name: "alias", Data: &r.alias},
		{Name: "created", Data: &r.created},
		{Name: "version", Data: &r.version},
		{Name: "deleted", Data: &r.deleted},
	}
}

func (r *coreResult) core(i int) event.Core {
	c := event.Core{
		ID:             event.ID(r.id[i]),
		ConversationID: r.conversationID.Row(i),
		EventName:      r.eventName.Row(i),
		Metadata:       r.metadata.Row(i),
		Alias:          r.alias.Row(i),
		Created:        event.Position(r.created[i]),
		Version:        event.Version(r.version[i]),
		Deleted:        r.deleted[i] != 0,
	}
	if !r.error.IsElemNull(i) {
		c.Error = r.errorText.Row(i)
	}
	if !r.latency.IsElemNull(i) {
		c.Latency, c.HasLatency = r.latencies[i], true
	}
	return c
}
