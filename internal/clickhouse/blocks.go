package clickhouse

import (
	"slices"
)

// cut splits rows into blocks, by partition and by the limits of a block, and sorts
// each block. Rows without a key are in one partition and keep their order.
func cut[R any](s *Store, rows []R, key rowKey[R], size func(*R) int, make1 func(order []uint64) block) []block {
	if len(rows) == 0 {
		return nil
	}
	order := byPartition(rows, key)
	var (
		blocks       []block
		start, bytes int
		spare        = make([]uint64, min(len(rows), s.cfg.BlockRowsMax))
	)
	end := func(i int) {
		if key != nil {
			sortBlock(rows, order[start:i], spare[:i-start], key)
		}
		blocks = append(blocks, make1(order[start:i]))
		start, bytes = i, 0
	}
	partition := order[0] >> 32
	for i, o := range order {
		n := size(&rows[uint32(o)])
		if i > start && (o>>32 != partition || i-start >= s.cfg.BlockRowsMax || bytes+n > s.cfg.BlockBytesMax) {
			end(i)
		}
		partition = o >> 32
		bytes += n
	}
	end(len(order))
	return blocks
}

// byPartition returns the indexes of the rows in the order of their partitions. The low
// 32 bits of each element are the index, the high 32 bits the partition.
func byPartition[R any](rows []R, key rowKey[R]) []uint64 {
	var (
		m      month
		order  = make([]uint64, len(rows))
		sorted = true
	)
	for i := range rows {
		order[i] = uint64(i)
		if key != nil {
			id, _ := key(&rows[i])
			partition, _ := m.of(id.Micros())
			order[i] |= uint64(partition) << 32
		}
		sorted = sorted && (i == 0 || order[i] > order[i-1])
	}
	if !sorted {
		slices.Sort(order)
	}
	return order
}
