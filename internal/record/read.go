package record

import (
	"errors"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// clockSlack is how far the broker's clock may be behind the clock that a write
// was checked by before it was acknowledged: a day, by which clocks have been
// known to jump, and some more. Without it, a write at the edge of
// [event.TimestampAhead] would be acknowledged and then refused.
const clockSlack = 26 * time.Hour

// Read reads the write of a record and checks all of it, so that the write can
// be stored. The result depends on the record alone, so that every replay gets
// the same one. Times are measured against the record's AppendTime, which must
// be set.
//
// The error is an [*event.Error] of [event.CodeBadRecord] or
// [event.CodeUnsupportedVersion]. Its message has nothing of the payload. The
// write's byte slices alias r.Value.
func Read(r *Record) (event.Write, error) {
	if r.Version == 0 {
		return event.Write{}, event.Errorf(event.CodeBadRecord, "", "has no version header")
	}
	if r.Version != FormatVersion && r.Version != FormatVersionPatch {
		return event.Write{}, errFormatVersion(r)
	}
	var w event.Write
	if err := DecodeWrite(&w, r.Value); err != nil {
		return event.Write{}, event.Errorf(event.CodeBadRecord, "", "%s", err)
	}
	if FormatVersionOf(&w) != r.Version {
		return event.Write{}, errFormatVersion(r)
	}
	if err := w.Validate(r.AppendTime.Add(clockSlack)); err != nil {
		bad := &event.Error{Code: event.CodeBadRecord, Message: err.Error()}
		var invalid *event.Error
		if errors.As(err, &invalid) {
			bad.Field, bad.Message = invalid.Field, invalid.Message
		}
		return event.Write{}, bad
	}
	if !isKeyOf(r.Key, &w) {
		return event.Write{}, event.Errorf(event.CodeBadRecord, "id", "differs from the record's key")
	}
	return w, nil
}

func errFormatVersion(r *Record) error {
	return event.Errorf(event.CodeUnsupportedVersion, "", "is of version %d; this build reads version %d, and version %d with a merge patch",
		r.Version, FormatVersion, FormatVersionPatch)
}

// isKeyOf reports whether key is the text of the id or alias by which the write
// names its event.
func isKeyOf(key []byte, w *event.Write) bool {
	if w.Alias != "" {
		return string(key) == w.Alias
	}
	var text [36]byte
	return string(key) == string(w.ID.AppendText(text[:0]))
}
