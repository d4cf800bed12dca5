"""Creates a Checkout Session with the match keys of its purchase. Python 3.9 or newer, no packages.

    STRIPE_SECRET_KEY=sk_… STRIPE_PRICE=price_… PORT=4242 python3 checkout.py
"""
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STRIPE = os.environ.get("STRIPE_API_URL", "https://api.stripe.com")
SHOP = os.environ.get("SHOP_URL", "https://shop.example")
PROXIES = int(os.environ.get("PROXIES", "0"))  # number of your own proxies in front of this server


def client_ip(request):
    """The buyer's address.

    Each proxy appends its client's address to X-Forwarded-For. Anything to the left of your proxies' entries
    may be forged.
    """
    forwarded = ",".join(request.headers.get_all("X-Forwarded-For", []))
    seen = forwarded.split(",") + [request.client_address[0]]
    return seen[-1 - PROXIES].strip() if PROXIES < len(seen) else None


def metadata(request):
    """Metadata that purchase-relay reads. Without consent it holds the refusal only."""
    kept = dict(pair.split("=", 1) for pair in request.headers.get("Cookie", "").split("; ") if "=" in pair)
    if kept.get("consent") != "yes":
        return {"consent": "no"}
    return {
        "consent": "yes",
        "ttclid": kept.get("ttclid"), "ttclid_at": kept.get("ttclid_at"),  # docs/snippets/keep-click.js
        "ttp": kept.get("_ttp"),  # TikTok's own cookie
        "client_ip": client_ip(request),
        "user_agent": request.headers.get("User-Agent"),
        "page_url": request.headers.get("Referer"),
    }


def create_session(request):
    form = {
        "mode": "subscription", "line_items[0][price]": os.environ["STRIPE_PRICE"], "line_items[0][quantity]": "1",
        "success_url": SHOP + "/thanks", "cancel_url": SHOP + "/",
        "phone_number_collection[enabled]": "true", "billing_address_collection": "required",  # more match keys
    }
    for key, value in metadata(request).items():
        if value and len(value) <= 500:  # Stripe rejects the whole session for a longer one
            form[f"metadata[{key}]"] = value
    call = urllib.request.Request(
        STRIPE + "/v1/checkout/sessions", urllib.parse.urlencode(form).encode(),
        {"Authorization": "Bearer " + os.environ["STRIPE_SECRET_KEY"]},
    )
    with urllib.request.urlopen(call, timeout=20) as answer:
        return json.load(answer)["url"]


class Shop(BaseHTTPRequestHandler):
    def do_POST(self):
        if self.path != "/checkout":
            return self.send_error(404)
        try:
            url = create_session(self)
        except urllib.error.URLError as error:
            print(error.read().decode() if hasattr(error, "read") else error, file=sys.stderr)
            return self.send_error(502, "The checkout cannot be opened; try again.")
        self.send_response(303)
        self.send_header("Location", url)
        self.end_headers()


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "4242"))), Shop).serve_forever()
