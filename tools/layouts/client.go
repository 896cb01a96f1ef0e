package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// client speaks HTTP to the server. It is safe for concurrent use.
type client struct {
	addr, user, password, database string
}

// answer is what a statement returned, and how long the server worked on it.
type answer struct {
	body    string
	elapsed time.Duration
	rows    uint64 // read
}

// query runs one statement and returns its tab-separated rows. Settings are
// pairs of name and value. The elapsed time is the server's own.
func (c *client) query(ctx context.Context, sql string, settings ...string) (answer, error) {
	v := url.Values{
		"database": {c.database},
		// The time stands in a header, so the answer has to wait for its end.
		"wait_end_of_query": {"1"},
		// Every repetition is to do its work anew.
		"use_query_condition_cache": {"0"},
		"use_query_cache":           {"0"},
		"max_execution_time":        {"1200"},
	}
	for i := 0; i+1 < len(settings); i += 2 {
		v.Set(settings[i], settings[i+1])
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.addr+"/?"+v.Encode(), strings.NewReader(sql))
	if err != nil {
		return answer{}, err
	}
	req.SetBasicAuth(c.user, c.password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("query %.300q: %w", sql, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return answer{}, fmt.Errorf("query %.300q: %w", sql, err)
	}
	if resp.StatusCode != http.StatusOK {
		return answer{}, fmt.Errorf("query %.300q: %s: %.1000s", sql, resp.Status, body)
	}
	var summary struct {
		ElapsedNS string `json:"elapsed_ns"`
		ReadRows  string `json:"read_rows"`
	}
	if err := json.Unmarshal([]byte(resp.Header.Get("X-ClickHouse-Summary")), &summary); err != nil {
		return answer{}, fmt.Errorf("query %.300q: summary: %w", sql, err)
	}
	ns, err := strconv.ParseInt(summary.ElapsedNS, 10, 64)
	if err != nil {
		return answer{}, fmt.Errorf("query %.300q: summary: elapsed_ns: %w", sql, err)
	}
	rows, err := strconv.ParseUint(summary.ReadRows, 10, 64)
	if err != nil {
		return answer{}, fmt.Errorf("query %.300q: summary: read_rows: %w", sql, err)
	}
	return answer{body: string(body), elapsed: time.Duration(ns), rows: rows}, nil
}
