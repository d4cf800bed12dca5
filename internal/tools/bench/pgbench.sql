-- The rows that a webhook about a new customer leaves, written the usual way: each statement is a round trip.
-- Keys and values are as long and as random as ingest's.
\set r random(100000000000, 999999999999)
BEGIN;
INSERT INTO public.stripe_events
    (event_id, type, checkout_session_id, livemode, created_at, received_at, disposition)
VALUES ('evt_' || (:r)::text || '000000000000', 'checkout.session.completed',
    'cs_live_a1' || (:r)::text || '00000000000000000000000000000000000000000000', true, now(), now(),
    'processed')
ON CONFLICT (event_id) DO NOTHING;
INSERT INTO public.profiles AS p (livemode, email, stripe_customer_id, stripe_subscription_id, last_purchase_at)
VALUES (true, 'buyer.' || (:r)::text || '@example.com', 'cus_' || (:r)::text || '00',
    'sub_' || (:r)::text || '000000000000', now())
ON CONFLICT (livemode, email) DO UPDATE SET stripe_customer_id = excluded.stripe_customer_id,
    stripe_subscription_id = excluded.stripe_subscription_id, last_purchase_at = excluded.last_purchase_at,
    updated_at = now()
RETURNING id \gset
INSERT INTO public.purchases (checkout_session_id, status, profile_id, mode, livemode, amount_minor, currency,
    purchased_at, stripe_customer_id, stripe_subscription_id, envelope, match_keys)
SELECT 'cs_live_a1' || (:r)::text || '00000000000000000000000000000000000000000000', 'pending',
     :id, 'subscription', true, 2999, 'usd',
    now(), 'cus_' || (:r)::text || '00', 'sub_' || (:r)::text || '000000000000', :envelope::bytea, 127
ON CONFLICT (checkout_session_id) DO NOTHING;
COMMIT;
