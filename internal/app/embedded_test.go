package app

import "testing"

// All questions that run at once fit into half of the embedded database's memory.
func TestQueryMemory(t *testing.T) {
	for _, tt := range []struct {
		name    string
		bytes   int64
		queries int
		want    int64
	}{
		{"the least database", 512 << 20, 2, 128 << 20},
		{"half of a machine of 24 GiB", 12 << 30, 2, 3 << 30},
		{"many questions", 12 << 30, 16, 384 << 20},
		{"no more than the default", 1 << 40, 2, 4 << 30},
		{"a database without a limit", 0, 2, 4 << 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := queryMemory(tt.bytes, tt.queries)
			if got != tt.want {
				t.Errorf("%d bytes, want %d", got, tt.want)
			}
			if tt.bytes > 0 && got*int64(tt.queries) > tt.bytes/2 {
				t.Errorf("%d queries of %d bytes are more than half of %d", tt.queries, got, tt.bytes)
			}
		})
	}
}
