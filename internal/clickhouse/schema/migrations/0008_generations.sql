-- Of several inserts with one insert_deduplication_token the table keeps the
-- first: of processes that record a generation's topic at once, one wins.
-- Replicated tables do so without this setting.
ALTER TABLE topic_generations MODIFY SETTING non_replicated_deduplication_window = 1000;
