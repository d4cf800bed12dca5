package ledger

// The numbers of the advisory locks, no two alike: the leader holds its own as long as it lives. The first two are seeds of the
// keys' hash.
const (
	lockSessions  = "7101"
	lockEmails    = "7102"
	lockLead      = "7103"
	lockRollup    = "7104"
	lockGrants    = "7105"
	lockCheck     = "7106"
	lockCommand   = "7107"
	lockEnvelopes = "7120"
)

// Every statement, by name. A test prepares each against the migrated schema. Columns are named, never *.
const (
	sqlHasVersions  = `SELECT to_regclass('public.goose_db_version') IS NOT NULL`
	sqlSchemaLevel  = `SELECT COALESCE(max(version_id), 0) FROM public.goose_db_version WHERE is_applied`
	sqlOldestBinary = `SELECT oldest_binary FROM public.schema_compat`

	sqlClock  = `SELECT clock_timestamp()`
	sqlServer = `
SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(), current_setting('fsync'),
    current_setting('full_page_writes'), current_setting('synchronous_commit'),
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), current_setting('max_connections')::int`
	sqlEventsByMode = `SELECT livemode, max(received_at) FROM public.stripe_events WHERE received_at > now() - interval '30 days' GROUP BY livemode`

	sqlBegin    = `BEGIN`
	sqlCommit   = `COMMIT`
	sqlRollback = `ROLLBACK`
	sqlNow      = `SELECT now()` // the transaction's own time

	// Plans are made once a connection, often while a table is still empty: then Postgres would read it from end to end for ever, and
	// slower with each purchase. What has no index is read so all the same, and then looks so dear that workers would be started for a
	// handful of rows: five milliseconds each time.
	// A client that vanished in the middle of a transaction holds its locks for ten seconds, and its place for a minute and a half,
	// instead of the two hours of the system's keepalive. Statements here follow each other at once.
	sqlSession = `
SELECT set_config('idle_in_transaction_session_timeout', '10000', false), set_config('tcp_keepalives_idle', '60', false),
    set_config('tcp_keepalives_interval', '10', false), set_config('tcp_keepalives_count', '3', false),
    set_config('enable_seqscan', 'off', false), set_config('max_parallel_workers_per_gather', '0', false), set_config('jit', 'off', false)`

	// A table that is not there any more is none that the role lacks.
	sqlMissingRights = `
SELECT r.privilege || ' on ' || r.tab FROM unnest($1::text[], $2::text[]) AS r (tab, privilege)
WHERE NOT has_table_privilege(to_regclass('public.' || r.tab), r.privilege) ORDER BY r.tab, r.privilege`

	sqlLockGrants = `SELECT pg_advisory_xact_lock(` + lockGrants + `)`
	sqlMayCreate  = `SELECT has_schema_privilege('public', 'CREATE')`

	// One session's events are taken one after the other, over all replicas: the decision between them needs the one before. So are
	// one customer's: a new profile's id is chosen before it is written. The keys come in order; the locks end with the transaction;
	// the hash's rare equal for two keys only makes them wait.
	sqlLockSessions = `SELECT count(pg_advisory_xact_lock(hashtextextended(k, ` + lockSessions + `))) FROM unnest($1::text[]) AS k`
	sqlLockEmails   = `SELECT count(pg_advisory_xact_lock(hashtextextended(k, ` + lockEmails + `))) FROM unnest($1::text[]) AS k`

	sqlKnownEvents   = `SELECT event_id, checkout_session_id FROM public.stripe_events WHERE event_id = ANY($1)`
	sqlSessionStates = `SELECT checkout_session_id, status, reason FROM public.purchases WHERE checkout_session_id = ANY($1)`
	sqlKnownProfiles = `
SELECT livemode, email, id::text, COALESCE(stripe_customer_id, '')
FROM public.profiles WHERE livemode AND email = ANY($1)
UNION ALL
SELECT livemode, email, id::text, COALESCE(stripe_customer_id, '')
FROM public.profiles WHERE NOT livemode AND email = ANY($2)`

	sqlSessionState = `SELECT status, reason FROM public.purchases WHERE checkout_session_id = $1`

	sqlKnownTrials = `
SELECT subscription_id, livemode, COALESCE(checkout_session_id, ''), started_at, reason,
    COALESCE((SELECT p.id::text FROM public.profiles p WHERE p.id = t.profile_id), ''), envelope, click_expires_at,
    COALESCE(invoice_id, ''), invoice_at, amount_minor, COALESCE(currency, ''), period_start, COALESCE(stripe_customer_id, ''), COALESCE(purchase_id, '')
FROM public.trials t WHERE subscription_id = ANY($1)`

	sqlPutTrials = `
INSERT INTO public.trials AS t (subscription_id, livemode, checkout_session_id, started_at, reason, profile_id, envelope, click_expires_at,
    invoice_id, invoice_at, amount_minor, currency, period_start, stripe_customer_id, purchase_id, held_at)
SELECT u.id, u.livemode, u.session, u.started, u.reason, u.profile::uuid, u.envelope, u.expires, u.invoice, u.at, u.amount, u.currency, u.period, u.customer, u.purchase,
    CASE WHEN u.invoice IS NOT NULL THEN now() END
FROM unnest($1::text[], $2::boolean[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::bytea[], $8::timestamptz[], $9::text[], $10::timestamptz[],
    $11::bigint[], $12::text[], $13::timestamptz[], $14::text[], $15::text[])
    AS u (id, livemode, session, started, reason, profile, envelope, expires, invoice, at, amount, currency, period, customer, purchase)
ON CONFLICT (subscription_id) DO UPDATE SET
    livemode = excluded.livemode, checkout_session_id = excluded.checkout_session_id, started_at = excluded.started_at, reason = excluded.reason,
    profile_id = excluded.profile_id, envelope = excluded.envelope, click_expires_at = excluded.click_expires_at, invoice_id = excluded.invoice_id,
    invoice_at = excluded.invoice_at, amount_minor = excluded.amount_minor, currency = excluded.currency, period_start = excluded.period_start,
    stripe_customer_id = excluded.stripe_customer_id, purchase_id = excluded.purchase_id,
    held_at = CASE WHEN excluded.invoice_id IS DISTINCT FROM t.invoice_id THEN excluded.held_at ELSE t.held_at END`

	// Invoices that wait beside their trial, from a place on, and whether they have waited $1 seconds.
	sqlHeldTrials = `
SELECT subscription_id, held_at, held_at < now() - make_interval(secs => $1) FROM public.trials
WHERE purchase_id IS NULL AND invoice_id IS NOT NULL AND checkout_session_id IS NOT NULL
    AND held_at >= $2::timestamptz AND (held_at > $2 OR subscription_id > $3)
ORDER BY held_at, subscription_id LIMIT $4`

	sqlConversions = `SELECT trial_session_id, checkout_session_id, created_at FROM public.purchases WHERE trial_session_id = ANY($1)`

	sqlPutEvents = `
INSERT INTO public.stripe_events (event_id, type, checkout_session_id, livemode, created_at, received_at, disposition, caught_up)
SELECT u.id, u.type, u.session, u.livemode, u.created, u.received, u.disposition, u.caught_up
FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::timestamptz[], $6::timestamptz[], $7::text[], $8::boolean[])
    AS u (id, type, session, livemode, created, received, disposition, caught_up)
ON CONFLICT (event_id) DO NOTHING`

	// The profile keeps the ids of its latest purchase, whatever order the events come in. A row of another id than the one that was
	// chosen was written by somebody without our locks: it is left alone, the purchase's reference to the chosen id fails, and the
	// whole is done again.
	sqlPutProfiles = `
INSERT INTO public.profiles AS p (id, livemode, email, stripe_customer_id, stripe_subscription_id,
    last_purchase_at)
SELECT u.id::uuid, u.livemode, u.email, u.customer, u.subscription, u.at
FROM unnest($1::text[], $2::boolean[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
    AS u (id, livemode, email, customer, subscription, at)
ON CONFLICT (livemode, email) DO UPDATE SET
    stripe_customer_id = CASE WHEN excluded.last_purchase_at >= p.last_purchase_at
        THEN COALESCE(excluded.stripe_customer_id, p.stripe_customer_id) ELSE COALESCE(p.stripe_customer_id, excluded.stripe_customer_id) END,
    stripe_subscription_id = CASE WHEN excluded.last_purchase_at >= p.last_purchase_at
        THEN COALESCE(excluded.stripe_subscription_id, p.stripe_subscription_id) ELSE COALESCE(p.stripe_subscription_id, excluded.stripe_subscription_id) END,
    last_purchase_at = GREATEST(p.last_purchase_at, excluded.last_purchase_at),
    updated_at = now()
WHERE p.id = excluded.id`

	sqlPutPurchases = `
INSERT INTO public.purchases (checkout_session_id, status, reason, profile_id, mode, livemode, amount_minor, currency, purchased_at,
    stripe_customer_id, stripe_subscription_id, envelope, finished_at, match_keys, kind, trial_session_id, claimed_until, first_published_at)
SELECT u.id, u.status, u.reason, u.profile::uuid, u.mode, u.livemode, u.amount, u.currency, u.at, u.customer, u.subscription, u.envelope,
    CASE WHEN u.finished IS NOT NULL THEN now() END, u.keys, u.kind, u.trial,
    CASE WHEN u.claimed THEN now() + make_interval(secs => $18) END, CASE WHEN u.claimed THEN now() END
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::bigint[], $8::text[], $9::timestamptz[], $10::text[],
    $11::text[], $12::bytea[], $13::timestamptz[], $14::smallint[], $15::text[], $16::text[], $17::boolean[])
    AS u (id, status, reason, profile, mode, livemode, amount, currency, at, customer, subscription, envelope, finished, keys, kind, trial, claimed)
ON CONFLICT (checkout_session_id) DO UPDATE SET
    status = excluded.status, reason = excluded.reason, profile_id = excluded.profile_id, mode = excluded.mode,
    livemode = excluded.livemode, amount_minor = excluded.amount_minor, currency = excluded.currency,
    purchased_at = excluded.purchased_at, stripe_customer_id = excluded.stripe_customer_id,
    stripe_subscription_id = excluded.stripe_subscription_id, envelope = excluded.envelope,
    finished_at = excluded.finished_at, match_keys = excluded.match_keys, kind = excluded.kind, trial_session_id = excluded.trial_session_id, claimed_until = excluded.claimed_until,
    first_published_at = excluded.first_published_at, updated_at = now()`

	// first_published_at is set by the first claim, before the first send: an acknowledgement that is lost must
	// not make the purchase younger.
	sqlClaim = `
UPDATE public.purchases SET claimed_until = now() + make_interval(secs => $2),
    first_published_at = COALESCE(first_published_at, now())
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases
    WHERE status = 'pending' AND (claimed_until IS NULL OR claimed_until < now())
    ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING checkout_session_id, livemode, generation, first_published_at, envelope`

	// The claim that set first_published_at is known by its end. Another one may follow a publish whose
	// answer was lost.
	sqlUnsent = `
WITH unsent AS (
    SELECT checkout_session_id FROM public.purchases
    WHERE checkout_session_id = ANY($1) AND status = 'pending'
    ORDER BY checkout_session_id FOR UPDATE
)
UPDATE public.purchases p SET claimed_until = NULL,
    first_published_at = CASE WHEN p.claimed_until <> p.first_published_at + make_interval(secs => $2)
        OR p.claimed_until IS NULL THEN p.first_published_at END
FROM unsent u WHERE p.checkout_session_id = u.checkout_session_id`

	// An outcome that overtook this mark has told all that it says: then nothing is written. The mark's generation is the higher one
	// where the stream knew the lower one's message id. The rows are locked in key order, as everywhere.
	sqlPublished = `
WITH marks AS (
    SELECT m.id, m.generation, m.sequence, m.age, m.first
    FROM unnest($1::text[], $2::int[], $3::bigint[], $4::float8[], $5::timestamptz[])
        AS m (id, generation, sequence, age, first)
), open AS (
    SELECT p.checkout_session_id FROM public.purchases p JOIN marks m ON p.checkout_session_id = m.id
    WHERE p.generation <= m.generation AND (p.status = 'pending' OR p.published_at IS NULL) AND (m.first IS NULL OR m.first = p.first_published_at)
    ORDER BY p.checkout_session_id FOR UPDATE OF p
)
UPDATE public.purchases p SET
    status = CASE WHEN p.status = 'pending' THEN 'published' ELSE p.status END, generation = m.generation,
    published_at = now() - make_interval(secs => m.age),
    stream_sequence = COALESCE(NULLIF(m.sequence, 0), p.stream_sequence), claimed_until = NULL, updated_at = now()
FROM marks m JOIN open o ON o.checkout_session_id = m.id
WHERE p.checkout_session_id = m.id AND p.generation <= m.generation AND (p.status = 'pending' OR p.published_at IS NULL)`

	// An UPDATE alone locks in the order of its plan, and waits in a circle with others that have some of the
	// rows.
	sqlReleased = `
WITH open AS (
    SELECT checkout_session_id FROM public.purchases
    WHERE checkout_session_id = ANY($1) AND status IN ('pending', 'published', 'retrying')
    ORDER BY checkout_session_id FOR UPDATE
)
UPDATE public.purchases p SET claimed_until = NULL FROM open o
WHERE p.checkout_session_id = o.checkout_session_id AND p.status IN ('pending', 'published', 'retrying')`

	// Rows are locked in key order, here and everywhere: two recorders never wait for each other in a circle.
	sqlLockPurchases = `
SELECT checkout_session_id, status, reason, generation, finished_at FROM public.purchases
WHERE checkout_session_id = ANY($1) ORDER BY checkout_session_id FOR UPDATE`

	sqlInsertAttempts = `
INSERT INTO public.attempts (checkout_session_id, attempt_id, generation, at, took_ms, class, code, message, request_id)
SELECT a.id, a.attempt, a.generation, a.at, a.took, a.class, a.code, a.message, a.request
FROM unnest($1::text[], $2::text[], $3::int[], $4::timestamptz[], $5::bigint[], $6::text[], $7::int[], $8::text[], $9::text[])
    AS a (id, attempt, generation, at, took, class, code, message, request)
ON CONFLICT (checkout_session_id, attempt_id) DO NOTHING
RETURNING checkout_session_id`

	// The last_* columns are those of the latest attempt by its own time, in whatever order attempts are recorded; the
	// request id is the accepting one's, once there is one.
	sqlSettle = `
UPDATE public.purchases p SET
    status = s.status, reason = s.reason, generation = GREATEST(p.generation, s.generation),
    finished_at = s.finished, attempts = p.attempts + s.attempts,
    last_attempt_at   = CASE WHEN s.newer THEN s.at ELSE p.last_attempt_at END,
    last_class        = CASE WHEN s.newer THEN s.class ELSE p.last_class END,
    last_code         = CASE WHEN s.newer THEN s.code ELSE p.last_code END,
    last_error        = CASE WHEN s.newer THEN s.error ELSE p.last_error END,
    tiktok_request_id = COALESCE(s.accepted, CASE WHEN s.newer AND p.status <> 'delivered' THEN s.request END, p.tiktok_request_id),
    published_at = COALESCE(p.published_at, s.taken), stream_sequence = COALESCE(p.stream_sequence, s.sequence),
    -- what TikTok got takes the place of what was offered; how late the click was is known here alone
    match_keys = COALESCE(
        s.keys | CASE WHEN s.keys & 4 <> 0 THEN COALESCE(p.match_keys, 0) & 512 ELSE 0 END, p.match_keys),
    sent_minor = COALESCE(s.minor, p.sent_minor), sent_page = COALESCE(s.page, p.sent_page),
    claimed_until = CASE WHEN s.status = 'pending' THEN p.claimed_until END, updated_at = now()
FROM (
    SELECT u.*, u.at IS NOT NULL AND (q.last_attempt_at IS NULL OR u.at >= q.last_attempt_at) AS newer
    FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::int[], $7::timestamptz[], $8::text[], $9::int[], $10::text[], $11::text[], $12::text[],
        $13::timestamptz[], $14::bigint[], $15::smallint[], $16::bigint[], $17::text[])
        AS u (id, status, reason, generation, finished, attempts, at, class, code, error, request, accepted, taken,
            sequence, keys, minor, page)
    JOIN public.purchases q ON q.checkout_session_id = u.id
) s
WHERE p.checkout_session_id = s.id`

	// What counts as paid: a trial is no sale.
	paid = `status NOT IN ('awaiting_payment', 'payment_failed') AND NOT (status = 'skipped' AND reason = 'no_payment')`

	// The counts of match keys, in the order of keyFields.
	keyColumns = `keyed, key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page, key_name, key_address, key_late, key_strong`
	keySums    = `sum(keyed)::bigint, sum(key_email)::bigint, sum(key_phone)::bigint, sum(key_ttclid)::bigint, sum(key_ttp)::bigint, sum(key_ip)::bigint,
    sum(key_user_agent)::bigint, sum(key_page)::bigint, sum(key_name)::bigint, sum(key_address)::bigint, sum(key_late)::bigint, sum(key_strong)::bigint`

	// The totals since $1, by hours until the first whole day, $3, and by days from there, and what is not yet folded into
	// them: in one snapshot they are the ledger. $2 is the mode. A row tells of what it is grouped by: status (0b01 is missing),
	// currency (0b10), or of everything (0b11).
	sqlRollupTotals = `
SELECT GROUPING(status, currency), COALESCE(status, ''), COALESCE(reason, ''), COALESCE(code, ''), COALESCE(upper(currency), ''),
    sum(n)::bigint, COALESCE(sum(n - trials) FILTER (WHERE paid), 0)::bigint, COALESCE(sum(n - trials) FILTER (WHERE status = 'delivered'), 0)::bigint,
    LEAST(COALESCE(sum(minor) FILTER (WHERE paid), 0), 9223372036854775807)::bigint,
    LEAST(sum(sent_minor), 9223372036854775807)::bigint, sum(no_value)::bigint,
    ` + keySums + `
FROM (
    SELECT status, reason, code, currency, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials, ` + paid + ` AS paid
    FROM public.rollup_totals WHERE NOT daily AND at >= $1 AND at < $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT status, reason, code, currency, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials, ` + paid + `
    FROM public.rollup_totals WHERE daily AND at >= $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT status, reason, code, currency, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials, ` + paid + `
    FROM public.rollup_changes WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) r
GROUP BY GROUPING SETS ((status, reason, code), (currency), ()) HAVING sum(n) <> 0`

	sqlRollupHours = `
SELECT hour, sum(paid)::bigint, sum(accepted)::bigint FROM (
    SELECT hour, paid, accepted FROM public.rollup_hours WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT hour, CASE WHEN ` + paid + ` THEN n - trials ELSE 0 END, CASE WHEN status = 'delivered' THEN n - trials ELSE 0 END
    FROM public.rollup_changes WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) h GROUP BY hour HAVING sum(paid) <> 0 ORDER BY hour`

	// Match keys by the day of UTC since $1, a whole day.
	sqlRollupKeys = `
SELECT day, ` + keySums + `
FROM (
    SELECT at AS day, ` + keyColumns + `
    FROM public.rollup_totals WHERE daily AND at >= $1 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT date_trunc('day', hour, 'UTC'), ` + keyColumns + `
    FROM public.rollup_changes WHERE hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) r GROUP BY day HAVING sum(keyed) <> 0 ORDER BY day`

	sqlRollupDelays = `
SELECT delay, sum(n)::bigint FROM (
    SELECT delay, n FROM public.rollup_delays WHERE NOT daily AND at >= $1 AND at < $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT delay, n FROM public.rollup_delays WHERE daily AND at >= $3 AND ($2::boolean IS NULL OR livemode = $2)
    UNION ALL
    SELECT delay, n FROM public.rollup_changes WHERE delay >= 0 AND hour >= $1 AND ($2::boolean IS NULL OR livemode = $2)
) d GROUP BY delay HAVING sum(n) <> 0`

	sqlRollupStatuses = `
SELECT status, reason, code, sum(n)::bigint FROM (
    SELECT status, reason, code, n FROM public.rollup_statuses WHERE ($1::boolean IS NULL OR livemode = $1)
    UNION ALL
    SELECT status, reason, code, n FROM public.rollup_changes WHERE ($1::boolean IS NULL OR livemode = $1)
) s GROUP BY 1, 2, 3 HAVING sum(n) <> 0 ORDER BY 4 DESC, 1, 2, 3`

	// Each of the six is the first entry of an index.
	sqlOldestWaiting = `
SELECT min(o.at) FROM (VALUES ('pending', true), ('published', true), ('retrying', true), ('pending', false), ('published', false), ('retrying', false)) w (status, livemode)
CROSS JOIN LATERAL (
    SELECT COALESCE(p.purchased_at, p.created_at) AS at FROM public.purchases p
    WHERE p.status = w.status AND p.livemode = w.livemode ORDER BY COALESCE(p.purchased_at, p.created_at) LIMIT 1) o
WHERE $1::boolean IS NULL OR w.livemode = $1`

	// What came by catch-up says nothing of the endpoint. The index by time is read from its end.
	sqlLastEvent = `SELECT max(received_at) FROM public.stripe_events WHERE NOT caught_up`

	// One of the replicas folds at a time; the others find nothing to do.
	sqlLockRollup = `SELECT pg_try_advisory_xact_lock(` + lockRollup + `)`

	sqlFold = `
WITH gone AS (
    DELETE FROM public.rollup_changes
    RETURNING hour, livemode, status, reason, code, currency, delay, n, minor, sent_minor, no_value,
        ` + keyColumns + `, trials
), totals AS (
    INSERT INTO public.rollup_totals AS t (daily, at, livemode, status, reason, code, currency, n, minor, sent_minor,
        no_value, ` + keyColumns + `, trials)
    SELECT daily, CASE WHEN daily THEN date_trunc('day', hour, 'UTC') ELSE hour END, livemode, status, reason, code,
        currency, sum(n), sum(minor), sum(sent_minor), sum(no_value), sum(keyed),
        sum(key_email), sum(key_phone), sum(key_ttclid), sum(key_ttp), sum(key_ip), sum(key_user_agent), sum(key_page),
        sum(key_name), sum(key_address), sum(key_late), sum(key_strong), sum(trials)
    FROM gone CROSS JOIN (VALUES (false), (true)) g (daily) GROUP BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (daily, at, livemode, status, reason, code, currency) DO UPDATE SET
        n = t.n + excluded.n, minor = t.minor + excluded.minor, sent_minor = t.sent_minor + excluded.sent_minor,
        no_value = t.no_value + excluded.no_value, keyed = t.keyed + excluded.keyed,
        key_email = t.key_email + excluded.key_email, key_phone = t.key_phone + excluded.key_phone, key_ttclid = t.key_ttclid + excluded.key_ttclid,
        key_ttp = t.key_ttp + excluded.key_ttp, key_ip = t.key_ip + excluded.key_ip, key_user_agent = t.key_user_agent + excluded.key_user_agent,
        key_page = t.key_page + excluded.key_page, key_name = t.key_name + excluded.key_name, key_address = t.key_address + excluded.key_address,
        key_late = t.key_late + excluded.key_late, key_strong = t.key_strong + excluded.key_strong, trials = t.trials + excluded.trials
), delays AS (
    INSERT INTO public.rollup_delays AS d (daily, at, livemode, delay, n)
    SELECT daily, CASE WHEN daily THEN date_trunc('day', hour, 'UTC') ELSE hour END, livemode, delay, sum(n)
    FROM gone CROSS JOIN (VALUES (false), (true)) g (daily) WHERE delay >= 0 GROUP BY 1, 2, 3, 4
    ON CONFLICT (daily, at, livemode, delay) DO UPDATE SET n = d.n + excluded.n
), hours AS (
    INSERT INTO public.rollup_hours AS h (hour, livemode, paid, accepted)
    SELECT hour, livemode, COALESCE(sum(n - trials) FILTER (WHERE ` + paid + `), 0), COALESCE(sum(n - trials) FILTER (WHERE status = 'delivered'), 0)
    FROM gone GROUP BY 1, 2
    ON CONFLICT (hour, livemode) DO UPDATE SET paid = h.paid + excluded.paid, accepted = h.accepted + excluded.accepted
), statuses AS (
    INSERT INTO public.rollup_statuses AS s (livemode, status, reason, code, n)
    SELECT livemode, status, reason, code, sum(n) FROM gone GROUP BY 1, 2, 3, 4 HAVING sum(n) <> 0
    ON CONFLICT (livemode, status, reason, code) DO UPDATE SET n = s.n + excluded.n
)
SELECT DISTINCT hour, date_trunc('day', hour, 'UTC') FROM gone`

	// What has left an hour's status for good leaves the rollup, too. All of a row's sums are 0 with its count.
	sqlFoldEmpty = `DELETE FROM public.rollup_totals WHERE (NOT daily AND at = ANY($1) OR daily AND at = ANY($2)) AND n = 0`

	// What was folded away leaves holes, which every reader passes by. Autovacuum comes once a minute; a role that does not own
	// the table is told no, without an error, and relies on that.
	sqlChangesSize = `SELECT pg_relation_size('public.rollup_changes')`
	sqlTidyChanges = `VACUUM (SKIP_LOCKED) public.rollup_changes`

	sqlOutboxState = `SELECT count(*), min(created_at) FROM public.purchases WHERE status = 'pending'`

	sqlDeaths = `
SELECT reason, count(*), min(updated_at), max(updated_at), (array_agg(checkout_session_id ORDER BY updated_at DESC, checkout_session_id))[1:5]
FROM public.purchases WHERE status = 'dead' AND updated_at >= $1
GROUP BY reason ORDER BY reason`

	// A session's lock: it stands until it is given back or the connection ends.
	sqlTryLead    = `SELECT pg_try_advisory_lock(` + lockLead + `)`
	sqlTryCheck   = `SELECT pg_try_advisory_lock(` + lockCheck + `)`
	sqlTryCommand = `SELECT pg_try_advisory_lock(` + lockCommand + `)`
	sqlGiveRole   = `SELECT pg_advisory_unlock_all()`

	sqlBackfill = `
SELECT since, until, cursor, reached, known, fresh, ignored, rejected, malformed, finished_at FROM public.backfills WHERE origin = $1`

	sqlPutBackfill = `
INSERT INTO public.backfills AS b (origin, since, until, cursor, reached, known, fresh, ignored, rejected, malformed, finished_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (origin) DO UPDATE SET since = excluded.since, until = excluded.until, cursor = excluded.cursor, reached = excluded.reached,
    known = excluded.known, fresh = excluded.fresh, ignored = excluded.ignored, rejected = excluded.rejected, malformed = excluded.malformed,
    finished_at = excluded.finished_at, updated_at = now()`

	// Few events come by catch-up: the partial index holds those alone. An unpaid checkout, or a trial, is no
	// purchase, also where the trial was sent; an invoice that was held is one once it has become a first
	// payment.
	sqlCaughtUp = `
SELECT count(DISTINCT e.checkout_session_id), max(e.received_at) FROM public.stripe_events e
JOIN public.purchases p ON p.checkout_session_id = e.checkout_session_id
WHERE e.caught_up AND e.received_at >= $1 AND e.disposition IN ('processed', 'held', 'rejected')
    AND p.purchased_at >= $1 AND ($2::boolean IS NULL OR p.livemode = $2) AND p.status NOT IN ('awaiting_payment', 'payment_failed')
    AND p.kind <> 'trial'`

	// One of the index's ranges.
	standings = `
SELECT checkout_session_id, status, reason, amount_minor, COALESCE(currency, ''), COALESCE(purchased_at, created_at),
    sent_minor
FROM public.purchases
WHERE livemode = $1 AND (kind = 'checkout' AND mode = ANY($2) OR kind = 'first_payment' AND $3) AND `

	sqlStandings   = standings + `COALESCE(purchased_at, created_at) BETWEEN $4 AND $5`
	sqlStandingsOf = standings + `checkout_session_id = ANY($4)`

	sqlReconciliation    = `SELECT report FROM public.reconciliations WHERE livemode = $1`
	sqlPutReconciliation = `
INSERT INTO public.reconciliations (livemode, made_at, report) VALUES ($1, $2, $3)
ON CONFLICT (livemode) DO UPDATE SET made_at = excluded.made_at, report = excluded.report`

	// What the queue may have lost: no word of it for the grace, by this clock and not by a worker's. A row that the queue still
	// holds is asked for once a grace, not once a sweep.
	//
	// An outcome may reach a replayed purchase before the relay claims it: the row is in flight and has no
	// first publish yet. Its age then counts from the stream's time of the message, else from the outcome's
	// recording.
	sqlOverdue = `
UPDATE public.purchases SET claimed_until = now() + make_interval(secs => $3),
    first_published_at = COALESCE(first_published_at, published_at, updated_at)
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases
    WHERE status IN ('published', 'retrying') AND GREATEST(updated_at, swept_at) < now() - make_interval(secs => $2)
        AND (claimed_until IS NULL OR claimed_until < now())
    ORDER BY published_at LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING checkout_session_id, livemode, generation, first_published_at, envelope`

	// An outcome that was quicker stands.
	sqlSwept = `
UPDATE public.purchases p SET
    status = 'published', generation = m.generation, published_at = now(), stream_sequence = m.sequence, swept_at = now(),
    claimed_until = NULL, updated_at = now()
FROM unnest($1::text[], $2::int[], $3::bigint[]) AS m (id, generation, sequence)
WHERE p.checkout_session_id = m.id AND p.generation < m.generation AND p.status IN ('published', 'retrying')`

	sqlStillQueued = `
UPDATE public.purchases SET swept_at = now(), claimed_until = NULL
WHERE checkout_session_id = ANY($1) AND status IN ('published', 'retrying')`

	// Of what was looked at: a replay in between began a new age under a new generation.
	sqlExpire = `
UPDATE public.purchases p SET status = 'dead', reason = 'expired', finished_at = now(), claimed_until = NULL, updated_at = now()
FROM unnest($1::text[], $2::int[]) AS m (id, generation)
WHERE p.checkout_session_id = m.id AND p.generation = m.generation AND p.status IN ('published', 'retrying')
    AND p.first_published_at <= now() - make_interval(secs => $3)
RETURNING p.checkout_session_id`

	// A replay is the row made pending again, with a new generation and a new age. Nothing leaves delivered, a trial
	// (no_payment) is no sale, and test purchases are replayed by their own ids alone.
	chosenReplayable = `
envelope IS NOT NULL AND checkout_session_id = ANY($1::text[]) AND (status = 'dead' OR status = 'skipped' AND reason IN ('not_configured', 'test_purchase'))`

	// $5 keeps a replay of many from running after what dies again meanwhile.
	manyReplayable = `
envelope IS NOT NULL AND status = $1 AND (status = 'dead' OR status = 'skipped' AND reason = 'not_configured')
    AND ($2 = '' OR reason = $2) AND ($3::int IS NULL OR last_code = $3) AND (NOT $6::boolean OR last_code IS NULL) AND ($4::timestamptz IS NULL OR finished_at >= $4)
    AND finished_at <= $5::timestamptz`

	replay = `
UPDATE public.purchases SET status = 'pending', reason = '', generation = generation + 1, first_published_at = NULL, published_at = NULL,
    stream_sequence = NULL, swept_at = NULL, claimed_until = NULL, finished_at = NULL, updated_at = now()
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases WHERE `

	sqlReplayChosen = replay + chosenReplayable + ` ORDER BY checkout_session_id FOR UPDATE)`

	sqlReplayMany = replay + manyReplayable + ` ORDER BY checkout_session_id LIMIT $7 FOR UPDATE)`

	countReplayable = `
SELECT reason, last_code, count(*), count(*) FILTER (WHERE first_published_at < now() - interval '48 hours'),
    count(*) FILTER (WHERE purchased_at < now() - interval '28 days')
FROM public.purchases WHERE `

	sqlCountChosen = countReplayable + chosenReplayable + ` GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2`

	sqlCountMany = countReplayable + manyReplayable + ` GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2`

	// What may leave the ledger: $1 statuses, $2 the time before which it must have ended, and since when Stripe must not have spoken of it.
	// What ended before was paid, or heard of, before: so the index on the time finds it.
	prunable = `COALESCE(p.purchased_at, p.created_at) < $2::timestamptz AND COALESCE(p.finished_at, p.updated_at) < $2
    AND NOT EXISTS (SELECT FROM public.stripe_events e WHERE e.checkout_session_id = p.checkout_session_id AND e.received_at >= $2)`

	sqlCountPrunable = `
SELECT p.status, p.reason, count(*) FROM public.purchases p WHERE p.status = ANY($1::text[]) AND ` + prunable + ` GROUP BY 1, 2`

	// One step from a place on, of one status and mode: the purchases with their attempts and events. Whoever works on a row has it: it is
	// passed by, and nobody is waited for.
	sqlPrunePurchases = `
WITH chosen AS (
    SELECT p.checkout_session_id, COALESCE(p.purchased_at, p.created_at) AS at FROM public.purchases p
    WHERE p.status = $1 AND p.livemode = $3 AND COALESCE(p.purchased_at, p.created_at) >= $4::timestamptz
        AND (COALESCE(p.purchased_at, p.created_at) > $4 OR p.checkout_session_id > $5) AND ` + prunable + `
    ORDER BY COALESCE(p.purchased_at, p.created_at), p.checkout_session_id LIMIT $6 FOR UPDATE OF p SKIP LOCKED
), gone AS (
    DELETE FROM public.purchases p USING chosen c WHERE p.checkout_session_id = c.checkout_session_id
    RETURNING p.checkout_session_id, p.reason, c.at
), tried AS (
    DELETE FROM public.attempts WHERE checkout_session_id IN (SELECT checkout_session_id FROM gone) RETURNING 1
), heard AS (
    DELETE FROM public.stripe_events WHERE checkout_session_id IN (SELECT checkout_session_id FROM gone) RETURNING 1
), place AS (
    SELECT at, checkout_session_id AS id FROM gone ORDER BY at DESC, checkout_session_id DESC LIMIT 1
)
SELECT g.reason, count(*), (SELECT count(*) FROM tried), (SELECT count(*) FROM heard), (SELECT at FROM place), (SELECT id FROM place) FROM gone g GROUP BY g.reason`

	// Attempts that are older than purchases have to be, of one status and mode. Rows that another
	// transaction has are left for a later pruning, here and below: a pruning waits for nobody.
	sqlPruneAttempts = `
WITH chosen AS (
    SELECT p.checkout_session_id AS id, COALESCE(p.purchased_at, p.created_at) AS at FROM public.purchases p
    WHERE p.status = $1 AND p.livemode = $3 AND COALESCE(p.purchased_at, p.created_at) >= $4::timestamptz AND COALESCE(p.purchased_at, p.created_at) < $2
        AND (COALESCE(p.purchased_at, p.created_at) > $4 OR p.checkout_session_id > $5)
    ORDER BY COALESCE(p.purchased_at, p.created_at), p.checkout_session_id LIMIT $6
), old AS (
    SELECT checkout_session_id, attempt_id FROM public.attempts
    WHERE checkout_session_id IN (SELECT id FROM chosen) AND at < $2::timestamptz
    ORDER BY checkout_session_id, attempt_id FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM public.attempts a USING old o
    WHERE a.checkout_session_id = o.checkout_session_id AND a.attempt_id = o.attempt_id RETURNING 1
)
SELECT at, id, (SELECT count(*) FROM gone) FROM chosen ORDER BY at DESC, id DESC LIMIT 1`

	sqlCountPrunableAttempts = `
SELECT count(*) FROM public.purchases p JOIN public.attempts a ON a.checkout_session_id = p.checkout_session_id
WHERE p.status = ANY($1::text[]) AND COALESCE(p.purchased_at, p.created_at) < $2::timestamptz AND a.at < $2`

	// Events that no purchase is left of: they came late to one that was pruned.
	sqlPruneEvents = `
WITH chosen AS (
    SELECT event_id, checkout_session_id, received_at FROM public.stripe_events
    WHERE received_at < $1::timestamptz AND received_at >= $2::timestamptz AND (received_at > $2 OR event_id > $3)
    ORDER BY received_at, event_id LIMIT $4
), old AS (
    SELECT e.event_id FROM public.stripe_events e JOIN chosen c ON e.event_id = c.event_id
    WHERE NOT EXISTS (SELECT FROM public.purchases p WHERE p.checkout_session_id = c.checkout_session_id)
    ORDER BY e.event_id FOR UPDATE OF e SKIP LOCKED
), gone AS (
    DELETE FROM public.stripe_events e USING old o WHERE e.event_id = o.event_id RETURNING 1
)
SELECT received_at, event_id, (SELECT count(*) FROM gone) FROM chosen ORDER BY received_at DESC, event_id DESC LIMIT 1`

	// Of subscriptions: those whose first payment is long made, those of which no trial came with the first invoice, and trials that ended
	// without a payment (Stripe's longest lasts two years). An invoice that comes later finds no trial, and so is no first payment.
	sqlPruneTrials = `
WITH chosen AS (
    SELECT subscription_id FROM public.trials WHERE subscription_id > $2 ORDER BY subscription_id LIMIT $3
), old AS (
    SELECT t.subscription_id FROM public.trials t JOIN chosen c ON t.subscription_id = c.subscription_id
    WHERE t.purchase_id IS NOT NULL AND t.invoice_at < $1::timestamptz
        OR t.checkout_session_id IS NULL AND t.held_at < $1
        OR t.started_at < $1::timestamptz - interval '2 years'
    ORDER BY t.subscription_id FOR UPDATE OF t SKIP LOCKED
), gone AS (
    DELETE FROM public.trials t USING old o WHERE t.subscription_id = o.subscription_id RETURNING 1
)
SELECT now(), subscription_id, (SELECT count(*) FROM gone) FROM chosen ORDER BY subscription_id DESC LIMIT 1`

	// The messages of purchases that TikTok accepted $1 seconds ago or earlier. The index holds those that
	// still have theirs.
	sqlDropEnvelopes = `
UPDATE public.purchases SET envelope = NULL
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases
    WHERE status = 'delivered' AND envelope IS NOT NULL AND finished_at < now() - make_interval(secs => $1)
    ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED)`
	sqlLockEnvelopes = `SELECT pg_try_advisory_xact_lock(` + lockEnvelopes + `)`

	// Of hours of which nothing is left, the rollup keeps nothing.
	sqlPruneHours = `
DELETE FROM public.rollup_hours WHERE (hour, livemode) IN (
    SELECT hour, livemode FROM public.rollup_hours WHERE hour < $1 AND paid = 0 AND accepted = 0
    ORDER BY hour, livemode LIMIT $2 FOR UPDATE SKIP LOCKED) AND paid = 0 AND accepted = 0`
	sqlPruneDelays = `
DELETE FROM public.rollup_delays WHERE (daily, at, livemode, delay) IN (
    SELECT daily, at, livemode, delay FROM public.rollup_delays WHERE at < $1 AND n = 0
    ORDER BY daily, at, livemode, delay LIMIT $2 FOR UPDATE SKIP LOCKED) AND n = 0`

	// The live and the test profile of an address. The advisory locks keep webhooks away from them.
	sqlForgetProfiles = `
SELECT id::text FROM public.profiles WHERE livemode IN (true, false) AND email = $1 ORDER BY id`

	// What Stripe calls the customer, and the subscriptions: as the profiles, their purchases and their
	// trials know them. The latter keep what a pruning took from the former.
	sqlForgetIDs = `
WITH known AS (
    SELECT stripe_customer_id AS customer, stripe_subscription_id AS subscription
    FROM public.profiles WHERE id = ANY($1::uuid[])
    UNION
    SELECT stripe_customer_id, stripe_subscription_id FROM public.purchases WHERE profile_id = ANY($1::uuid[])
    UNION SELECT stripe_customer_id, subscription_id FROM public.trials WHERE profile_id = ANY($1::uuid[])
)
SELECT COALESCE(array_agg(DISTINCT customer) FILTER (WHERE customer IS NOT NULL), '{}'),
    COALESCE(array_agg(DISTINCT subscription) FILTER (WHERE subscription IS NOT NULL), '{}') FROM known`

	// The profiles' purchases, and those of the same customer or subscription that have no profile: unpaid
	// ones, and ones without a usable address.
	sqlForgetHeld = `
SELECT checkout_session_id, livemode, status = 'delivered' FROM public.purchases
WHERE profile_id = ANY($1::uuid[])
    OR profile_id IS NULL AND (stripe_customer_id = ANY($2::text[]) OR stripe_subscription_id = ANY($3::text[]))
ORDER BY checkout_session_id FOR UPDATE`

	// Their trials and held invoices, found by each of the ids: purchases may have been pruned. What belongs
	// to another profile stays.
	forgetTrials = `
    (t.profile_id = ANY($1::uuid[]) OR t.checkout_session_id = ANY($4::text[]) OR t.purchase_id = ANY($4)
        OR NOT EXISTS (SELECT FROM public.profiles o WHERE o.id = t.profile_id)
            AND (t.stripe_customer_id = ANY($2::text[]) OR t.subscription_id = ANY($3::text[])))`

	// The sessions and invoices of trials: the queue may hold what the ledger does not any more.
	sqlForgetOthers = `
SELECT COALESCE(array_agg(DISTINCT u.id), '{}')
FROM public.trials t, unnest(ARRAY[t.checkout_session_id, t.invoice_id, t.purchase_id]) AS u (id)
WHERE u.id IS NOT NULL AND u.id <> ALL($4) AND ` + forgetTrials + ``

	// What still could be sent.
	sendable = `(status IN ('pending', 'published', 'retrying', 'dead') OR status = 'skipped' AND reason IN ('not_configured', 'test_purchase'))`

	sqlForgetContent = `
UPDATE public.purchases SET envelope = NULL, last_error = NULL, tiktok_request_id = NULL,
    status = CASE WHEN ` + sendable + ` THEN 'skipped' ELSE status END, reason = CASE WHEN ` + sendable + ` THEN 'forgotten' ELSE reason END,
    finished_at = CASE WHEN ` + sendable + ` THEN COALESCE(finished_at, now()) ELSE finished_at END, updated_at = now()
WHERE checkout_session_id = ANY($1::text[])`
	sqlForgetAttempts = `
WITH told AS (
    SELECT checkout_session_id, attempt_id FROM public.attempts
    WHERE checkout_session_id = ANY($1::text[]) AND (message <> '' OR request_id <> '')
    ORDER BY checkout_session_id, attempt_id FOR UPDATE
)
UPDATE public.attempts a SET message = '', request_id = '' FROM told t
WHERE a.checkout_session_id = t.checkout_session_id AND a.attempt_id = t.attempt_id`
	sqlForgetLinks = `
UPDATE public.purchases SET profile_id = NULL, stripe_customer_id = NULL, stripe_subscription_id = NULL WHERE checkout_session_id = ANY($1::text[])`
	// A first payment that comes now ends skipped (forgotten).
	sqlForgetTrialKeys = `
WITH mine AS (
    SELECT t.subscription_id FROM public.trials t WHERE ` + forgetTrials + `
    ORDER BY t.subscription_id FOR UPDATE
)
UPDATE public.trials t SET envelope = NULL, click_expires_at = NULL FROM mine m
    WHERE t.subscription_id = m.subscription_id`
	// A first payment that comes later finds no trial, and is none.
	sqlForgetTrials = `
WITH mine AS (
    SELECT t.subscription_id FROM public.trials t WHERE ` + forgetTrials + `
    ORDER BY t.subscription_id FOR UPDATE
)
DELETE FROM public.trials t USING mine m WHERE t.subscription_id = m.subscription_id`
	sqlForgetProfile = `
WITH mine AS (SELECT id FROM public.profiles WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE)
DELETE FROM public.profiles p USING mine m WHERE p.id = m.id`

	entryColumns = `
    checkout_session_id, status, reason, profile_id::text, mode, livemode, amount_minor, currency, purchased_at, stripe_customer_id, stripe_subscription_id,
    generation, first_published_at, published_at, stream_sequence, swept_at, attempts, last_attempt_at, last_class, last_code, last_error, tiktok_request_id,
    finished_at, created_at, updated_at, kind, trial_session_id, sent_minor`

	// A page of a list: $1 mode, $2 and $3 the time from and until, $4 and $5 the place to go on from, $6 reason, $7 code, $9 without any code, $8 how many.
	pageOf = `COALESCE(purchased_at, created_at) >= $2::timestamptz AND COALESCE(purchased_at, created_at) < $3::timestamptz
        AND COALESCE(purchased_at, created_at) <= $4::timestamptz AND (COALESCE(purchased_at, created_at) < $4::timestamptz OR checkout_session_id < $5)
        AND ($6 = '' OR reason = $6) AND ($7::int IS NULL OR last_code = $7) AND (NOT $9::boolean OR last_code IS NULL)
    ORDER BY COALESCE(purchased_at, created_at) DESC, checkout_session_id DESC LIMIT $8`

	// Each mode by its own part of the index, then merged.
	liveEntries = `
SELECT` + entryColumns + `
FROM (
    (SELECT` + entryColumns + ` FROM public.purchases WHERE livemode AND $1::boolean IS DISTINCT FROM false AND `
	testEntries = `)
    UNION ALL
    (SELECT` + entryColumns + ` FROM public.purchases WHERE NOT livemode AND $1::boolean IS DISTINCT FROM true AND `
	mergedEntries = `)
) p ORDER BY COALESCE(purchased_at, created_at) DESC, checkout_session_id DESC LIMIT $8`

	sqlEntries = liveEntries + pageOf + testEntries + pageOf + mergedEntries

	sqlEntriesByStatus = liveEntries + `status = $10 AND ` + pageOf + testEntries + `status = $10 AND ` + pageOf + mergedEntries

	entriesAlone = `
SELECT` + entryColumns + `
FROM public.purchases WHERE ($1::boolean IS NULL OR livemode = $1) AND ($10 = '' OR status = $10) AND `

	sqlEntriesByCode = entriesAlone + `last_code <> 0 AND ` + pageOf

	// Each way of finding has its own index. A profile stands for its address: the profile of the other mode
	// is found with it.
	sqlEntriesFound = entriesAlone + found + `AND ` + pageOf

	found = `checkout_session_id IN (
    SELECT $11 UNION SELECT checkout_session_id FROM public.stripe_events WHERE event_id = $11
    UNION SELECT checkout_session_id FROM public.purchases WHERE stripe_customer_id = $11
    UNION SELECT q.checkout_session_id FROM public.profiles p
        JOIN public.profiles o ON o.livemode IN (true, false) AND o.email = p.email
        JOIN public.purchases q ON q.profile_id = o.id WHERE p.id = $13::uuid
    UNION SELECT q.checkout_session_id FROM public.profiles p JOIN public.purchases q ON q.profile_id = p.id
        WHERE p.livemode IN (true, false) AND p.email = $12) `

	// The live profile comes first.
	sqlProfileByEmail = `
SELECT id::text FROM public.profiles WHERE livemode IN (true, false) AND email = $1
ORDER BY livemode DESC LIMIT 1`

	// Each way of finding has its own index.
	sqlHistories = `
SELECT checkout_session_id, status, reason, COALESCE(profile_id::text, ''), mode, livemode, amount_minor, COALESCE(currency, ''), purchased_at,
    COALESCE(stripe_customer_id, ''), COALESCE(stripe_subscription_id, ''), generation, created_at, first_published_at, published_at,
    COALESCE(stream_sequence, 0), finished_at, COALESCE(tiktok_request_id, ''), envelope, kind,
    COALESCE(trial_session_id, ''), match_keys, sent_minor, COALESCE(sent_page, '')
FROM public.purchases
WHERE checkout_session_id IN (
    SELECT $1 UNION SELECT checkout_session_id FROM public.stripe_events WHERE event_id = $1
    UNION SELECT q.checkout_session_id FROM public.profiles p JOIN public.purchases q ON q.profile_id = p.id
        WHERE p.livemode IN (true, false) AND p.email = $2)
ORDER BY created_at DESC, checkout_session_id LIMIT $3`

	sqlEntry = `
SELECT` + entryColumns + `
FROM public.purchases WHERE checkout_session_id = $1`

	sqlReceptions = `
SELECT checkout_session_id, event_id, type, created_at, received_at, disposition FROM public.stripe_events
WHERE checkout_session_id = ANY($1) ORDER BY received_at, event_id`

	sqlAttempts = `
SELECT checkout_session_id, attempt_id, generation, at, took_ms, class, code, message, request_id FROM public.attempts
WHERE checkout_session_id = ANY($1) ORDER BY at, attempt_id`
)
