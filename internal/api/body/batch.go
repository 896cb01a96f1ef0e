package body

import (
	"bytes"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/jsonscan"
)

// jsonSpace is the white space of JSON.
const jsonSpace = " \t\r\n"

// Split appends the items of a batch to items: the elements of a JSON array where
// the body begins with "[", otherwise the lines that are not blank. It reports
// which of the two the body is. Elements are found by the commas of the array
// alone, so that the array is valid JSON exactly when each element is.
//
// The error is an [*event.Error]: the array is broken, or there are more items than
// itemsMax.
func Split(items [][]byte, body []byte, itemsMax int) (_ [][]byte, isArray bool, _ error) {
	body = bytes.TrimLeft(trimByteOrderMark(body), jsonSpace)
	if len(body) > 0 && body[0] == '[' {
		items, err := splitArray(items, body, itemsMax)
		return items, true, err
	}
	for len(body) > 0 {
		var line []byte
		line, body, _ = bytes.Cut(body, []byte{'\n'})
		// Each of several files that were put together may begin with a byte order mark.
		if line = bytes.Trim(trimByteOrderMark(line), jsonSpace); len(line) == 0 {
			continue
		}
		if len(items) == itemsMax {
			return items, false, errTooManyItems(itemsMax)
		}
		items = append(items, line)
	}
	return items, false, nil
}

func splitArray(items [][]byte, body []byte, itemsMax int) ([][]byte, error) {
	depth, start := 0, 1
	for i := 0; i < len(body); i++ {
		switch body[i] {
		case '"':
			i = jsonscan.StringEnd(body, i)
		case '[', '{':
			depth++
		case ',':
			if depth != 1 {
				continue
			}
			if len(items) == itemsMax {
				return items, errTooManyItems(itemsMax)
			}
			items = append(items, bytes.Trim(body[start:i], jsonSpace))
			start = i + 1
		case ']', '}':
			if depth--; depth > 0 {
				continue
			}
			if body[i] != ']' || len(bytes.Trim(body[i+1:], jsonSpace)) > 0 {
				return items, errBrokenArray()
			}
			last := bytes.Trim(body[start:i], jsonSpace)
			if len(last) == 0 && len(items) == 0 {
				return items, nil
			}
			if len(items) == itemsMax {
				return items, errTooManyItems(itemsMax)
			}
			return append(items, last), nil
		}
	}
	return items, errBrokenArray()
}

func errBrokenArray() error {
	return event.Errorf(event.CodeInvalidJSON, "", "the body is not one valid JSON array")
}

func errTooManyItems(itemsMax int) error {
	return event.Errorf(event.CodeTooLarge, "", "the batch has more than %d items", itemsMax)
}
