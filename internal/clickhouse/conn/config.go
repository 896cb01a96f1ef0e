package conn

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"time"
)

// Compression is how blocks are compressed on the wire.
type Compression string

// The compressions.
const (
	// CompressionNone sends blocks as they are. It takes the least CPU and the
	// least memory, and is right where the server is near.
	CompressionNone Compression = "none"
	// CompressionLZ4 is right where the network is the bottleneck. A block is
	// then held in memory as a whole, twice.
	CompressionLZ4 Compression = "lz4"
)

// Defaults of [Config].
const (
	DefaultDatabase             = "sluice"
	DefaultUser                 = "default"
	DefaultDialTimeout          = 5 * time.Second
	DefaultWriteConnections     = 8
	DefaultReadConnections      = 8
	DefaultAnalyticsConnections = 4
	DefaultCompression          = CompressionNone
	DefaultInsertTimeout        = time.Minute
	DefaultLookupTimeout        = time.Minute
	DefaultOccupancyTimeout     = 10 * time.Second
	DefaultQueryTimeout         = 30 * time.Second
	DefaultExportTimeout        = 5 * time.Minute
	DefaultQueryMemoryBytesMax  = 4 << 30
	DefaultInsertConcurrency    = 2
	DefaultBlockRowsMax         = 256 << 10
	DefaultBlockBytesMax        = 64 << 20
	DefaultLookupKeysMax        = 64 << 10
	DefaultLookupBytesMax       = 16 << 20
	DefaultPageBytesMax         = 64 << 20
	DefaultListRowsMax          = 128 << 10
	DefaultSimilarExactRows     = 200_000
)

// TLS configures TLS. The zero value turns it off.
type TLS struct {
	Enabled bool
	// CAFile is a PEM file of the authorities to trust; empty trusts the system's.
	CAFile string
	// ServerName is the name that the server's certificate must have; empty
	// takes the host of the address.
	ServerName string
}

// Config says which server to use and within which limits. A field with a default has
// the default at its zero value.
type Config struct {
	// Addr is host:port of the native protocol. Required.
	Addr string
	// Database holds all tables. Default: [DefaultDatabase].
	Database string
	// Cluster is the name, in remote_servers, of the cluster that the tables are spread
	// over. With it, [schema.Schema.Migrate] does not create tables of a single
	// machine. Default: the cluster of the existing tables, if any.
	Cluster string
	// User defaults to [DefaultUser].
	User     string
	Password string
	TLS      TLS
	// DialTimeout bounds connecting, TLS and the handshake together. Default:
	// [DefaultDialTimeout].
	DialTimeout time.Duration

	// Each kind of work has a pool of its own, so that none waits for another. The
	// next three settings bound the connections of a pool; operations beyond it
	// wait. Beside them a [DB] has at most five connections: one for
	// readiness, four for its schema and for maintenance.

	// WriteConnectionsMax is for the inserts and lookups of the consumer. Default:
	// [DefaultWriteConnections].
	WriteConnectionsMax int
	// ReadConnectionsMax is for reads of single events and of pages, and for the
	// outcomes of writes that somebody waits for. Default: [DefaultReadConnections].
	ReadConnectionsMax int
	// AnalyticsConnectionsMax is for queries about many events, each of which takes one
	// connection. Default: [DefaultAnalyticsConnections].
	AnalyticsConnectionsMax int
	// Compression of blocks on the wire. Default: [DefaultCompression].
	Compression Compression

	// InsertTimeout bounds the insert of one block. Default: [DefaultInsertTimeout].
	InsertTimeout time.Duration
	// LookupTimeout bounds one query of a batched lookup. Default: [DefaultLookupTimeout].
	LookupTimeout time.Duration
	// OccupancyTimeout bounds the query of [clickhouse.Store.Occupancy], which saves lookups and is not
	// worth more than some of them take. Default: [DefaultOccupancyTimeout].
	OccupancyTimeout time.Duration
	// QueryTimeout is how long the server may work on one query of a reader. A query
	// that takes longer fails with [event.ErrQueryTimeout]. A reader waits a few
	// seconds longer for a server that does not answer. Default: [DefaultQueryTimeout].
	QueryTimeout time.Duration
	// ExportTimeout is how long the queries of one window of an export may run. A reader
	// that takes longer gets the rest of the window from new queries. Default:
	// [DefaultExportTimeout].
	ExportTimeout time.Duration
	// QueryMemoryBytesMax bounds the server's memory for one query of a reader. A query
	// that takes more fails with [event.ErrQueryTooLarge].
	// Default: [DefaultQueryMemoryBytesMax].
	QueryMemoryBytesMax int64

	// InsertConcurrency is how many blocks are sent at once. Default:
	// [DefaultInsertConcurrency].
	InsertConcurrency int
	// BlockRowsMax and BlockBytesMax bound one block, and so one part. A row
	// that is larger has a block of its own. Defaults: [DefaultBlockRowsMax],
	// [DefaultBlockBytesMax].
	BlockRowsMax, BlockBytesMax int
	// LookupKeysMax is the most keys of one query of a lookup. Default:
	// [DefaultLookupKeysMax].
	LookupKeysMax int
	// LookupBytesMax bounds the memory of the rows that one [clickhouse.Store.Cores] returns.
	// It must be more than one row. Default: [DefaultLookupBytesMax].
	LookupBytesMax int
	// ListRowsMax is the most rows of a database in which a list of events is
	// searched at once. In a larger one it is searched from day to day. Default:
	// [DefaultListRowsMax].
	ListRowsMax int
	// SimilarExactRows is the most vectors that a search for similar events compares one
	// by one. Among more, it first looks for candidates by the signs of the vectors, so that
	// its answer may lack a few of the nearest events. Default: [DefaultSimilarExactRows].
	SimilarExactRows int
	// PageBytesMax bounds the memory of one event, or of one page of a
	// conversation, where the reader states no bound. Default:
	// [DefaultPageBytesMax].
	PageBytesMax int
}

// The names that may stand in DDL, which takes no parameters.
var (
	databaseName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
	clusterName  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
)

// Validate returns all mistakes, one error for each field, joined.
func (c Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("clickhouse: %s: %w", field, fmt.Errorf(format, args...)))
	}
	if c.Addr == "" {
		bad("Addr", "is required")
	} else if host, port, err := net.SplitHostPort(c.Addr); err != nil {
		bad("Addr", "%q is not host:port", c.Addr)
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		bad("Addr", "%q is not host:port", c.Addr)
	}
	if c.Database != "" && !databaseName.MatchString(c.Database) {
		bad("Database", "%q is not 1 to 63 letters, digits and underscores that begin with no digit", c.Database)
	}
	if c.Cluster != "" && !clusterName.MatchString(c.Cluster) {
		bad("Cluster", "%q is not 1 to 64 letters, digits, underscores, hyphens and dots", c.Cluster)
	}
	if !c.TLS.Enabled && (c.TLS.CAFile != "" || c.TLS.ServerName != "") {
		bad("TLS", "has settings but is not enabled")
	}
	switch c.Compression {
	case "", CompressionNone, CompressionLZ4:
	default:
		bad("Compression", "%q is neither %q nor %q", c.Compression, CompressionNone, CompressionLZ4)
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{
		{"DialTimeout", c.DialTimeout},
		{"InsertTimeout", c.InsertTimeout},
		{"LookupTimeout", c.LookupTimeout},
		{"OccupancyTimeout", c.OccupancyTimeout},
		{"QueryTimeout", c.QueryTimeout},
		{"ExportTimeout", c.ExportTimeout},
	} {
		if d.value < 0 {
			bad(d.field, "%s is negative", d.value)
		}
	}
	for _, n := range []struct {
		field string
		value int64
	}{
		{"WriteConnectionsMax", int64(c.WriteConnectionsMax)},
		{"ReadConnectionsMax", int64(c.ReadConnectionsMax)},
		{"AnalyticsConnectionsMax", int64(c.AnalyticsConnectionsMax)},
		{"QueryMemoryBytesMax", c.QueryMemoryBytesMax},
		{"InsertConcurrency", int64(c.InsertConcurrency)},
		{"BlockRowsMax", int64(c.BlockRowsMax)},
		{"BlockBytesMax", int64(c.BlockBytesMax)},
		{"LookupKeysMax", int64(c.LookupKeysMax)},
		{"LookupBytesMax", int64(c.LookupBytesMax)},
		{"PageBytesMax", int64(c.PageBytesMax)},
		{"ListRowsMax", int64(c.ListRowsMax)},
		{"SimilarExactRows", int64(c.SimilarExactRows)},
	} {
		if n.value < 0 {
			bad(n.field, "%d is negative", n.value)
		}
	}
	return errors.Join(errs...)
}

// WithDefaults returns c with the default in each field that has its zero value.
func (c Config) WithDefaults() Config {
	c.Database = cmp.Or(c.Database, DefaultDatabase)
	c.User = cmp.Or(c.User, DefaultUser)
	c.DialTimeout = cmp.Or(c.DialTimeout, DefaultDialTimeout)
	c.WriteConnectionsMax = cmp.Or(c.WriteConnectionsMax, DefaultWriteConnections)
	c.ReadConnectionsMax = cmp.Or(c.ReadConnectionsMax, DefaultReadConnections)
	c.AnalyticsConnectionsMax = cmp.Or(c.AnalyticsConnectionsMax, DefaultAnalyticsConnections)
	c.Compression = cmp.Or(c.Compression, DefaultCompression)
	c.InsertTimeout = cmp.Or(c.InsertTimeout, DefaultInsertTimeout)
	c.LookupTimeout = cmp.Or(c.LookupTimeout, DefaultLookupTimeout)
	c.OccupancyTimeout = cmp.Or(c.OccupancyTimeout, DefaultOccupancyTimeout)
	c.QueryTimeout = cmp.Or(c.QueryTimeout, DefaultQueryTimeout)
	c.ExportTimeout = cmp.Or(c.ExportTimeout, DefaultExportTimeout)
	c.QueryMemoryBytesMax = cmp.Or(c.QueryMemoryBytesMax, DefaultQueryMemoryBytesMax)
	c.InsertConcurrency = cmp.Or(c.InsertConcurrency, DefaultInsertConcurrency)
	c.BlockRowsMax = cmp.Or(c.BlockRowsMax, DefaultBlockRowsMax)
	c.BlockBytesMax = cmp.Or(c.BlockBytesMax, DefaultBlockBytesMax)
	c.LookupKeysMax = cmp.Or(c.LookupKeysMax, DefaultLookupKeysMax)
	c.LookupBytesMax = cmp.Or(c.LookupBytesMax, DefaultLookupBytesMax)
	c.PageBytesMax = cmp.Or(c.PageBytesMax, DefaultPageBytesMax)
	c.ListRowsMax = cmp.Or(c.ListRowsMax, DefaultListRowsMax)
	c.SimilarExactRows = cmp.Or(c.SimilarExactRows, DefaultSimilarExactRows)
	return c
}

// ClientTLS returns the TLS configuration of a client, nil if TLS is off. It reads the CA
// file.
func (c Config) ClientTLS() (*tls.Config, error) { return c.tlsConfig() }

// tlsConfig returns nil if TLS is off.
func (c Config) tlsConfig() (*tls.Config, error) {
	if !c.TLS.Enabled {
		return nil, nil //nolint:nilnil // no TLS is no error
	}
	cfg := &tls.Config{ServerName: c.TLS.ServerName, MinVersion: tls.VersionTLS12}
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(c.Addr) // checked by Validate
	}
	if c.TLS.CAFile != "" {
		pem, err := os.ReadFile(c.TLS.CAFile)
		if err != nil {
			return nil, fmt.Errorf("clickhouse: TLS.CAFile: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("clickhouse: TLS.CAFile: %s has no certificate", c.TLS.CAFile)
		}
	}
	return cfg, nil
}
