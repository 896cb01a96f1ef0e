package sluice

import (
	"encoding/json"
	"net/http"
)

// A result is the server's answer to one write.
type result struct {
	Receipt string `json:"receipt"`
	Error   *struct {
		APIError
		Receipt string `json:"receipt"`
	} `json:"error"`
}

// isValid reports whether the result has the form of Sluice's results.
func (r *result) isValid() bool {
	if r.Error != nil {
		return r.Error.Status >= 400 && r.Error.Status < 600 && r.Error.Code != ""
	}
	return r.Receipt != ""
}

func (r *result) err() error {
	if r.Error != nil {
		return &r.Error.APIError
	}
	return nil
}

// isFinal reports whether the write was refused for good.
func (r *result) isFinal() bool {
	return r.Error != nil && (isFinalCode(r.Error.Code) || !isTransient(r.Error.Status) &&
		r.Error.Status != http.StatusUnauthorized && r.Error.Status != http.StatusForbidden)
}

// receipt returns the receipt, which names the write's place in the log; empty if
// the write is not in the log.
func (r *result) receipt() string {
	if r.Error != nil {
		return r.Error.Receipt
	}
	return r.Receipt
}

// parseResults parses the results of a batch of the given number of writes. It
// returns nil if the body does not have a valid result for each write.
func parseResults(body []byte, writes int) []result {
	var all struct{ Results []result }
	if json.Unmarshal(body, &all) != nil || len(all.Results) != writes {
		return nil
	}
	for i := range all.Results {
		if !all.Results[i].isValid() {
			return nil
		}
	}
	return all.Results
}
