// Gives the click id that keep-click.js keeps to the Payment Links of a page, in their client_reference_id. Call it after keepClick(true).
function markPaymentLinks() {
  var kept = /(?:^|; )ttclid=([^;]+)/.exec(document.cookie)
  var reference = kept && 'ttclid-' + kept[1].replace(/_/g, '__').replace(/\./g, '_d')
  if (!/^[\w-]{1,200}$/.test(reference || '')) return // Stripe takes 200 of these characters
  document.querySelectorAll('a[href^="https://buy.stripe.com/"]').forEach(function (a) {
    var link = new URL(a.href)
    if (link.searchParams.has('client_reference_id')) return // your own stays
    link.searchParams.set('client_reference_id', reference)
    a.href = link
  })
}
