package fulltext

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
)

// JSONTexts returns the texts of a JSON value, in order: its strings without their
// escapes, and its numbers. Names of members are no texts. Of text that is not JSON, it
// returns what comes before the fault.
func JSONTexts(value []byte) []string {
	var texts []string
	decoder := jsontext.NewDecoder(bytes.NewBuffer(value), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	for {
		token, err := decoder.ReadToken()
		if err != nil {
			return texts
		}
		switch token.Kind() {
		case '"':
			kind, n := decoder.StackIndex(decoder.StackDepth())
			if kind == '{' && n%2 == 1 {
				continue // the name of a member
			}
			texts = append(texts, token.String())
		case '0':
			texts = append(texts, token.String())
		default:
		}
	}
}
