-- The hot row of each event, narrow, because every query reads it. The sort
-- key follows from the id alone: see event.ID.
CREATE TABLE IF NOT EXISTS events
(
    conversation_hash UInt32 CODEC(Delta(4), LZ4),
    timestamp DateTime64(6, 'UTC') CODEC(Delta(8), LZ4),
    id UUID CODEC(ZSTD(1)),
    conversation_id String CODEC(ZSTD(1)),
    event_name LowCardinality(String) CODEC(LZ4),
    error Nullable(String) CODEC(ZSTD(1)),
    latency Nullable(Float64) CODEC(ZSTD(1)),
    metadata String CODEC(ZSTD(1)),
    alias String CODEC(ZSTD(1)),
    created UInt64 CODEC(T64, LZ4),
    version UInt64 CODEC(T64, LZ4),
    deleted UInt8 CODEC(LZ4),
    -- A condition on timestamp alone does not use toDate(timestamp), the first
    -- column of the key; this makes up for it.
    INDEX timestamp_minmax timestamp TYPE minmax GRANULARITY 1,
    INDEX conversation_hash_bloom conversation_hash TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(timestamp)
PRIMARY KEY (toDate(timestamp), conversation_hash, timestamp)
ORDER BY (toDate(timestamp), conversation_hash, timestamp, id)
SETTINGS
    index_granularity = 1024,
    -- Acknowledged offsets are committed after an insert, so a power cut must
    -- take back neither the insert nor a merge that replaced it.
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1,
    -- A tombstone and the row under it meet in a merge when no part of the
    -- partition has changed for a day, however large the parts are.
    min_age_to_force_merge_seconds = 86400,
    enable_max_bytes_limit_for_min_age_to_force_merge = 0,
    parts_to_delay_insert = 1000,
    parts_to_throw_insert = 3000;

-- Inputs and outputs. Granules are bounded in bytes, so that reading one event
-- does not read a thousand prompts.
CREATE TABLE IF NOT EXISTS event_contents
(
    conversation_hash UInt32 CODEC(Delta(4), LZ4),
    timestamp DateTime64(6, 'UTC') CODEC(Delta(8), LZ4),
    id UUID CODEC(ZSTD(1)),
    field Enum8('input' = 1, 'output' = 2),
    kind UInt8,
    content String CODEC(ZSTD(1)),
    version UInt64 CODEC(T64, LZ4),
    deleted UInt8 CODEC(LZ4),
    INDEX timestamp_minmax timestamp TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(timestamp)
PRIMARY KEY (toDate(timestamp), conversation_hash, timestamp)
ORDER BY (toDate(timestamp), conversation_hash, timestamp, id, field)
SETTINGS
    index_granularity = 1024,
    index_granularity_bytes = 262144,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1,
    min_age_to_force_merge_seconds = 86400,
    enable_max_bytes_limit_for_min_age_to_force_merge = 0,
    parts_to_delay_insert = 1000,
    parts_to_throw_insert = 3000;

-- Embeddings hardly compress, so they are not asked to.
CREATE TABLE IF NOT EXISTS event_embeddings
(
    conversation_hash UInt32 CODEC(Delta(4), LZ4),
    timestamp DateTime64(6, 'UTC') CODEC(Delta(8), LZ4),
    id UUID CODEC(ZSTD(1)),
    field Enum8('input' = 1, 'output' = 2),
    vector Array(Float32) CODEC(NONE),
    version UInt64 CODEC(T64, LZ4),
    deleted UInt8 CODEC(LZ4),
    INDEX timestamp_minmax timestamp TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(timestamp)
PRIMARY KEY (toDate(timestamp), conversation_hash, timestamp)
ORDER BY (toDate(timestamp), conversation_hash, timestamp, id, field)
SETTINGS
    index_granularity = 1024,
    index_granularity_bytes = 262144,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1,
    min_age_to_force_merge_seconds = 86400,
    enable_max_bytes_limit_for_min_age_to_force_merge = 0,
    parts_to_delay_insert = 1000,
    parts_to_throw_insert = 3000;

-- Callers' own ids. A deleted row with a zero id is left by a delete that came
-- before any create.
CREATE TABLE IF NOT EXISTS event_aliases
(
    alias String CODEC(ZSTD(1)),
    id UUID CODEC(ZSTD(1)),
    version UInt64 CODEC(T64, LZ4),
    deleted UInt8 CODEC(LZ4)
)
ENGINE = ReplacingMergeTree(version)
ORDER BY alias
SETTINGS
    index_granularity = 256,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1,
    min_age_to_force_merge_seconds = 86400,
    enable_max_bytes_limit_for_min_age_to_force_merge = 0,
    parts_to_delay_insert = 1000,
    parts_to_throw_insert = 3000;

-- Which topic each generation of versions came from.
CREATE TABLE IF NOT EXISTS topic_generations
(
    generation UInt16,
    topic String,
    topic_id String,
    partitions UInt32,
    recorded_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY generation
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1;
