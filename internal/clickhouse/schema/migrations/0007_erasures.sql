-- Since when each partition has tombstones that may not have met the rows under
-- them: see erase.go. A time of 0 says that none wait. A shard has its own.
CREATE TABLE IF NOT EXISTS erasures
(
    name LowCardinality(String),
    partition_id String,
    waiting_since DateTime64(6, 'UTC'),
    recorded_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(recorded_at)
ORDER BY (name, partition_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1;
