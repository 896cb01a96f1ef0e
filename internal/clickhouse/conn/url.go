package conn

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

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
