package id_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/sluicehq/sluice/sdk/go/internal/id"
)

func TestMint(t *testing.T) {
	body, err := os.ReadFile("../../../spec/vectors/ids.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Mint []struct {
			Name           string
			ConversationID string `json:"conversation_id"`
			UnixMicros     int64  `json:"unix_micros"`
			Hash           string
			Random         string
			ID             string
		}
	}
	if err := json.Unmarshal(body, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Mint) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Mint {
		t.Run(v.Name, func(t *testing.T) {
			random, err := strconv.ParseUint(v.Random, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%06x", id.Hash(v.ConversationID)>>40); got != v.Hash {
				t.Errorf("hash is %s, want %s", got, v.Hash)
			}
			if got := id.Mint(v.ConversationID, v.UnixMicros, random); got != v.ID {
				t.Errorf("id is %s, want %s", got, v.ID)
			}
			// Bits beyond the 38 do not leak into the hash.
			if got := id.Mint(v.ConversationID, v.UnixMicros, random|3<<38); got != v.ID {
				t.Errorf("with more random bits the id is %s, want %s", got, v.ID)
			}
		})
	}
}

// The published check values of XXH64 with seed 0.
func TestHash(t *testing.T) {
	for s, want := range map[string]uint64{
		"":    0xef46db3751d8e999,
		"a":   0xd24ec4f1a98c6e5b,
		"abc": 0x44bc2cf5ad770999,
		"Nobody inspects the spammish repetition": 0xfbcea83c8a378bf1,
	} {
		if got := id.Hash(s); got != want {
			t.Errorf("Hash(%q) = %x, want %x", s, got, want)
		}
	}
}

func BenchmarkMint(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		id.Mint("support-42", 1767323045678901, 274877906943)
	}
}
