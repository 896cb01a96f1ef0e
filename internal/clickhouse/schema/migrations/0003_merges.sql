-- A row is rewritten once for each level of merges that it goes through, and
-- each insert makes a small part. With about 15 parts to a merge instead of 5
-- there are fewer levels, and more parts at a time: some 15 of each size.
-- Old parts are merged all the same: see min_age_to_force_merge_seconds.
--
-- Small parts keep their columns in one file, so that an insert has a handful of
-- files to sync and not twenty-five.
ALTER TABLE events MODIFY SETTING merge_selector_base = 15, min_bytes_for_wide_part = 134217728;
ALTER TABLE event_contents MODIFY SETTING merge_selector_base = 15, min_bytes_for_wide_part = 134217728;
ALTER TABLE event_embeddings MODIFY SETTING merge_selector_base = 15, min_bytes_for_wide_part = 134217728;
