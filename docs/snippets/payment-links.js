// Adds the click id of keep-click.js to the page's Payment Links, as client_reference_id. Call it after
// keepClick(true).
function markPaymentLinks() {
  var kept = /(?:^|; )ttclid=([^;]+)/.exec(document.cookie)
  var reference = kept && 'ttclid-' + kept[1].replace(/_/g, '__').replace(/\./g, '_d')
  if (!/^[\w-]{1,200}$/.test(reference || '')) return // Stripe accepts up to 200 of these characters
  document.querySelectorAll('a[href^="https://buy.stripe.com/"]').forEach(function (a) {
    var link = new URL(a.href)
    if (link.searchParams.has('client_reference_id')) return // keep your own
    link.searchParams.set('client_reference_id', reference)
    a.href = link
  })
}
