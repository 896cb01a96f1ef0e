// Package workload makes a load of real conversations, sends it to a running
// Sluice over HTTP, and checks that what is there afterwards is what was sent.
package workload

import (
	"bufio"
	"compress/gzip"
	"embed"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
)

//go:embed corpus/*.gz
var corpusFiles embed.FS

// lineBytesMax bounds a line of a corpus: a batch's longest item is 1 MiB.
const lineBytesMax = 1 << 20

// Corpus is real events, which a [Plan] repeats under new ids.
type Corpus struct{ samples []sample }

// sample is one real event, in pieces of JSON that need no further escaping.
type sample struct {
	conversation  string
	metadata      string // the members, without the braces
	name          string
	failure       string // a JSON string, empty without an error
	latency       string
	input, output string
	// Vectors by their encoding, all empty in a corpus of text.
	inputVector, outputVector [encodings]string
}

// Encoding is how a load carries its embeddings.
type Encoding int

// The encodings.
const (
	Text       Encoding = iota // none
	Base64                     // of little-endian float32
	JSONArrays                 // of decimal numbers
	encodings
)

// String is the encoding's name.
func (e Encoding) String() string {
	return [...]string{"text", "embeddings, base64", "embeddings, JSON arrays"}[e]
}

// OpenCorpus reads a gzipped file of events, one JSON object per line in the
// shape of POST /event. An empty path is the corpus that comes with Sluice:
// that of events without embeddings for [Text], and with two 384-dimensional
// ones of each event otherwise.
func OpenCorpus(path string, e Encoding) (*Corpus, error) {
	var (
		file io.ReadCloser
		err  error
	)
	switch {
	case path != "":
		file, err = os.Open(path)
	case e == Text:
		file, err = corpusFiles.Open("corpus/conversations.ndjson.gz")
	default:
		file, err = corpusFiles.Open("corpus/embedded.ndjson.gz")
	}
	if err != nil {
		return nil, fmt.Errorf("open corpus: %w", err)
	}
	defer file.Close()
	c, err := readCorpus(file, e)
	if err != nil {
		return nil, fmt.Errorf("read corpus %s: %w", path, err)
	}
	return c, nil
}

func readCorpus(r io.Reader, e Encoding) (*Corpus, error) {
	unzipped, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(unzipped)
	lines.Buffer(nil, lineBytesMax)
	var c Corpus
	for lines.Scan() {
		s, err := parseSample(lines.Bytes(), e)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", len(c.samples)+1, err)
		}
		c.samples = append(c.samples, s)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(c.samples) == 0 {
		return nil, errors.New("it has no events")
	}
	return &c, nil
}

func parseSample(line []byte, e Encoding) (sample, error) {
	var in struct {
		Conversation string          `json:"conversation_id"`
		Metadata     json.RawMessage `json:"conversation_metadata"`
		Name         string          `json:"event_name"`
		Error        json.RawMessage `json:"error"`
		Latency      json.Number     `json:"latency"`
		Input        json.RawMessage `json:"input"`
		Output       json.RawMessage `json:"output"`
		InputVector  []byte          `json:"input_embeddings"`
		OutputVector []byte          `json:"output_embeddings"`
	}
	if err := json.Unmarshal(line, &in); err != nil {
		return sample{}, err
	}
	s := sample{
		conversation: in.Conversation, name: in.Name, failure: string(in.Error), latency: in.Latency.String(),
		input: string(in.Input), output: string(in.Output),
	}
	if n := len(in.Metadata); n > 2 {
		s.metadata = string(in.Metadata[1 : n-1])
	}
	if e == Text {
		return s, nil
	}
	if len(in.InputVector) == 0 || len(in.OutputVector) == 0 {
		return sample{}, errors.New("the event has no embeddings")
	}
	s.inputVector, s.outputVector = encodeVector(in.InputVector), encodeVector(in.OutputVector)
	return s, nil
}

// encodeVector returns the JSON of a vector of little-endian float32 in every encoding.
func encodeVector(raw []byte) [encodings]string {
	array := []byte{'['}
	for at := 0; at+4 <= len(raw); at += 4 {
		if at > 0 {
			array = append(array, ',')
		}
		array = strconv.AppendFloat(array, float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[at:]))), 'g', -1, 32)
	}
	return [encodings]string{
		Base64:     `"` + base64.StdEncoding.EncodeToString(raw) + `"`,
		JSONArrays: string(append(array, ']')),
	}
}
