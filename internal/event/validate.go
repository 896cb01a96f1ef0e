package event

import (
	"math"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/jsonscan"
)

// Validate reports the first thing that makes the write unfit for the log, or nil.
// The result depends on the write alone, except that times may lie up to
// [TimestampAhead] after now. Validate does not check which event names are allowed,
// see [Rules].
//
// The error is an [*Error]. A valid write goes through the log unchanged, and
// its rows can be stored.
func (w *Write) Validate(now time.Time) error {
	if err := w.validateRef(now); err != nil {
		return err
	}
	switch w.Op {
	case OpCreate:
		if err := w.validateCreate(); err != nil {
			return err
		}
	case OpUpdate:
		if w.Set == 0 {
			return ErrNoFields()
		}
	case OpDelete:
		if w.Set != 0 {
			return Errorf(CodeInvalidValue, "", "is a delete that sets fields")
		}
	default:
		return Errorf(CodeInvalidValue, "op", "is none of create, update and delete")
	}
	if w.Op != OpCreate && (w.ConversationID != "" || w.Fresh) {
		return Errorf(CodeInvalidValue, "conversation_id", "is given by a write that is no create")
	}
	return w.validateFields()
}

// validateRef checks how the write names its event.
func (w *Write) validateRef(now time.Time) error {
	if w.Alias == "" || w.Op == OpCreate {
		if !w.ID.valid() {
			return Errorf(CodeInvalidValue, "id", "is not an id that Sluice mints")
		}
		if w.ID.IsInternal() != (w.Alias != "") {
			return Errorf(CodeInvalidValue, "id", "is of the wrong kind: internal ids stand behind aliases, and only there")
		}
		if w.ID.Micros() > now.Add(TimestampAhead).UnixMicro() {
			return Errorf(CodeInvalidValue, "id", "carries a time that is more than 24 h ahead")
		}
	} else if !w.ID.IsZero() {
		return Errorf(CodeInvalidValue, "id", "is given beside an alias by a write that is no create")
	}
	if w.Alias != "" {
		if w.Fresh {
			return Errorf(CodeInvalidValue, "id", "is an alias, which is never fresh")
		}
		if isUUIDv8(w.Alias) {
			return Errorf(CodeInvalidValue, "id", "is a UUIDv8, which is never an alias")
		}
		return checkAlias(w.Alias)
	}
	return nil
}

func (w *Write) validateCreate() error {
	if err := CheckConversationID(w.ConversationID); err != nil {
		return err
	}
	if !utf8.ValidString(w.ConversationID) {
		return Errorf(CodeInvalidValue, "conversation_id", "is not valid UTF-8")
	}
	if w.ID.ConversationHash() != ConversationHash(w.ConversationID) {
		return ErrOtherConversation()
	}
	if !w.Set.Has(FieldEventName) {
		return Errorf(CodeRequired, "event_name", "is required")
	}
	if w.Null != 0 {
		return Errorf(CodeInvalidValue, "", "is a create that clears fields")
	}
	return nil
}

// CheckConversationID reports what is wrong with the text as a conversation_id, but
// for its UTF-8. The error is an [*Error].
func CheckConversationID(s string) error {
	if s == "" {
		return Errorf(CodeInvalidValue, "conversation_id", "must not be empty")
	}
	if len(s) > ConversationIDBytesMax {
		return Errorf(CodeTooLarge, "conversation_id", "is longer than %d bytes", ConversationIDBytesMax)
	}
	return nil
}

// validateFields checks the mutable fields: those that the write sets have a
// right value, the others none.
func (w *Write) validateFields() error {
	if w.Set >= 1<<fieldCount || w.Null&^w.Set != 0 {
		return Errorf(CodeInvalidValue, "", "clears fields that it does not name")
	}
	if w.Null.Has(FieldEventName) {
		return Errorf(CodeRequired, "event_name", "must not be null")
	}
	set := w.Set &^ w.Null
	for f, given := range [fieldCount]bool{
		FieldEventName:        w.EventName != "",
		FieldMetadata:         len(w.Metadata) != 0,
		FieldError:            w.Error != "",
		FieldLatency:          w.Latency != 0, // true for NaN
		FieldInput:            w.Input.Kind != KindNull,
		FieldOutput:           w.Output.Kind != KindNull,
		FieldInputEmbeddings:  len(w.InputEmbeddings) != 0,
		FieldOutputEmbeddings: len(w.OutputEmbeddings) != 0,
	} {
		if f := Field(f); given && !set.Has(f) {
			return Errorf(CodeInvalidValue, f.String(), "has a value but is not set")
		} else if !given && set.Has(f) && f != FieldLatency {
			return Errorf(CodeInvalidValue, f.String(), "is set but empty")
		}
	}
	if len(w.EventName) > EventNameBytesMax {
		return Errorf(CodeTooLarge, "event_name", "is longer than %d bytes", EventNameBytesMax)
	}
	if !utf8.ValidString(w.EventName) {
		return Errorf(CodeInvalidValue, "event_name", "is not valid UTF-8")
	}
	if w.MergeMetadata && (w.Op != OpUpdate || !set.Has(FieldMetadata)) {
		return Errorf(CodeInvalidValue, "conversation_metadata", "is a merge patch without a value, or of a write that is no update")
	}
	if len(w.Metadata) > 0 {
		if err := validateMetadata(w.Metadata); err != nil {
			return err
		}
	}
	if !utf8.ValidString(w.Error) {
		return Errorf(CodeInvalidValue, "error", "is not valid UTF-8")
	}
	if !(w.Latency >= 0 && w.Latency <= math.MaxFloat64) {
		return Errorf(CodeInvalidValue, "latency", "must be a finite number, 0 or more")
	}
	if err := validateContent(FieldInput, w.Input); err != nil {
		return err
	}
	if err := validateContent(FieldOutput, w.Output); err != nil {
		return err
	}
	if err := validateVector(FieldInputEmbeddings, w.InputEmbeddings); err != nil {
		return err
	}
	return validateVector(FieldOutputEmbeddings, w.OutputEmbeddings)
}

func validateMetadata(b []byte) error {
	if len(b) > MetadataBytesMax {
		return ErrMetadataTooLarge()
	}
	if b[0] != '{' {
		return Errorf(CodeInvalidType, "conversation_metadata", "must be an object")
	}
	finite, err := validateJSON(FieldMetadata, b)
	if err == nil && !finite && !jsonscan.NumbersFinite(b) {
		return ErrMetadataNumber()
	}
	return err
}

// validateJSON checks that b is one compact JSON value that a request's body
// could have held: strict, and within the depth that the body leaves to it. It
// reports whether all its numbers fit a double for certain.
func validateJSON(f Field, b []byte) (finite bool, err error) {
	if p := (jsonscan.Scanner{Text: b}); p.Value(0, 2) == len(b) && p.Spaces == 0 {
		return !p.Large, nil
	}
	depth, spaces := jsonscan.Measure(b)
	if depth > DepthMax-1 {
		return false, ErrTooDeep(f.String())
	}
	if spaces > 0 {
		return false, Errorf(CodeInvalidValue, f.String(), "is not compact JSON")
	}
	if !jsontext.Value(b).IsValid() {
		return false, Errorf(CodeInvalidJSON, f.String(), "is not valid JSON")
	}
	return false, nil
}

func validateContent(f Field, c Content) error {
	switch c.Kind {
	case KindNull:
		if len(c.Data) > 0 {
			return Errorf(CodeInvalidValue, f.String(), "has data but no kind")
		}
		return nil
	case KindString:
		if !utf8.Valid(c.Data) {
			return Errorf(CodeInvalidValue, f.String(), "is not valid UTF-8")
		}
		return nil
	case KindJSON:
		// A string is of the other kind, and null is none.
		if len(c.Data) == 0 || c.Data[0] == '"' || c.Data[0] == 'n' {
			return Errorf(CodeInvalidValue, f.String(), "is of the wrong kind")
		}
		_, err := validateJSON(f, c.Data)
		return err
	}
	return Errorf(CodeInvalidValue, f.String(), "is of an unknown kind")
}

func validateVector(f Field, vector Vector) error {
	if len(vector)%DimensionBytes != 0 {
		return Errorf(CodeInvalidValue, f.String(), "is not a whole number of float32")
	}
	if len(vector) > EmbeddingBytesMax {
		return ErrDimensions(f)
	}
	if i := vector.FirstNotFinite(); i >= 0 {
		return ErrNotFinite(f, i)
	}
	return nil
}
