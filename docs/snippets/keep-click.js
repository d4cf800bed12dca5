// Keeps TikTok's click id from the landing page until the checkout, and only once the visitor has said yes.
// On every page, as soon as the answer is known: keepClick(true), or keepClick(false), which forgets it.
function keepClick(yes) {
  var end = ';path=/;samesite=lax' + (location.protocol == 'https:' ? ';secure' : '') + ';max-age=' + (yes ? 2592000 : 0)
  function put(name, value) { document.cookie = name + '=' + value + end }
  function idIn(page) { // in this page's address, or in that of our own page before it
    try { page = new URL(page); return page.origin == location.origin && page.searchParams.get('ttclid') } catch (e) {}
  }
  var id = yes ? idIn(location.href) || idIn(document.referrer) : '-'
  if (!/^[\w.~-]{1,500}$/.test(id || '')) return
  if (yes && ('; ' + document.cookie + ';').indexOf('; ttclid=' + id + ';') >= 0) return
  put('ttclid', id)
  put('ttclid_at', Math.floor(Date.now() / 1000))
}
