package mcp

import (
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"
)

const metadataPrefix = "metadata."

// filter is the JSON form of the filters that all reads of the API take. The values keep their
// JSON, so that a number is compared as it was written.
type filter map[string]json.RawMessage

// query is the filter as parameters of a query string.
func (f filter) query() (url.Values, error) {
	query := make(url.Values)
	for name, value := range f {
		texts, ok := filterTexts(value)
		if !ok {
			return nil, invalid("filter."+name, "must be a string, a number, true or false, or for event_name a list of strings")
		}
		if len(texts) == 0 { // a query string has no empty list: the filter would be left out
			return nil, invalid("filter."+name, "must not be an empty list")
		}
		for _, text := range texts {
			parameter, value := filterParameter(name, text)
			query.Add(parameter, value)
		}
	}
	for _, other := range []string{"limit", "cursor", "order", "after", "embeddings", "measure", "group_by", "interval", "tz", "order_by"} {
		if _, ok := f[other]; ok {
			return nil, invalid("filter."+other, "is not a filter")
		}
	}
	return query, nil
}

// filterParameter is the parameter of a member of a filter. A query string is split at the
// first "=". So an operator that ends in "=" loses it, and one that does not takes the
// value into the name.
func filterParameter(name, value string) (parameter, text string) {
	if !strings.HasPrefix(name, metadataPrefix) {
		return name, value
	}
	for _, operator := range []string{"!=", ">=", "<="} {
		if key, ok := strings.CutSuffix(name, operator); ok {
			return key + operator[:1], value
		}
	}
	if strings.HasSuffix(name, ">") || strings.HasSuffix(name, "<") {
		return name + value, ""
	}
	return name, value
}

// filterTexts are the texts of a value of a filter.
func filterTexts(value json.RawMessage) ([]string, bool) {
	var text string
	switch value[0] {
	case '"':
		err := json.Unmarshal(value, &text)
		return []string{text}, err == nil
	case '[':
		var elements []*string
		if err := json.Unmarshal(value, &elements); err != nil || slices.Contains(elements, nil) {
			return nil, false
		}
		texts := make([]string, len(elements))
		for i, element := range elements {
			texts[i] = *element
		}
		return texts, true
	case '{', 'n':
		return nil, false
	}
	return []string{string(value)}, true
}

// named gives the field of an error about one of the filters its name among the arguments.
func (f filter) named(err error) error {
	var e *callError
	if errors.As(err, &e) {
		for name := range f {
			if parameter, _ := filterParameter(name, ""); e.field == name || strings.HasPrefix(name, metadataPrefix) && strings.HasPrefix(e.field, parameter) {
				detail := e.detail
				if e.code == codeUnknownField { // the API speaks of parameters, which an agent does not see
					detail = "is not a filter"
				}
				return &callError{code: e.code, field: "filter." + name, detail: detail, retryAfter: e.retryAfter}
			}
		}
	}
	return err
}

// named gives the field of an error another name.
func named(err error, field, name string) error {
	var e *callError
	if errors.As(err, &e) && e.field == field {
		return &callError{code: e.code, field: name, detail: e.detail, retryAfter: e.retryAfter}
	}
	return err
}
