// The webhook handler as a shop usually writes it: everything happens inside the request, TikTok included.
const crypto = require('node:crypto');
const express = require('express');
const { Pool } = require('pg');
const Stripe = require('stripe');

const stripe = new Stripe('sk_test_unused');
const pool = new Pool({ connectionString: process.env.DATABASE_URL });
const app = express();

const sha256 = (s) => crypto.createHash('sha256').update(s.trim().toLowerCase()).digest('hex');

async function trackPurchase(session, created) {
  const metadata = session.metadata || {};
  const response = await fetch(process.env.TIKTOK_API_URL, {
    method: 'POST',
    headers: { 'Access-Token': process.env.TIKTOK_ACCESS_TOKEN, 'Content-Type': 'application/json' },
    body: JSON.stringify({
      event_source: 'web',
      event_source_id: process.env.TIKTOK_PIXEL_ID,
      data: [{
        event: 'CompletePayment',
        event_time: created,
        event_id: session.id,
        user: {
          email: sha256(session.customer_details.email),
          phone: sha256(session.customer_details.phone),
          ttclid: metadata.ttclid,
          ttp: metadata.ttp,
          ip: metadata.client_ip,
          user_agent: metadata.user_agent,
        },
        properties: { value: session.amount_total / 100, currency: session.currency.toUpperCase() },
        page: { url: metadata.page_url },
      }],
    }),
  });
  const answer = await response.json();
  if (answer.code !== 0) throw new Error(`TikTok: ${answer.code} ${answer.message}`);
  return answer.request_id;
}

app.post('/webhooks/stripe', express.raw({ type: 'application/json' }), async (req, res) => {
  let event;
  try {
    event = stripe.webhooks.constructEvent(req.body, req.headers['stripe-signature'], process.env.STRIPE_WEBHOOK_SECRET);
  } catch (err) {
    console.error('Invalid signature', err.message);
    return res.status(400).json({ error: 'invalid signature' });
  }
  if (event.type !== 'checkout.session.completed') return res.json({ status: 'ignored' });
  const session = event.data.object;
  try {
    const seen = await pool.query('INSERT INTO events (id, type) VALUES ($1, $2) ON CONFLICT DO NOTHING', [event.id, event.type]);
    if (seen.rowCount === 0) return res.json({ status: 'duplicate' });
    console.log('Processing checkout.session.completed', session.id);
    const profile = await pool.query(
      `INSERT INTO profiles (email, stripe_customer_id, stripe_subscription_id) VALUES ($1, $2, $3)
       ON CONFLICT (email) DO UPDATE SET stripe_customer_id = $2, stripe_subscription_id = $3 RETURNING id`,
      [session.customer_details.email.toLowerCase(), session.customer, session.subscription],
    );
    await pool.query(
      `INSERT INTO purchases (session_id, profile_id, amount, currency, status) VALUES ($1, $2, $3, $4, 'paid') ON CONFLICT DO NOTHING`,
      [session.id, profile.rows[0].id, session.amount_total, session.currency],
    );
    const requestId = await trackPurchase(session, event.created);
    await pool.query(`UPDATE purchases SET status = 'tracked', request_id = $2 WHERE session_id = $1`, [session.id, requestId]);
    console.log('Purchase event sent successfully', session.id);
    return res.json({ status: 'processed' });
  } catch (err) {
    console.error('Failed', session.id, err.message);
    return res.status(500).json({ error: 'internal error' });
  }
});

async function main() {
  await pool.query(`
    CREATE TABLE IF NOT EXISTS events (id text PRIMARY KEY, type text NOT NULL, received_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE IF NOT EXISTS profiles (id bigserial PRIMARY KEY, email text UNIQUE NOT NULL, stripe_customer_id text, stripe_subscription_id text);
    CREATE TABLE IF NOT EXISTS purchases (session_id text PRIMARY KEY, profile_id bigint REFERENCES profiles, amount bigint, currency text,
      status text NOT NULL, request_id text, created_at timestamptz NOT NULL DEFAULT now())`);
  app.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));
}

main().catch((err) => { console.error(err); process.exit(1); });
