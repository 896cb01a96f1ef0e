-- The signs of a vector, one bit a dimension: 1 where the dimension is negative, in
-- the order of the dimensions, with zeros before them up to whole bytes. A search for
-- similar vectors reads them instead of the vectors. ClickHouse computes them at an
-- insert; in parts of an older version it computes them from the vectors whenever
-- they are read, until a merge or the background task in signs.go has stored them.
ALTER TABLE event_embeddings ADD COLUMN IF NOT EXISTS signs String
    MATERIALIZED unbin(reinterpret(arrayMap(x -> if(x < 0, 49, 48), vector), 'String')) CODEC(NONE);
