// Package body makes writes of the bodies of requests. A [Reader] reads and inflates
// a body into memory that a [Budget] bounds, [Split] finds the items of a batch, and
// a [Parser] makes writes of JSON: the fast way where the JSON is plain, as nearly
// all of it is, and otherwise the strict way, which alone says what is wrong.
package body

import (
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// A Parser makes writes of the JSON of request bodies. Its methods may be called
// concurrently.
type Parser struct {
	// Rules say which event names are allowed.
	Rules *event.Rules
}

// ParseCreate reads the body of a create that was received at the time now.
// Without an id it mints one, and the write is Fresh; with an alias it mints the
// internal id that the event gets if this create wins.
//
// The error is an [*event.Error] that names the field. The write is valid as of
// [event.Write.Validate]; its metadata and contents may alias the body.
func (p *Parser) ParseCreate(body []byte, now time.Time) (event.Write, error) {
	var m members
	if err := m.read(body, false); err != nil {
		return event.Write{}, err
	}
	return p.create(&m, now)
}

// ParseUpdate reads the body of an update of the event that ref names; see
// [Parser.ParseCreate] for the rest. Besides the fields to change, the body may
// repeat the id.
func (p *Parser) ParseUpdate(ref event.Ref, body []byte) (event.Write, error) {
	var m members
	if err := m.read(body, false); err != nil {
		return event.Write{}, err
	}
	if raw := m.raw[memberID]; raw != nil {
		if s, err := stringOf(memberID, raw); err != nil || s != ref.String() {
			return event.Write{}, event.Errorf(event.CodeImmutable, "id", "differs from the event's; an id never changes")
		}
	}
	return p.update(ref, &m)
}

// ParsePatch is [Parser.ParseUpdate] for a body whose conversation_metadata, where
// it is an object, is a merge patch (RFC 7396).
func (p *Parser) ParsePatch(ref event.Ref, body []byte) (event.Write, error) {
	return asPatch(p.ParseUpdate(ref, body))
}

// asPatch makes a patch of an update that was read.
func asPatch(w event.Write, err error) (event.Write, error) {
	w.MergeMetadata = err == nil && (w.Set &^ w.Null).Has(event.FieldMetadata)
	return w, err
}

// ParseItem reads one item of a batch: the body of a create, or with the member
// "op" an update, patch or delete of the event that its id names. See
// [Parser.ParseCreate] for the rest.
func (p *Parser) ParseItem(item []byte, now time.Time) (event.Write, error) {
	var m members
	if err := m.read(item, true); err != nil {
		return event.Write{}, err
	}
	op, isPatch := event.OpCreate, false
	if raw := m.raw[memberOp]; given(raw) {
		s, err := stringOf(memberOp, raw)
		if err != nil {
			return event.Write{}, err
		}
		switch s {
		case "create":
		case "update":
			op = event.OpUpdate
		case "patch":
			op, isPatch = event.OpUpdate, true
		case "delete":
			op = event.OpDelete
		default:
			return event.Write{}, event.Errorf(event.CodeInvalidValue, "op", "must be create, update, patch or delete")
		}
	}
	if op == event.OpCreate {
		return p.create(&m, now)
	}
	if !given(m.raw[memberID]) {
		return event.Write{}, event.Errorf(event.CodeRequired, "id", "is required to %s an event", op)
	}
	ref, err := m.ref(now)
	if err != nil {
		return event.Write{}, err
	}
	if op == event.OpUpdate {
		if isPatch {
			return asPatch(p.update(ref, &m))
		}
		return p.update(ref, &m)
	}
	for i, raw := range m.raw {
		if i := member(i); raw != nil && i != memberOp && i != memberID {
			return event.Write{}, event.Errorf(event.CodeUnknownField, i.String(), "is not a member of a delete, which has op and id only")
		}
	}
	return event.NewDelete(ref), nil
}

func (p *Parser) create(m *members, now time.Time) (event.Write, error) {
	w := event.Write{Op: event.OpCreate}
	if !given(m.raw[memberConversationID]) {
		return event.Write{}, event.Errorf(event.CodeRequired, "conversation_id", "is required")
	}
	var err error
	if w.ConversationID, err = stringOf(memberConversationID, m.raw[memberConversationID]); err != nil {
		return event.Write{}, err
	}
	if err := event.CheckConversationID(w.ConversationID); err != nil {
		return event.Write{}, err
	}
	micros := now.UnixMicro()
	timed := given(m.raw[memberTimestamp])
	if timed {
		if micros, err = parseTimestamp(m.raw[memberTimestamp], now); err != nil {
			return event.Write{}, err
		}
	}
	if !given(m.raw[memberID]) {
		w.ID, w.Fresh = event.NewID(micros, w.ConversationID), true
	} else {
		ref, err := m.ref(now)
		if err != nil {
			return event.Write{}, err
		}
		switch {
		case ref.Alias != "":
			w.Alias, w.ID = ref.Alias, event.NewID(micros, w.ConversationID).AsInternal()
		case ref.ID.ConversationHash() != event.ConversationHash(w.ConversationID):
			return event.Write{}, event.ErrOtherConversation()
		case timed && ref.ID.Micros() != micros:
			return event.Write{}, event.Errorf(event.CodeIDMismatch, "id", "was minted for another timestamp")
		default:
			w.ID = ref.ID
		}
	}
	if !given(m.raw[memberEventName]) {
		return event.Write{}, event.Errorf(event.CodeRequired, "event_name", "is required")
	}
	if err := p.mutable(&w, m); err != nil {
		return event.Write{}, err
	}
	return w, nil
}

func (p *Parser) update(ref event.Ref, m *members) (event.Write, error) {
	for _, i := range [...]member{memberConversationID, memberTimestamp} {
		if m.raw[i] != nil {
			return event.Write{}, event.Errorf(event.CodeImmutable, i.String(), "never changes; leave it out of an update")
		}
	}
	w := event.Write{Op: event.OpUpdate, ID: ref.ID, Alias: ref.Alias}
	if err := p.mutable(&w, m); err != nil {
		return event.Write{}, err
	}
	if w.Set == 0 {
		return event.Write{}, event.ErrNoFields()
	}
	return w, nil
}

// mutable reads the members that an update may name into the write. A null
// clears the field in an update, and is as good as absent in a create.
func (p *Parser) mutable(w *event.Write, m *members) error {
	for i := memberEventName; i < memberCount; i++ {
		raw := m.raw[i]
		if raw == nil {
			continue
		}
		f := i.field()
		isNull := !given(raw)
		if !isNull {
			var err error
			if isNull, err = p.value(w, f, m); err != nil {
				return err
			}
		}
		if isNull {
			if f == event.FieldEventName {
				return event.Errorf(event.CodeRequired, "event_name", "must not be null")
			}
			if w.Op == event.OpCreate {
				continue
			}
			w.Null = w.Null.With(f)
		}
		w.Set = w.Set.With(f)
	}
	return p.Rules.AdmitEventName(w.EventName)
}

// value reads the value of one field, which is not null, into the write. It
// reports whether the value means the same as null.
func (p *Parser) value(w *event.Write, f event.Field, m *members) (isNull bool, err error) {
	raw, spaces := m.raw[memberOfField(f)], m.spaces[memberOfField(f)]
	switch f {
	case event.FieldEventName:
		w.EventName, err = p.eventName(raw)
	case event.FieldMetadata:
		w.Metadata, err = parseMetadata(raw, spaces, m.finite)
	case event.FieldError:
		w.Error, err = stringOf(memberError, raw)
		isNull = w.Error == ""
	case event.FieldLatency:
		w.Latency, err = parseLatency(raw)
	case event.FieldInput:
		w.Input = parseContent(raw, spaces)
	case event.FieldOutput:
		w.Output = parseContent(raw, spaces)
	case event.FieldInputEmbeddings:
		w.InputEmbeddings, err = parseVector(f, raw, m.vectors[0])
	case event.FieldOutputEmbeddings:
		w.OutputEmbeddings, err = parseVector(f, raw, m.vectors[1])
	default:
		panic("BUG: a member that is no mutable field")
	}
	return isNull, err
}
