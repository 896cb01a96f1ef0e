package schema

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// member is a host of a cluster, as system.clusters of a server lists it.
type member struct {
	shard, weight, replica int
	internalReplication    bool
	host                   string
	port                   int
}

func (m *member) addr() string { return net.JoinHostPort(m.host, strconv.Itoa(m.port)) }

// at names the host in an error.
func (m *member) at(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("host %s, shard %d, replica %d: %w", m.addr(), m.shard, m.replica, err)
}

// members are the hosts of a cluster, ordered by shard and replica.
type members []member

// members reads the hosts of a cluster from this host.
func (s *Schema) members(ctx context.Context, cluster string) (members, error) {
	var (
		all                    members
		shard, weight, replica proto.ColUInt32
		internal               proto.ColUInt8
		host                   proto.ColStr
		port                   proto.ColUInt16
	)
	err := s.db.DoServer(ctx, s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT toUInt32(shard_num) AS shard, toUInt32(shard_weight) AS weight, toUInt32(replica_num) AS replica,
				toUInt8(internal_replication) AS internal, toString(host_name) AS host, toUInt16(port) AS port
			FROM system.clusters WHERE cluster = {cluster:String} ORDER BY shard, replica`,
		Parameters: conn.Parameters{}.Text("cluster", cluster),
		Result: proto.Results{
			{Name: "shard", Data: &shard},
			{Name: "weight", Data: &weight},
			{Name: "replica", Data: &replica},
			{Name: "internal", Data: &internal},
			{Name: "host", Data: &host},
			{Name: "port", Data: &port},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range shard {
				all = append(all, member{
					shard: int(shard[i]), weight: int(weight[i]), replica: int(replica[i]),
					internalReplication: internal[i] != 0, host: host.Row(i), port: int(port[i]),
				})
			}
			return nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("read the hosts of cluster %s: %w", cluster, conn.WithoutValues(err))
	}
	return all, nil
}

// clusters returns the names of the clusters that this host knows.
func (s *Schema) clusters(ctx context.Context) ([]string, error) {
	var (
		name  proto.ColStr
		names []string
	)
	err := s.db.DoServer(ctx, s.cfg.QueryTimeout, ch.Query{
		Body:   "SELECT DISTINCT cluster AS name FROM system.clusters ORDER BY name",
		Result: proto.Results{{Name: "name", Data: &name}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range name.Rows() {
				names = append(names, name.Row(i))
			}
			return nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("read the names of clusters: %w", conn.WithoutValues(err))
	}
	return names, nil
}

// check returns an error if tables cannot be spread over these hosts.
func (ms members) check(cluster string) error {
	if len(ms) == 0 {
		return fmt.Errorf("cluster %s is not in remote_servers of this host", cluster)
	}
	count := make(map[int]int)
	for _, m := range ms {
		count[m.shard]++
	}
	// An insert has one quorum for all shards.
	for shard, n := range count {
		if n != count[ms[0].shard] {
			return fmt.Errorf("cluster %s: shard %d has replicas %d, and shard %d has %d: all need the same number", cluster, shard, n, ms[0].shard, count[ms[0].shard])
		}
	}
	for _, m := range ms {
		if count[m.shard] > 1 && !m.internalReplication {
			return fmt.Errorf("cluster %s: shard %d has replicas, and internal_replication is not true in remote_servers", cluster, m.shard)
		}
	}
	return nil
}

// replicas returns the number of replicas of each shard.
func (ms members) replicas() int {
	n := 0
	for _, m := range ms {
		if m.shard == ms[0].shard {
			n++
		}
	}
	return n
}

// placement describes how a row's shard is chosen: by the value of the key modulo
// the sum of the weights. Each Distributed table has the text as its comment.
func (ms members) placement() string {
	var weights []string
	for i, m := range ms {
		if i == 0 || ms[i-1].shard != m.shard {
			weights = append(weights, strconv.Itoa(m.weight))
		}
	}
	return "shards of weight " + strings.Join(weights, ", ")
}

func (ms members) misplaced(cluster, placed string) error {
	return fmt.Errorf("the rows are placed by %q, and cluster %s has %q now: what is there would be looked for elsewhere; make a new database on the changed cluster, and copy the rows into it: %w",
		placed, cluster, ms.placement(), ErrLayout)
}

// eachShard calls do with each shard: on a single machine with this schema and no host,
// on a cluster with the first replica of the shard that is ready. An error of one
// shard does not keep the others from being asked.
func (s *Schema) eachShard(ctx context.Context, do func(shard *Schema, host string) error) error {
	l := s.layout.Load()
	if l == nil {
		return do(s, "")
	}
	members, err := s.members(ctx, l.cluster)
	if err != nil {
		return err
	}
	var failed []error
	for len(members) > 0 {
		n := 1
		for n < len(members) && members[n].shard == members[0].shard {
			n++
		}
		failed = append(failed, s.firstReady(ctx, members[:n], do))
		members = members[n:]
	}
	return errors.Join(failed...)
}

// firstReady calls do with the first of the replicas that is ready.
func (s *Schema) firstReady(ctx context.Context, replicas members, do func(shard *Schema, host string) error) error {
	var failed []error
	for _, m := range replicas {
		shard, err := s.openShard(m.addr())
		if err != nil {
			return err
		}
		if err := shard.Ready(ctx); err != nil {
			shard.close()
			failed = append(failed, m.at(err))
			continue
		}
		err = do(shard, m.addr())
		shard.close()
		return m.at(err)
	}
	return errors.Join(failed...)
}
