-- Tables that grow for years are looked after by what changed, not by a fifth of what there is: with ten million purchases autovacuum would
-- otherwise come after two million changes, and the planner's statistics would be a month old.

-- +goose Up

-- Each purchase is written twice (recorded, ended). The second writing changes its status, which is indexed: no room in the page would make
-- it cheaper, so the fillfactor stays. Where rows are only added, vacuum marks pages as all visible: index-only reads, and no freeze of
-- years at once.
ALTER TABLE purchases SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE stripe_events SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE attempts SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- A customer who comes back changes nothing that is indexed: with room in the page no index is written (40 of 100 instead of 22).
ALTER TABLE profiles SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- The present hour's rows are changed every two seconds, and each hour's while it is pruned, again without an index (97 of 100 instead of 90, of
-- the hours 49 instead of 4).
ALTER TABLE rollup_totals SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
ALTER TABLE rollup_delays SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
ALTER TABLE rollup_hours SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
ALTER TABLE rollup_statuses SET (autovacuum_vacuum_threshold = 500);
