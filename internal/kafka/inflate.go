package kafka

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The client makes a record of 168 bytes and a pointer of each record that it
// reads, and 40 bytes of each header, beside what is in the batch.
const (
	fetchedRecordBytes = 256
	fetchedHeaderBytes = 64
)

// errInflatedFull says that the fetched batches take all the memory that they may.
// The client fetches the batch again after the others were polled.
var errInflatedFull = errors.New("the fetched records take all the memory that they may")

// inflater decompresses fetched batches for a client and bounds the memory that they
// take until they are polled. A batch that alone takes more fails with
// [kgo.ErrMaxDecompress]. An inflater is the client's decompressor, pool and hook
// at once, and is safe for concurrent use.
type inflater struct {
	bytesMax int
	zstd     *zstd.Decoder

	mu sync.Mutex
	// used is the sum of sizes, which are by the first byte of a batch's records.
	used  int
	sizes map[*byte]int
	// polled are records that have left the client's buffer.
	polled []*kgo.Record
	// read counts the batches that the client read, by partition.
	read map[int32]int
}

func newInflater(bytesMax int) (*inflater, error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(uint64(bytesMax)))
	if err != nil {
		return nil, fmt.Errorf("zstd decoder: %w", err)
	}
	return &inflater{bytesMax: bytesMax, zstd: decoder, sizes: make(map[*byte]int), read: make(map[int32]int)}, nil
}

// options returns the options of the client whose batches it inflates.
func (in *inflater) options() []kgo.Opt {
	return []kgo.Opt{kgo.WithDecompressor(in), kgo.WithPools(in), kgo.WithHooks(in)}
}

// Decompress is called by the client for each batch that is compressed.
func (in *inflater) Decompress(src []byte, codec kgo.CompressionCodecType) ([]byte, error) {
	if codec == kgo.CodecNone {
		return src, nil
	}
	in.mu.Lock()
	full := in.used >= in.bytesMax
	in.mu.Unlock()
	if full {
		return nil, errInflatedFull
	}
	out, err := in.inflate(src, codec)
	if err != nil || len(out) == 0 {
		return out, err
	}
	size := recordsBytes(out)
	if size > in.bytesMax {
		return nil, kgo.ErrMaxDecompress
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.used > 0 && in.used+size > in.bytesMax {
		return nil, errInflatedFull
	}
	in.used += size
	in.sizes[&out[0]] = size
	return out, nil
}

// inflate decompresses at most bytesMax.
func (in *inflater) inflate(src []byte, codec kgo.CompressionCodecType) ([]byte, error) {
	switch codec {
	case kgo.CodecSnappy:
		return in.inflateSnappy(src)
	case kgo.CodecZstd:
		out, err := in.zstd.DecodeAll(src, nil)
		if errors.Is(err, zstd.ErrDecoderSizeExceeded) {
			return nil, kgo.ErrMaxDecompress
		}
		return out, err
	case kgo.CodecGzip:
		r, err := gzip.NewReader(bytes.NewReader(src))
		if err != nil {
			return nil, err
		}
		return in.readAll(r)
	case kgo.CodecLz4:
		return in.readAll(lz4.NewReader(bytes.NewReader(src)))
	default:
		return nil, fmt.Errorf("unknown compression codec %d", codec)
	}
}

func (in *inflater) readAll(r io.Reader) ([]byte, error) {
	var out bytes.Buffer
	n, err := out.ReadFrom(io.LimitReader(r, int64(in.bytesMax)+1))
	if err == nil && n > int64(in.bytesMax) {
		err = kgo.ErrMaxDecompress
	}
	return out.Bytes(), err
}

// xerialHeaderBytes is how long the header of the Java library's framing is,
// which begins with xerialMagic.
const (
	xerialHeaderBytes = 16
	xerialMagic       = "\x82SNAPPY\x00"
)

func (in *inflater) inflateSnappy(src []byte) ([]byte, error) {
	blocks := [][]byte{src}
	if len(src) > xerialHeaderBytes && string(src[:len(xerialMagic)]) == xerialMagic {
		blocks = blocks[:0]
		for rest := src[xerialHeaderBytes:]; len(rest) > 0; {
			if len(rest) < 4 {
				return nil, io.ErrUnexpectedEOF
			}
			n := int(binary.BigEndian.Uint32(rest))
			if rest = rest[4:]; n < 0 || n > len(rest) {
				return nil, io.ErrUnexpectedEOF
			}
			blocks, rest = append(blocks, rest[:n]), rest[n:]
		}
	}
	total := 0
	for _, block := range blocks {
		n, err := s2.DecodedLen(block)
		if err != nil {
			return nil, err
		}
		if total += n; total > in.bytesMax {
			return nil, kgo.ErrMaxDecompress
		}
	}
	out := make([]byte, 0, total)
	for _, block := range blocks {
		n, _ := s2.DecodedLen(block) // checked above
		if _, err := s2.Decode(out[len(out):len(out)+n], block); err != nil {
			return nil, err
		}
		out = out[:len(out)+n]
	}
	return out, nil
}

// recordsBytes returns the memory that the client needs for the records and their
// batch. It stops at bytes that are not a record.
func recordsBytes(batch []byte) int {
	total := len(batch)
	for len(batch) > 0 {
		length, n := binary.Varint(batch)
		if n <= 0 || length < 0 || length > int64(len(batch)-n) {
			break
		}
		total += fetchedRecordBytes + fetchedHeaderBytes*headers(batch[n:n+int(length)])
		batch = batch[n+int(length):]
	}
	return total
}

// headers returns the number of headers of a record, or 0 if it is unreadable.
func headers(record []byte) int {
	next := func() int64 {
		v, n := binary.Varint(record)
		if n <= 0 {
			record = nil
			return 0
		}
		record = record[n:]
		return v
	}
	skip := func(n int64) { record = record[min(max(0, n), int64(len(record))):] }
	skip(1) // attributes
	next()  // timestamp
	next()  // offset
	skip(next())
	skip(next())
	n := next()
	return int(min(max(0, n), int64(len(record)))) // each has a byte at least
}

// GetDecompressBytes is never called, because the client uses this decompressor.
func (in *inflater) GetDecompressBytes([]byte, kgo.CompressionCodecType) []byte { return nil }

// PutDecompressBytes is called when the last record of a batch was recycled.
func (in *inflater) PutDecompressBytes(batch []byte) {
	if len(batch) == 0 {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.used -= in.sizes[&batch[0]]
	delete(in.sizes, &batch[0])
}

// OnFetchRecordUnbuffered is called for each record that leaves the client's
// buffer: polled, passed over because fetching is paused, or dropped.
func (in *inflater) OnFetchRecordUnbuffered(r *kgo.Record, polled bool) {
	if !polled {
		r.Recycle()
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.polled = append(in.polled, r)
}

// release frees all records that were polled. They must not be used afterwards.
func (in *inflater) release() {
	in.mu.Lock()
	polled := in.polled
	in.polled = nil
	in.mu.Unlock()
	for _, r := range polled {
		r.Recycle()
	}
	clear(polled)
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.polled == nil {
		in.polled = polled[:0]
	}
}

// OnFetchBatchRead is called for each batch that the client reads.
func (in *inflater) OnFetchBatchRead(_ kgo.BrokerMetadata, _ string, partition int32, _ kgo.FetchBatchMetrics) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.read[partition]++
}

// batchesRead returns how many batches of the partition the client has read.
func (in *inflater) batchesRead(partition int32) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.read[partition]
}
