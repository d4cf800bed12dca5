<?php
// Creates a Checkout Session with the match keys of its purchase. PHP 8, no packages.
//   STRIPE_SECRET_KEY=sk_… STRIPE_PRICE=price_… php -S 127.0.0.1:4242 checkout.php

// The buyer's address. Each proxy appends its client's address to X-Forwarded-For. Anything to the left of your
// proxies' entries may be forged.
// PROXIES is the number of your own proxies.
function clientIP(): string
{
    $seen = [...explode(',', $_SERVER['HTTP_X_FORWARDED_FOR'] ?? ''), $_SERVER['REMOTE_ADDR']];
    return trim($seen[count($seen) - 1 - (int) getenv('PROXIES')] ?? '');
}

// Metadata that purchase-relay reads. Without consent it holds the refusal only.
function metadata(): array
{
    if (($_COOKIE['consent'] ?? '') !== 'yes') {
        return ['consent' => 'no'];
    }
    return [
        'consent' => 'yes',
        'ttclid' => $_COOKIE['ttclid'] ?? '', 'ttclid_at' => $_COOKIE['ttclid_at'] ?? '', // docs/snippets/keep-click.js
        'ttp' => $_COOKIE['_ttp'] ?? '', // TikTok's own cookie
        'client_ip' => clientIP(),
        'user_agent' => $_SERVER['HTTP_USER_AGENT'] ?? '',
        'page_url' => $_SERVER['HTTP_REFERER'] ?? '',
    ];
}

function createSession(): ?string
{
    $shop = getenv('SHOP_URL') ?: 'https://shop.example';
    $form = [
        'mode' => 'subscription', 'line_items' => [['price' => getenv('STRIPE_PRICE'), 'quantity' => 1]],
        'success_url' => "$shop/thanks", 'cancel_url' => "$shop/",
        'phone_number_collection' => ['enabled' => 'true'], 'billing_address_collection' => 'required', // more match keys
        // Stripe rejects the whole session for a value of more than 500 characters.
        'metadata' => array_filter(metadata(), fn ($value) => is_string($value) && $value !== '' && strlen($value) <= 500),
    ];
    $answer = file_get_contents((getenv('STRIPE_API_URL') ?: 'https://api.stripe.com') . '/v1/checkout/sessions', false, stream_context_create(['http' => [
        'method' => 'POST', 'timeout' => 20, 'ignore_errors' => true, 'content' => http_build_query($form),
        'header' => ['Authorization: Bearer ' . getenv('STRIPE_SECRET_KEY'), 'Content-Type: application/x-www-form-urlencoded'],
    ]]));
    $session = json_decode($answer ?: '{}', true);
    if (!isset($session['url'])) {
        error_log('Stripe: ' . ($session['error']['message'] ?? 'no answer'));
    }
    return $session['url'] ?? null;
}

if ($_SERVER['REQUEST_METHOD'] !== 'POST' || $_SERVER['REQUEST_URI'] !== '/checkout') {
    http_response_code(404);
} elseif ($url = createSession()) {
    header("Location: $url", true, 303);
} else {
    http_response_code(502);
    echo 'The checkout cannot be opened; try again.';
}
