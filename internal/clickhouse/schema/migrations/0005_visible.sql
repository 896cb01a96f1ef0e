-- Whether readers see an event: all that Sluice reads of events asks it, and the
-- other tables are read through events. It depends on the timestamp alone, which
-- all versions of a row share, so that it may be asked before FINAL. A retention
-- changes the expression and the TTL in one ALTER; see retention.go.
ALTER TABLE events ADD COLUMN IF NOT EXISTS visible UInt8 ALIAS 1;
-- All rows of a partition expire at once, so its parts are dropped whole, and
-- nothing is rewritten for it. A new TTL reads the old parts' timestamps alone.
ALTER TABLE events MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1;
ALTER TABLE event_contents MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1;
ALTER TABLE event_embeddings MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1;
ALTER TABLE event_aliases MODIFY SETTING materialize_ttl_recalculate_only = 1;
