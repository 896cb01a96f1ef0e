package clickhouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	// DefaultSQLAnswerTimeout is longer than the server may work on a query.
	DefaultSQLAnswerTimeout = conn.DefaultQueryTimeout + 10*time.Second

	// serverBufferBytes is how much of an answer the server keeps in memory until the
	// query has ended. The rest goes to its disk.
	serverBufferBytes = 1 << 20
	// errorBytesMax is how much is read of the server's error.
	errorBytesMax = 64 << 10
	// sqlIdleConnections are kept for the next queries.
	sqlIdleConnections = 4
	sqlIdleTimeout     = 20 * time.Second // less than the server keeps them
)

// SQLConfig says where queries in SQL are run, and as whom.
type SQLConfig struct {
	// Addr is host:port of ClickHouse's HTTP interface. Required.
	Addr string
	// Database is that of names without one. Default: [conn.DefaultDatabase].
	Database string
	// User is a user who may only read the live views: see docs/sql.md. Required.
	User     string
	Password string
	TLS      conn.TLS
	// AnswerTimeout bounds the time until an answer begins. Default:
	// [DefaultSQLAnswerTimeout].
	AnswerTimeout time.Duration
}

// SQL runs queries that others write, as a user who may only read the live views. Its
// methods may be called concurrently.
//
// It is apart from [Store], and uses HTTP: ClickHouse itself then makes JSON, CSV and
// Parquet of every type that it has, refuses several statements at once and files of its
// own, and keeps an answer until the query has ended, so that an error is never found in
// the middle of one.
type SQL struct {
	cfg    SQLConfig
	base   url.URL
	client *http.Client

	mu sync.Mutex
	// roleChecked is when the user was last found to have no right too many; zero
	// before.
	roleChecked time.Time
}

// ParseSQLURL reads http://user:password@host:port/database, or https. The query may have
// ca_file and server_name for https. Errors carry nothing of the URL that could be secret.
func ParseSQLURL(text string) (SQLConfig, error) {
	const form = "http://user:password@host:8123/database, or https" //nolint:gosec // names what goes where
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Opaque != "" || u.Fragment != "" || u.User.Username() == "" {
		// The error of url.Parse quotes the text, password and all.
		return SQLConfig{}, errors.New("is not of the form " + form)
	}
	if strings.Contains(u.Path+u.RawQuery, "@") {
		return SQLConfig{}, errors.New("/ and ? in the password must be percent-encoded")
	}
	var c SQLConfig
	port := u.Port()
	switch {
	case u.Scheme == "https":
		c.TLS.Enabled = true
		if port == "" {
			port = "8443"
		}
	case u.Scheme != "http":
		return SQLConfig{}, errors.New("is not of the form " + form)
	case port == "":
		port = "8123"
	}
	c.User, c.Database = u.User.Username(), strings.TrimPrefix(u.Path, "/")
	c.Password, _ = u.User.Password()
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return SQLConfig{}, errors.New("its query is malformed")
	}
	for name := range values {
		switch name {
		case "ca_file":
			c.TLS.CAFile = values.Get(name)
		case "server_name":
			c.TLS.ServerName = values.Get(name)
		default:
			return SQLConfig{}, fmt.Errorf("%s: is not known", name)
		}
	}
	c.Addr = net.JoinHostPort(u.Hostname(), port)
	return c, c.Validate()
}

// Validate returns all mistakes, joined.
func (c SQLConfig) Validate() error {
	errs := []error{conn.Config{Addr: c.Addr, Database: c.Database, TLS: c.TLS}.Validate()}
	if c.User == "" {
		errs = append(errs, errors.New("clickhouse: User: is required"))
	}
	if c.AnswerTimeout < 0 {
		errs = append(errs, fmt.Errorf("clickhouse: AnswerTimeout: %s is negative", c.AnswerTimeout))
	}
	return errors.Join(errs...)
}

// OpenSQL returns what runs queries. It reads the CA file but does not connect. The
// caller closes it with [SQL.Close].
func OpenSQL(cfg SQLConfig) (*SQL, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Database == "" {
		cfg.Database = conn.DefaultDatabase
	}
	if cfg.AnswerTimeout == 0 {
		cfg.AnswerTimeout = DefaultSQLAnswerTimeout
	}
	var tlsConfig *tls.Config
	base := url.URL{Scheme: "http", Host: cfg.Addr, Path: "/"}
	if cfg.TLS.Enabled {
		var err error
		if tlsConfig, err = (conn.Config{Addr: cfg.Addr, TLS: cfg.TLS}).ClientTLS(); err != nil {
			return nil, err
		}
		base.Scheme = "https"
	}
	return &SQL{cfg: cfg, base: base, client: &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: conn.DefaultDialTimeout}).DialContext,
			TLSClientConfig:     tlsConfig,
			TLSHandshakeTimeout: conn.DefaultDialTimeout,
			DisableCompression:  true, // answers are passed on as they are
			MaxIdleConnsPerHost: sqlIdleConnections,
			IdleConnTimeout:     sqlIdleTimeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close closes the connections that are idle.
func (s *SQL) Close() { s.client.CloseIdleConnections() }

// Query runs a query, and returns when it has ended. The caller reads the answer, within
// the time of ctx, and closes it.
//
// An error about the query itself is a [*query.SQLError]. Others wrap
// [event.ErrQueryTimeout] or [event.ErrQueryTooLarge] if the query reached its bounds,
// [query.ErrSQLBusy] if too many run, and [query.ErrSQLRole] if the user has rights that
// it should not have, so that nothing was run.
func (s *SQL) Query(ctx context.Context, q query.SQL) (io.ReadCloser, error) {
	if err := checkWords(q.Text); err != nil {
		return nil, err
	}
	if err := s.checkRole(ctx); err != nil {
		var own *query.SQLError
		if errors.As(err, &own) { // of Sluice's query, not of the caller's
			err = fmt.Errorf("%w: %s", query.ErrSQLRole, own.Message)
		}
		return nil, fmt.Errorf("check the user for SQL: %w", err)
	}
	return s.ask(ctx, q)
}

// formatOf is ClickHouse's name of the format.
func formatOf(f query.SQLFormat) string {
	switch f {
	case query.SQLCSV:
		return "CSVWithNames"
	case query.SQLParquet:
		return "Parquet"
	case query.SQLJSONLines:
	}
	return "JSONCompactEachRowWithNamesAndTypes"
}

// ask sends a query and returns its answer. What the user may do, ClickHouse decides.
func (s *SQL) ask(ctx context.Context, q query.SQL) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(s.cfg.AnswerTimeout, func() { cancel(context.DeadlineExceeded) })
	answer, err := s.send(ctx, q)
	late.Stop()
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		cancel(nil)
		return nil, err
	}
	return &sqlAnswer{ReadCloser: answer, end: func() { cancel(nil) }}, nil
}

// sqlAnswer is an answer that is being read.
type sqlAnswer struct {
	io.ReadCloser
	end func()
}

// Close breaks off what was not read.
func (a *sqlAnswer) Close() error {
	a.end()
	return a.ReadCloser.Close()
}

func (s *SQL) send(ctx context.Context, q query.SQL) (io.ReadCloser, error) {
	u := s.base
	u.RawQuery = url.Values{
		"database":       {s.cfg.Database},
		"default_format": {formatOf(q.Format)},
		// The server answers when the query has ended, so that its status and error are
		// those of the whole query.
		"wait_end_of_query": {"1"},
		"buffer_size":       {strconv.Itoa(serverBufferBytes)},
	}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(q.Text))
	if err != nil {
		return nil, fmt.Errorf("query sql: %w", err)
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	req.Header.Set("X-ClickHouse-User", s.cfg.User)
	req.Header.Set("X-ClickHouse-Key", s.cfg.Password)
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("query sql: %w", withoutURL(err))
	}
	code := resp.Header.Get("X-ClickHouse-Exception-Code")
	if resp.StatusCode == http.StatusOK && code == "" {
		// A FORMAT in the query has the last word, and a statement that returns no rows
		// has no format.
		switch got := resp.Header.Get("X-ClickHouse-Format"); got {
		case formatOf(q.Format):
			return resp.Body, nil
		case "":
			err = &query.SQLError{NotAllowed: true, Message: notAllowedMessage}
		default:
			err = &query.SQLError{Message: "FORMAT cannot stand in the query; the parameter format names the format"}
		}
		return nil, errors.Join(err, resp.Body.Close())
	}
	message, err := io.ReadAll(io.LimitReader(resp.Body, errorBytesMax))
	err = errors.Join(err, resp.Body.Close())
	number, numberErr := strconv.Atoi(code)
	if numberErr != nil {
		return nil, fmt.Errorf("query sql: ClickHouse's HTTP interface answers %s: %w", resp.Status, errors.Join(numberErr, err))
	}
	return nil, sqlError(number, string(message))
}

// withoutURL drops the URL from an error of the client: it says nothing that the
// configuration does not.
func withoutURL(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
