package main

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
)

const (
	// chunkWords is how many words in a row are taken over from a real text.
	chunkWords = 5
	// chunksMax bounds the chunks that texts are made of.
	chunksMax = 1 << 16
	// lengthsMax bounds the lengths of real texts that are kept.
	lengthsMax = 1 << 14
	// lineBytesMax bounds a line of the corpus.
	lineBytesMax = 1 << 20
)

// corpus is what texts and embeddings are made of.
type corpus struct {
	// chunks are pieces of real texts, and lengths the numbers of chunks of real texts.
	chunks  []string
	lengths []int
	// texts is how many real texts they come from.
	texts int
	// common is the most frequent word. few are two words of medium frequency.
	common string
	few    [2]string
	// vectors are real embeddings.
	vectors [][]float32
}

// readLines calls do for each line of a gzipped file.
func readLines(path string, do func(line []byte) error) (err error) {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	lines := bufio.NewScanner(unzipped)
	lines.Buffer(nil, lineBytesMax)
	for lines.Scan() {
		if err := do(lines.Bytes()); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// readCorpus reads the files of events.
func readCorpus(texts, embeddings string) (*corpus, error) {
	c := new(corpus)
	counts := make(map[string]int)
	err := readLines(texts, func(line []byte) error {
		var e struct{ Input, Output any }
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		for _, value := range [...]any{e.Input, e.Output} {
			text, _ := value.(string) // others are calls of programs, not language
			words := strings.Fields(text)
			if len(words) == 0 {
				continue
			}
			for _, word := range words {
				counts[strings.Trim(strings.ToLower(word), ".,!?\"'")]++
			}
			c.lengths = append(c.lengths, (len(words)+chunkWords-1)/chunkWords)
			for chunk := range slices.Chunk(words, chunkWords) {
				c.chunks = append(c.chunks, strings.Join(chunk, " "))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = readLines(embeddings, func(line []byte) error {
		var e struct {
			Input  []byte `json:"input_embeddings"`
			Output []byte `json:"output_embeddings"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		for _, data := range [...][]byte{e.Input, e.Output} {
			vector := make([]float32, len(data)/4)
			for i := range vector {
				vector[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
			}
			if len(c.vectors) > 0 && len(vector) != len(c.vectors[0]) {
				return fmt.Errorf("an embedding has %d dimensions, the first has %d", len(vector), len(c.vectors[0]))
			}
			c.vectors = append(c.vectors, vector)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// Words of letters alone, so that they are words of a search.
	words := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Or(counts[b]-counts[a], strings.Compare(a, b)) })
	words = slices.DeleteFunc(words, func(w string) bool { return w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyz") != "" })
	if len(words) < 300 || len(c.vectors) == 0 || len(c.vectors[0]) == 0 {
		return nil, fmt.Errorf("%d words and %d embeddings are too few", len(words), len(c.vectors))
	}
	c.common, c.few = words[0], [2]string{words[150], words[299]}
	c.texts = len(c.lengths)
	c.chunks, c.lengths = spread(c.chunks, chunksMax), spread(c.lengths, lengthsMax)
	return c, nil
}

// spread returns at most n of the values, evenly spread.
func spread[T any](values []T, n int) []T {
	if len(values) <= n {
		return values
	}
	chosen := make([]T, n)
	for i := range chosen {
		chosen[i] = values[i*len(values)/n]
	}
	return chosen
}
