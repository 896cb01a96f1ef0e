package event

import (
	"errors"
	"time"
)

// recordClockSlack is how far the broker's clock may be behind the one that a
// write was checked by before it was acknowledged: a day, by which clocks have
// been known to jump, and some more. Without it, a write at the edge of
// [TimestampAhead] would be acknowledged and then refused.
const recordClockSlack = 26 * time.Hour

// ReadRecord reads the write in a record and checks everything about it, so
// that what it returns can be stored. What it answers depends on the record
// only: replays get the same, whenever they come. Times are measured against the
// record's AppendTime, which must be set.
//
// The error is an [*Error] of [CodeBadRecord] or [CodeUnsupportedVersion], whose
// message has none of the payload. The write's byte slices alias r.Value.
func ReadRecord(r *Record) (Write, error) {
	if r.Version == 0 {
		return Write{}, Errorf(CodeBadRecord, "", "has no version header")
	}
	if r.Version != RecordVersion && r.Version != RecordVersionPatch {
		return Write{}, errRecordVersion(r)
	}
	var w Write
	if err := DecodeWrite(&w, r.Value); err != nil {
		return Write{}, Errorf(CodeBadRecord, "", "%s", err)
	}
	if w.RecordVersion() != r.Version {
		return Write{}, errRecordVersion(r)
	}
	if err := w.Validate(r.AppendTime.Add(recordClockSlack)); err != nil {
		bad := &Error{Code: CodeBadRecord, Message: err.Error()}
		var invalid *Error
		if errors.As(err, &invalid) {
			bad.Field, bad.Message = invalid.Field, invalid.Message
		}
		return Write{}, bad
	}
	if !w.hasKey(r.Key) {
		return Write{}, Errorf(CodeBadRecord, "id", "differs from the record's key")
	}
	return w, nil
}

func errRecordVersion(r *Record) error {
	return Errorf(CodeUnsupportedVersion, "", "is of version %d; this build reads version %d, and version %d with a merge patch",
		r.Version, RecordVersion, RecordVersionPatch)
}

// hasKey reports whether key is the text of the write's ref.
func (w *Write) hasKey(key []byte) bool {
	if w.Alias != "" {
		return string(key) == w.Alias
	}
	var text [36]byte
	return string(key) == string(w.ID.AppendText(text[:0]))
}
