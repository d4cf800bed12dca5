// Creates a Checkout Session with the match keys of its purchase. Node 18 or newer, no packages.
//   STRIPE_SECRET_KEY=sk_… STRIPE_PRICE=price_… PORT=4242 node checkout.mjs
import http from 'node:http'

const {
  STRIPE_SECRET_KEY, STRIPE_PRICE, STRIPE_API_URL = 'https://api.stripe.com',
  SHOP_URL = 'https://shop.example', PORT = 4242,
  PROXIES = 0, // number of your own proxies in front of this server
} = process.env

// The buyer's address. Each proxy appends its client's address to X-Forwarded-For. Anything to the left of your
// proxies' entries may be forged.
function clientIP(request) {
  const seen = [...(request.headers['x-forwarded-for'] || '').split(','), request.socket.remoteAddress]
  return seen.at(-1 - Number(PROXIES))?.trim()
}

function cookies(request) {
  const pairs = (request.headers.cookie || '').split('; ').map((pair) => pair.split('='))
  return Object.fromEntries(pairs.map(([name, ...value]) => [name, value.join('=')]))
}

// Metadata that purchase-relay reads. Without consent it holds the refusal only.
function metadata(request) {
  const kept = cookies(request)
  if (kept.consent !== 'yes') return { consent: 'no' }
  return {
    consent: 'yes',
    ttclid: kept.ttclid, ttclid_at: kept.ttclid_at, // docs/snippets/keep-click.js
    ttp: kept._ttp, // TikTok's own cookie
    client_ip: clientIP(request),
    user_agent: request.headers['user-agent'],
    page_url: request.headers.referer,
  }
}

async function createSession(request) {
  const form = new URLSearchParams({
    mode: 'subscription', 'line_items[0][price]': STRIPE_PRICE, 'line_items[0][quantity]': '1',
    success_url: `${SHOP_URL}/thanks`, cancel_url: `${SHOP_URL}/`,
    'phone_number_collection[enabled]': 'true', billing_address_collection: 'required', // more match keys
  })
  for (const [key, value] of Object.entries(metadata(request))) {
    // Stripe rejects the whole session for a value of more than 500 characters.
    if (value && value.length <= 500) form.set(`metadata[${key}]`, value)
  }
  const answer = await fetch(`${STRIPE_API_URL}/v1/checkout/sessions`, {
    method: 'POST', headers: { Authorization: `Bearer ${STRIPE_SECRET_KEY}` }, body: form,
  })
  const session = await answer.json()
  if (!answer.ok) throw new Error(`Stripe: ${answer.status} ${session.error?.message}`)
  return session.url
}

http.createServer(async (request, response) => {
  if (request.method !== 'POST' || request.url !== '/checkout') return response.writeHead(404).end()
  try {
    response.writeHead(303, { Location: await createSession(request) }).end()
  } catch (error) {
    console.error(error.message)
    response.writeHead(502).end('The checkout cannot be opened; try again.')
  }
}).listen(Number(PORT), '127.0.0.1')
