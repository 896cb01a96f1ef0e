// Package clickhouse stores events in ClickHouse and reads them back: the
// schema and its migrations, the encoding of rows as blocks of the native
// protocol, batched lookups, and the queries of the API.
package clickhouse

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
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
	DefaultQueryMemoryBytesMax  = 4 << 30
	DefaultInsertConcurrency    = 2
	DefaultBlockRowsMax         = 256 << 10
	DefaultBlockBytesMax        = 64 << 20
	DefaultLookupKeysMax        = 64 << 10
	DefaultLookupBytesMax       = 16 << 20
	DefaultPageBytesMax         = 64 << 20

	// TimeSeriesRowsMax is the most buckets that one time series can span.
	TimeSeriesRowsMax = 10_000
)

// TLS says how to speak TLS. The zero value does not.
type TLS struct {
	Enabled bool
	// CAFile is a PEM file of the authorities to trust; empty trusts the system's.
	CAFile string
	// ServerName is the name that the server's certificate must have; empty
	// takes the host of the address.
	ServerName string
}

// Config says which server to use, and within which bounds. Zero values of
// fields that have a default mean the default.
type Config struct {
	// Addr is host:port of the native protocol. Required.
	Addr string
	// Database holds all tables. Default: [DefaultDatabase].
	Database string
	// Cluster is the name, in the servers' remote_servers, of the cluster that the
	// tables are spread over. With it, [Store.Migrate] makes no tables of a single
	// machine. Default: what the tables that are there say.
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
	// wait. Beside them a [Store] has at most five connections: one for
	// [Store.Ready], four for its schema and for maintenance.

	// WriteConnectionsMax is for the inserts and look-ups of the consumer. Default:
	// [DefaultWriteConnections].
	WriteConnectionsMax int
	// ReadConnectionsMax is for reads of single events and of pages, and for what
	// became of writes that were waited for. Default:
	// [DefaultReadConnections].
	ReadConnectionsMax int
	// AnalyticsConnectionsMax is for questions about many events, each of which
	// takes one. Default: [DefaultAnalyticsConnections].
	AnalyticsConnectionsMax int
	// Compression of blocks on the wire. Default: [DefaultCompression].
	Compression Compression

	// InsertTimeout bounds the insert of one block. Default: [DefaultInsertTimeout].
	InsertTimeout time.Duration
	// LookupTimeout bounds one query of a batched lookup. Default: [DefaultLookupTimeout].
	LookupTimeout time.Duration
	// OccupancyTimeout bounds [Store.Occupancy], which saves lookups and is not
	// worth more than some of them take. Default: [DefaultOccupancyTimeout].
	OccupancyTimeout time.Duration
	// QueryTimeout is how long the server may work on one query of a reader. One
	// that takes longer is an [event.ErrQueryTimeout]. A server that does not answer
	// is waited for a few seconds longer. Default: [DefaultQueryTimeout].
	QueryTimeout time.Duration
	// QueryMemoryBytesMax bounds the server's memory for one query of a reader. One
	// that takes more is an [event.ErrQueryTooLarge].
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
	// LookupBytesMax bounds the memory of the rows that one [Store.Cores] returns.
	// It must be more than one row. Default: [DefaultLookupBytesMax].
	LookupBytesMax int
	// PageBytesMax bounds the memory of one event, or of one page of a
	// conversation, where the reader states no bound. Default:
	// [DefaultPageBytesMax].
	PageBytesMax int
}

// databaseName is what may stand in DDL, where parameters cannot.
var databaseName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)

// Validate reports everything that is wrong, one error per field, joined.
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
	} {
		if n.value < 0 {
			bad(n.field, "%d is negative", n.value)
		}
	}
	return errors.Join(errs...)
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c Config) withDefaults() Config {
	orDefault(&c.Database, DefaultDatabase)
	orDefault(&c.User, DefaultUser)
	orDefault(&c.DialTimeout, DefaultDialTimeout)
	orDefault(&c.WriteConnectionsMax, DefaultWriteConnections)
	orDefault(&c.ReadConnectionsMax, DefaultReadConnections)
	orDefault(&c.AnalyticsConnectionsMax, DefaultAnalyticsConnections)
	orDefault(&c.Compression, DefaultCompression)
	orDefault(&c.InsertTimeout, DefaultInsertTimeout)
	orDefault(&c.LookupTimeout, DefaultLookupTimeout)
	orDefault(&c.OccupancyTimeout, DefaultOccupancyTimeout)
	orDefault(&c.QueryTimeout, DefaultQueryTimeout)
	orDefault(&c.QueryMemoryBytesMax, DefaultQueryMemoryBytesMax)
	orDefault(&c.InsertConcurrency, DefaultInsertConcurrency)
	orDefault(&c.BlockRowsMax, DefaultBlockRowsMax)
	orDefault(&c.BlockBytesMax, DefaultBlockBytesMax)
	orDefault(&c.LookupKeysMax, DefaultLookupKeysMax)
	orDefault(&c.LookupBytesMax, DefaultLookupBytesMax)
	orDefault(&c.PageBytesMax, DefaultPageBytesMax)
	return c
}

// ParseURL reads clickhouse://user:password@host:port/database. The port
// defaults to 9000, or to 9440 with TLS. The query may have secure=true, and
// with it ca_file and server_name; compression=none or lz4;
// dial_timeout, such as 5s; and pool_size, which sets WriteConnectionsMax and
// ReadConnectionsMax. Errors carry nothing of the URL that could be secret.
func ParseURL(text string) (Config, error) {
	const form = "clickhouse://user:password@host:port/database"
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Opaque != "" || u.Fragment != "" {
		// The error of url.Parse quotes the text, password and all.
		return Config{}, errors.New("clickhouse url: is not of the form " + form)
	}
	if u.Scheme != "clickhouse" {
		return Config{}, fmt.Errorf("clickhouse url: the scheme is %q, not clickhouse", u.Scheme)
	}
	if strings.Contains(u.Path+u.RawQuery, "@") {
		// Later errors would quote what comes after it of the password.
		return Config{}, errors.New("clickhouse url: / and ? in the password must be percent-encoded")
	}
	var c Config
	c.User = u.User.Username()
	c.Password, _ = u.User.Password()
	if len(u.Path) > 1 {
		c.Database = u.Path[1:]
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, errors.New("clickhouse url: its query is malformed")
	}
	var errs []error
	for name, values := range query {
		value := values[len(values)-1]
		var err error
		switch name {
		case "secure":
			c.TLS.Enabled, err = strconv.ParseBool(value)
		case "ca_file":
			c.TLS.CAFile = value
		case "server_name":
			c.TLS.ServerName = value
		case "compression":
			c.Compression = Compression(value)
		case "dial_timeout":
			c.DialTimeout, err = time.ParseDuration(value)
		case "pool_size":
			c.WriteConnectionsMax, err = strconv.Atoi(value)
			c.ReadConnectionsMax = c.WriteConnectionsMax
		default:
			err = errors.New("is not known")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("clickhouse url: %s: %w", name, err))
		}
	}
	port := u.Port()
	if port == "" {
		port = "9000"
		if c.TLS.Enabled {
			port = "9440"
		}
	}
	c.Addr = net.JoinHostPort(u.Hostname(), port)
	errs = append(errs, c.Validate())
	if err := errors.Join(errs...); err != nil {
		return Config{}, err
	}
	return c, nil
}

// tlsConfig is nil where TLS is off.
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
