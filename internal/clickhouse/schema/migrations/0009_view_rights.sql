-- The views of 0006, which read the tables with the rights of the user who
-- migrates, not of the user who asks: a user may then select from the views and
-- not from the tables, which have deleted and superseded rows.
--
-- Nor may a condition on a view meet such a row, because it could fail there, and
-- so tell what is in it. ClickHouse evaluates a condition after those of the same
-- table, and before a join where one side suffices for it. So contents and vectors
-- are expressions of both sides.
CREATE OR REPLACE VIEW live_events DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    if(events.alias = '', toString(events.id), events.alias) AS id,
    events.conversation_id AS conversation_id,
    events.conversation_hash AS conversation_hash,
    events.timestamp AS timestamp,
    events.event_name AS event_name,
    events.error AS error,
    events.latency AS latency,
    events.metadata AS conversation_metadata
FROM events FINAL
WHERE events.deleted = 0 AND events.visible
SETTINGS
    do_not_merge_across_partitions_select_final = 1,
    optimize_move_to_prewhere_if_final = 1,
    use_skip_indexes_if_final_exact_mode = 0;

CREATE OR REPLACE VIEW live_event_contents DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    if(e.alias = '', toString(e.id), e.alias) AS id,
    e.conversation_id AS conversation_id,
    c.conversation_hash AS conversation_hash,
    c.timestamp AS timestamp,
    e.event_name AS event_name,
    c.field AS field,
    if(c.kind = 1, 'string', 'json') AS kind,
    if(bitShiftRight(c.version, 62) != 0 OR bitAnd(bitNot(c.version), 0x3FFFFFFFFFFFFFFF) = e.created, c.content, '') AS content
FROM
(
    SELECT * FROM event_contents FINAL WHERE deleted = 0 AND kind != 0
) AS c
INNER JOIN
(
    SELECT conversation_hash, timestamp, id, conversation_id, event_name, alias, created
    FROM events FINAL
    WHERE deleted = 0 AND visible
) AS e USING (conversation_hash, timestamp, id)
-- A create's row counts only when it is the create that won.
WHERE bitShiftRight(c.version, 62) != 0 OR bitAnd(bitNot(c.version), 0x3FFFFFFFFFFFFFFF) = e.created
SETTINGS
    do_not_merge_across_partitions_select_final = 1,
    optimize_move_to_prewhere_if_final = 1,
    use_skip_indexes_if_final_exact_mode = 0;

CREATE OR REPLACE VIEW live_event_embeddings DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    if(e.alias = '', toString(e.id), e.alias) AS id,
    e.conversation_id AS conversation_id,
    c.conversation_hash AS conversation_hash,
    c.timestamp AS timestamp,
    e.event_name AS event_name,
    c.field AS field,
    if(bitShiftRight(c.version, 62) != 0 OR bitAnd(bitNot(c.version), 0x3FFFFFFFFFFFFFFF) = e.created, c.vector, CAST([], 'Array(Float32)')) AS vector
FROM
(
    SELECT * FROM event_embeddings FINAL WHERE deleted = 0 AND notEmpty(vector)
) AS c
INNER JOIN
(
    SELECT conversation_hash, timestamp, id, conversation_id, event_name, alias, created
    FROM events FINAL
    WHERE deleted = 0 AND visible
) AS e USING (conversation_hash, timestamp, id)
WHERE bitShiftRight(c.version, 62) != 0 OR bitAnd(bitNot(c.version), 0x3FFFFFFFFFFFFFFF) = e.created
SETTINGS
    do_not_merge_across_partitions_select_final = 1,
    optimize_move_to_prewhere_if_final = 1,
    use_skip_indexes_if_final_exact_mode = 0;
