package event_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/event/eventtest"
	"github.com/sluicehq/sluice/internal/golden"
)

// The vectors that the server shares with every SDK. They are generated from
// the tables here, so that no reader of them is checked against itself.
const (
	idVectors = "../../sdk/spec/vectors/ids.json"
)

type mintVector struct {
	Name           string `json:"name"`
	ConversationID string `json:"conversation_id"`
	UnixMicros     int64  `json:"unix_micros"`
	Hash           string `json:"hash"`
	Random         string `json:"random"`
	ID             string `json:"id"`
}

// A sequenceVector is what one process mints, from its first id on.
type sequenceVector struct {
	Name string `json:"name"`
	// First is the random number at which the process begins to count.
	First string         `json:"first"`
	Steps []sequenceStep `json:"steps"`
}

type sequenceStep struct {
	// ClockMicros is what the system's clock shows at the call.
	ClockMicros int64 `json:"clock_micros"`
	// TimestampMicros is the event's own timestamp, where it has one.
	TimestampMicros int64  `json:"timestamp_micros,omitempty"`
	ConversationID  string `json:"conversation_id"`
	// UnixMicros is the time in the id, and Count are its low 38 bits.
	UnixMicros int64  `json:"unix_micros"`
	Count      string `json:"count"`
	ID         string `json:"id"`
}

type refVector struct {
	Name string     `json:"name"`
	ID   string     `json:"id"`
	Kind string     `json:"kind"`
	Code event.Code `json:"code,omitempty"`
}

func mintVectors() []mintVector {
	const randomMax = 1<<38 - 1
	at := int64(1_767_323_045_678_901)
	vectors := []mintVector{
		{Name: "ASCII", ConversationID: "c1", UnixMicros: at},
		{Name: "random 1", ConversationID: "c1", UnixMicros: at, Random: "1"},
		{Name: "random 2^38-1", ConversationID: "c1", UnixMicros: at, Random: strconv.Itoa(randomMax)},
		{Name: "random with bits 32 and above", ConversationID: "c1", UnixMicros: at, Random: strconv.Itoa(0x2a_1234_5678)},
		{Name: "earliest time", ConversationID: "c1", UnixMicros: event.TimestampMin},
		{Name: "microseconds 0", ConversationID: "c1", UnixMicros: 1_767_323_045_678_000},
		{Name: "microseconds 999", ConversationID: "c1", UnixMicros: 1_767_323_045_678_999},
		{Name: "milliseconds 999", ConversationID: "c1", UnixMicros: 1_767_323_045_999_999},
		{Name: "far future", ConversationID: "c1", UnixMicros: 253_402_300_799_999_999},
		{Name: "one byte", ConversationID: "a", UnixMicros: at},
		{Name: "a space", ConversationID: " ", UnixMicros: at},
		{Name: "NUL", ConversationID: "\x00", UnixMicros: at},
		{Name: "accents", ConversationID: "café", UnixMicros: at},
		{Name: "accents, decomposed", ConversationID: "cafe\u0301", UnixMicros: at},
		{Name: "CJK", ConversationID: "会話-42", UnixMicros: at},
		{Name: "emoji", ConversationID: "😀👩‍👩‍👧", UnixMicros: at},
		{Name: "UUID", ConversationID: "3f0d3a4e-7c1b-4d5e-9a2f-0123456789ab", UnixMicros: at},
		{Name: "256 bytes of two-byte characters", ConversationID: strings.Repeat("é", 128), UnixMicros: at},
	}
	// The hash takes another path at each of these lengths.
	for _, n := range []int{3, 4, 7, 8, 12, 31, 32, 33, 63, 64, 100, 255, 256} {
		vectors = append(vectors, mintVector{
			Name: fmt.Sprintf("%d bytes", n), ConversationID: strings.Repeat("conversation-", 20)[:n], UnixMicros: at, Random: "123456789012",
		})
	}
	for i := range vectors {
		v := &vectors[i]
		if v.Random == "" {
			v.Random = "0"
		}
		random, _ := strconv.ParseUint(v.Random, 10, 64)
		hash := event.ConversationHash(v.ConversationID)
		v.Hash = fmt.Sprintf("%06x", hash)
		v.ID = event.MakeID(v.UnixMicros, hash, random).String()
	}
	return vectors
}

// sequenceVectors are written down step by step, and not computed by what they
// test.
func sequenceVectors() []sequenceVector {
	const (
		at     = int64(1_767_323_045_678_901)
		second = int64(1_000_000)
		own    = at - 1000*second
	)
	vectors := []sequenceVector{}
	add := func(name string, first uint64, steps ...sequenceStep) {
		for i := range steps {
			s := &steps[i]
			if s.ConversationID == "" {
				s.ConversationID = "c1"
			}
			if s.TimestampMicros != 0 {
				s.UnixMicros = s.TimestampMicros
			}
			count, _ := strconv.ParseUint(s.Count, 10, 64)
			s.ID = event.MakeID(s.UnixMicros, event.ConversationHash(s.ConversationID), count).String()
		}
		vectors = append(vectors, sequenceVector{name, strconv.FormatUint(first, 10), steps})
	}
	add("the clock goes on", 5,
		sequenceStep{ClockMicros: at, UnixMicros: at, Count: "5"},
		sequenceStep{ClockMicros: at + 7, UnixMicros: at + 7, Count: "6"},
		sequenceStep{ClockMicros: at + second, UnixMicros: at + second, Count: "7"},
	)
	add("the clock stands still", 5,
		sequenceStep{ClockMicros: at, UnixMicros: at, Count: "5"},
		sequenceStep{ClockMicros: at, UnixMicros: at + 1, Count: "6"},
		sequenceStep{ClockMicros: at, UnixMicros: at + 2, Count: "7"},
		sequenceStep{ClockMicros: at + 2, UnixMicros: at + 3, Count: "8"},
		sequenceStep{ClockMicros: at + 100, UnixMicros: at + 100, Count: "9"},
	)
	add("the clock stands still over the end of a millisecond", 5,
		sequenceStep{ClockMicros: at + 98, UnixMicros: at + 98, Count: "5"}, // …678999
		sequenceStep{ClockMicros: at + 98, UnixMicros: at + 99, Count: "6"},
	)
	add("several conversations", 5,
		sequenceStep{ClockMicros: at, ConversationID: "c1", UnixMicros: at, Count: "5"},
		sequenceStep{ClockMicros: at, ConversationID: "c2", UnixMicros: at + 1, Count: "6"},
		sequenceStep{ClockMicros: at, ConversationID: "c1", UnixMicros: at + 2, Count: "7"},
	)
	add("equal timestamps", 5,
		sequenceStep{ClockMicros: at, TimestampMicros: own, Count: "5"},
		sequenceStep{ClockMicros: at + 1, TimestampMicros: own, Count: "6"},
		sequenceStep{ClockMicros: at + 2, TimestampMicros: own, ConversationID: "c2", Count: "7"},
		sequenceStep{ClockMicros: at + 3, TimestampMicros: own, Count: "8"},
	)
	add("timestamps leave the clock alone", 5,
		sequenceStep{ClockMicros: at, UnixMicros: at, Count: "5"},
		sequenceStep{ClockMicros: at + 10, TimestampMicros: at + 3600*second, Count: "6"},
		sequenceStep{ClockMicros: at + 20, UnixMicros: at + 20, Count: "7"},
		sequenceStep{ClockMicros: at + 20, TimestampMicros: at + 20, Count: "8"},
		sequenceStep{ClockMicros: at + 20, TimestampMicros: own, Count: "9"},
		sequenceStep{ClockMicros: at + 20, UnixMicros: at + 21, Count: "10"},
	)
	add("the clock is set back by less than 5 seconds", 5,
		sequenceStep{ClockMicros: at, UnixMicros: at, Count: "5"},
		sequenceStep{ClockMicros: at - 5*second + 1, UnixMicros: at + 1, Count: "6"},
		sequenceStep{ClockMicros: at - 5*second + 3, UnixMicros: at + 2, Count: "7"},
		sequenceStep{ClockMicros: at + 3, UnixMicros: at + 3, Count: "8"},
	)
	add("the clock is set back by 5 to 10 seconds", 5,
		sequenceStep{ClockMicros: at, UnixMicros: at, Count: "5"},
		sequenceStep{ClockMicros: at - 5*second, UnixMicros: at, Count: "6"},
		sequenceStep{ClockMicros: at - 10*second, UnixMicros: at, Count: "7"},
		sequenceStep{ClockMicros: at - 5*second, UnixMicros: at, Count: "8"},
		sequenceStep{ClockMicros: at - 5*second + 1, UnixMicros: at + 1, Count: "9"},
		sequenceStep{ClockMicros: at + 5, UnixMicros: at + 5, Count: "10"},
	)
	add("the clock is set back by more than 10 seconds", 5,
		sequenceStep{ClockMicros: at, UnixMicros: at, Count: "5"},
		sequenceStep{ClockMicros: at - 10*second - 1, UnixMicros: at - 10*second - 1, Count: "6"},
		sequenceStep{ClockMicros: at - 10*second - 1, UnixMicros: at - 10*second, Count: "7"},
	)
	add("the count passes 2^32", 1<<32-1,
		sequenceStep{ClockMicros: at, UnixMicros: at, Count: "4294967295"},
		sequenceStep{ClockMicros: at, UnixMicros: at + 1, Count: "4294967296"},
		sequenceStep{ClockMicros: at, UnixMicros: at + 2, Count: "4294967297"},
	)
	add("the highest first count", 1<<37-1,
		sequenceStep{ClockMicros: at, TimestampMicros: own, Count: "137438953471"},
		sequenceStep{ClockMicros: at, TimestampMicros: own, Count: "137438953472"},
	)
	add("the count starts again after 2^38-1", 1<<38-1,
		sequenceStep{ClockMicros: at, UnixMicros: at, Count: "274877906943"},
		sequenceStep{ClockMicros: at, UnixMicros: at + 1, Count: "0"},
		sequenceStep{ClockMicros: at, UnixMicros: at + 2, Count: "1"},
	)
	add("the first count is 0", 0,
		sequenceStep{ClockMicros: at, UnixMicros: at, Count: "0"},
		sequenceStep{ClockMicros: at, UnixMicros: at + 1, Count: "1"},
	)
	return vectors
}

func refVectors() []refVector {
	const alias, minted, invalid = "alias", "minted", "invalid"
	id := event.MakeID(1_767_323_045_678_901, event.ConversationHash("c1"), 1).String()
	return []refVector{
		{"minted", id, minted, ""},
		{"minted, microseconds 999", id[:14] + "83e7" + id[18:], minted, ""},
		{"UUIDv4", "3f0d3a4e-7c1b-4d5e-9a2f-0123456789ab", alias, ""},
		{"UUIDv7", "019b7ca9-8f2e-7385-82d3-930000000001", alias, ""},
		{"UUIDv8 of a variant that is none", id[:19] + "c" + id[20:], alias, ""},
		{"UUIDv8 without hyphens", strings.ReplaceAll(id, "-", ""), alias, ""},
		{"UUIDv8 in braces", "{" + id + "}", alias, ""},
		{"UUIDv8 with a digit too many", id + "0", alias, ""},
		{"UUIDv8 with a digit that is none", id[:35] + "g", alias, ""},
		{"UUIDv8 with a hyphen astray", id[:9] + "-" + id[10:], alias, ""},
		{"one byte", "x", alias, ""},
		{"all kinds of printable ASCII", " !\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~", alias, ""},
		{"128 bytes", strings.Repeat("x", 128), alias, ""},
		{"empty", "", invalid, event.CodeRequired},
		{"129 bytes", strings.Repeat("x", 129), invalid, event.CodeTooLarge},
		{"tab", "a\tb", invalid, event.CodeInvalidValue},
		{"NUL", "a\x00", invalid, event.CodeInvalidValue},
		{"DEL", "a\x7f", invalid, event.CodeInvalidValue},
		{"not ASCII", "é", invalid, event.CodeInvalidValue},
		{"UUIDv8 in upper case", strings.ToUpper(id), invalid, event.CodeInvalidValue},
		{"UUIDv8 with one upper-case digit", id[:35] + "A", invalid, event.CodeInvalidValue},
		{"UUIDv8 with microseconds 1000", id[:14] + "83e8" + id[18:], invalid, event.CodeInvalidValue},
		{"UUIDv8 with microseconds 1023", id[:14] + "83ff" + id[18:], invalid, event.CodeInvalidValue},
		{"internal UUIDv8", id[:14] + "8785" + id[18:], invalid, event.CodeInvalidValue},
		{"UUIDv8 with the highest microsecond bit", id[:14] + "8b85" + id[18:], invalid, event.CodeInvalidValue},
		{"UUIDv8 a microsecond before 2000", event.MakeID(event.TimestampMin-1, 1, 1).String(), invalid, event.CodeInvalidValue},
		{"UUIDv8 of the year 9999", event.MakeID(253_402_300_799_999_999, 1, 1).String(), invalid, event.CodeInvalidValue},
		{"UUIDv8 of all ones", "ffffffff-ffff-8fff-bfff-ffffffffffff", invalid, event.CodeInvalidValue},
	}
}

func TestIDVectors(t *testing.T) {
	file := struct {
		Mint      []mintVector     `json:"mint"`
		Sequences []sequenceVector `json:"sequences"`
		Refs      []refVector      `json:"refs"`
	}{mintVectors(), sequenceVectors(), refVectors()}
	golden.Compare(t, idVectors, golden.JSON(t, file))

	for _, v := range file.Mint {
		t.Run("mint/"+v.Name, func(t *testing.T) {
			if v.ConversationID == "" || len(v.ConversationID) > event.ConversationIDBytesMax {
				t.Errorf("conversation of %d bytes", len(v.ConversationID))
			}
			ref, err := event.ParseRef(v.ID, time.UnixMicro(v.UnixMicros))
			if err != nil {
				t.Fatal(err)
			}
			id := ref.ID
			if id.Micros() != v.UnixMicros || fmt.Sprintf("%06x", id.ConversationHash()) != v.Hash || id.IsInternal() {
				t.Errorf("time %d, hash %06x, internal %t", id.Micros(), id.ConversationHash(), id.IsInternal())
			}
			// The same by hand, from RFC 9562 and design, on the text.
			digits := strings.ReplaceAll(v.ID, "-", "")
			ms, _ := strconv.ParseInt(digits[:12], 16, 64)
			us, _ := strconv.ParseInt(digits[13:16], 16, 64)
			low, _ := strconv.ParseUint(digits[16:], 16, 64)
			if ms*1000+us != v.UnixMicros || digits[12] != '8' || low>>62 != 2 {
				t.Errorf("ms %d, us %d, version %c, variant %b", ms, us, digits[12], low>>62)
			}
			if fmt.Sprintf("%06x", low>>38&0xff_ffff) != v.Hash || strconv.FormatUint(low&(1<<38-1), 10) != v.Random {
				t.Errorf("hash %06x, random %d", low>>38&0xff_ffff, low&(1<<38-1))
			}
		})
	}
	for _, v := range file.Sequences {
		t.Run("sequences/"+v.Name, func(t *testing.T) {
			first, _ := strconv.ParseUint(v.First, 10, 64)
			mint, clock := event.NewMinter(first), new(event.Clock)
			for i, s := range v.Steps {
				micros := s.TimestampMicros
				if micros == 0 {
					micros = clock.Next(time.UnixMicro(s.ClockMicros)).UnixMicro()
				}
				if id := mint(micros, s.ConversationID); micros != s.UnixMicros || id.String() != s.ID {
					t.Errorf("step %d: got time %d, id %s; want %d, %s", i, micros, id, s.UnixMicros, s.ID)
				}
			}
		})
	}
	for _, v := range file.Refs {
		t.Run("refs/"+v.Name, func(t *testing.T) {
			ref, err := event.ParseRef(v.ID, now)
			if v.Code != "" {
				var got *event.Error
				if !errors.As(err, &got) || got.Code != v.Code || got.Field != "id" {
					t.Errorf("got %v, want code %s", err, v.Code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if isAlias := ref.Alias != ""; isAlias != (v.Kind == "alias") || isAlias == !ref.ID.IsZero() {
				t.Errorf("got %#v", ref)
			}
			if ref.String() != v.ID {
				t.Errorf("came back as %q", ref)
			}
		})
	}
}

// TestConversationHashKnown pins the hash to published values of XXH64, seed 0.
func TestConversationHashKnown(t *testing.T) {
	for _, c := range []struct {
		text string
		want uint32
	}{
		{"", 0xef46db},    // 0xef46db3751d8e999
		{"a", 0xd24ec4},   // 0xd24ec4f1a98c6e5b
		{"abc", 0x44bc2c}, // 0x44bc2cf5ad770999
	} {
		if got := event.ConversationHash(c.text); got != c.want {
			t.Errorf("%q: got %06x, want %06x", c.text, got, c.want)
		}
	}
}

func TestIDParts(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	for range 100_000 {
		at := event.TimestampMin + r.Int64N(now.UnixMicro()-event.TimestampMin)
		conversation := eventtest.Text(r, 1, 20)
		id := event.NewID(at, conversation)
		if id.Micros() != at || id.ConversationHash() != event.ConversationHash(conversation) || id.IsInternal() || id.IsZero() {
			t.Fatalf("%s: not what it was made of", id)
		}
		ref, err := event.ParseRef(id.String(), now)
		if err != nil || ref.ID != id {
			t.Fatalf("%s came back as %v, %v", id, ref, err)
		}
		internal := id.AsInternal()
		if !internal.IsInternal() || internal.Micros() != at || internal.ConversationHash() != id.ConversationHash() {
			t.Fatalf("%s: internal id %s", id, internal)
		}
		if _, err := event.ParseRef(internal.String(), now); err == nil {
			t.Fatalf("the internal id %s was accepted", internal)
		}
		// Ids of one conversation sort as their times do.
		if later := event.MakeID(at+1, id.ConversationHash(), 0); id.String() >= later.String() {
			t.Fatalf("%s does not sort before %s", id, later)
		}
	}
}

func TestIDTimeAhead(t *testing.T) {
	edge := now.Add(event.TimestampAhead).UnixMicro()
	for _, c := range []struct {
		name   string
		micros int64
		ok     bool
	}{{"24 h", edge, true}, {"a microsecond more", edge + 1, false}} {
		t.Run(c.name, func(t *testing.T) {
			_, err := event.ParseRef(event.MakeID(c.micros, 0, 0).String(), now)
			if (err == nil) != c.ok {
				t.Error(err)
			}
		})
	}
}
