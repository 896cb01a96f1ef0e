package conn

import "github.com/sluicehq/sluice/internal/query"

// Role is the kind of work that a connection is used for. Each role has a pool of its own, so
// that work of one kind never waits for a connection that another kind holds.
type Role uint8

// The roles.
const (
	// RoleWrite is for the consumer: inserts and lookups.
	RoleWrite Role = iota
	// RoleRead is for single events and pages.
	RoleRead
	// RoleAnalytics is for queries about many events.
	RoleAnalytics
	// RoleExport is for exports, each of which holds [ExportConnections] for as long as
	// its reader takes.
	RoleExport
	// RoleHealth is for readiness checks.
	RoleHealth
	// RoleAdmin is for the schema, the retention, erasure, and measurements of the
	// tables.
	RoleAdmin
	roles
)

const (
	// healthConnectionsMax suffices, because all callers of readiness checks share one
	// check.
	healthConnectionsMax = 1
	// ExportConnections is how many connections an export has, one for each table.
	ExportConnections = 3
	// adminConnectionsMax bounds the pool of RoleAdmin, and the one that is not of
	// the database.
	adminConnectionsMax = 2
)

// String returns the name of the role in metrics.
func (r Role) String() string {
	switch r {
	case RoleWrite:
		return "write"
	case RoleRead:
		return "read"
	case RoleAnalytics:
		return "analytics"
	case RoleExport:
		return "export"
	case RoleHealth:
		return "health"
	case RoleAdmin, roles:
	}
	return "admin"
}

// connectionsMax is the bound of the role's pool.
func (r Role) connectionsMax(cfg *Config) int {
	switch r {
	case RoleWrite:
		return cfg.WriteConnectionsMax
	case RoleRead:
		return cfg.ReadConnectionsMax
	case RoleAnalytics:
		return cfg.AnalyticsConnectionsMax
	case RoleExport:
		return query.ExportsMax * ExportConnections
	case RoleHealth:
		return healthConnectionsMax
	case RoleAdmin, roles:
	}
	return adminConnectionsMax
}
