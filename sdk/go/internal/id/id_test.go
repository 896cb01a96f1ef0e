package id_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

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
			// Bits above the 38 do not leak into the hash.
			if got := id.Mint(v.ConversationID, v.UnixMicros, random|3<<38); got != v.ID {
				t.Errorf("with more bits the id is %s, want %s", got, v.ID)
			}
		})
	}
}

func TestSequences(t *testing.T) {
	body, err := os.ReadFile("../../../spec/vectors/ids.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Sequences []struct {
			Name  string
			First string
			Steps []struct {
				ClockMicros     int64  `json:"clock_micros"`
				TimestampMicros int64  `json:"timestamp_micros"`
				ConversationID  string `json:"conversation_id"`
				ID              string
			}
		}
	}
	if err := json.Unmarshal(body, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Sequences) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Sequences {
		t.Run(v.Name, func(t *testing.T) {
			first, err := strconv.ParseUint(v.First, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			process := id.NewProcess(first)
			for i, s := range v.Steps {
				micros := s.TimestampMicros
				if micros == 0 {
					micros = process.Time(time.UnixMicro(s.ClockMicros))
				}
				if got := process.Mint(s.ConversationID, micros); got != s.ID {
					t.Errorf("step %d: %s, want %s", i, got, s.ID)
				}
			}
		})
	}
}

// Several goroutines mint at the same time. The ids of each ascend, and all ids differ.
func TestProcessConcurrent(t *testing.T) {
	const goroutines, each = 8, 20_000
	now := time.UnixMicro(1_767_323_045_678_901)
	for name, timeOf := range map[string]func() int64{
		"equal timestamps": now.UnixMicro,
		"no timestamps":    func() int64 { return id.Current().Time(now) },
	} {
		t.Run(name, func(t *testing.T) {
			minted := make([][]string, goroutines)
			var wg sync.WaitGroup
			for g := range minted {
				wg.Go(func() {
					for range each {
						minted[g] = append(minted[g], id.Current().Mint("c1", timeOf()))
					}
				})
			}
			wg.Wait()
			for g, ids := range minted {
				if !slices.IsSorted(ids) {
					t.Errorf("the ids of goroutine %d do not ascend", g)
				}
			}
			all := slices.Concat(minted...)
			slices.Sort(all)
			if n := len(slices.Compact(all)); n != goroutines*each {
				t.Errorf("%d ids of %d are distinct", n, goroutines*each)
			}
		})
	}
}

// TestHash has the published check values of XXH64 with seed 0.
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
