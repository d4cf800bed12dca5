// Keeps TikTok's click id from the landing page until the checkout. Call it on every page once the visitor's
// consent is known: keepClick(true), or keepClick(false), which deletes the id.
function keepClick(yes) {
  var end = ';path=/;samesite=lax' + (location.protocol == 'https:' ? ';secure' : '') + ';max-age=' + (yes ? 2592000 : 0)
  function put(name, value) { document.cookie = name + '=' + value + end }
  function idIn(page) { // in the query or the fragment of this page, or of the previous one of this site
    try { page = new URL(page) } catch (e) { return }
    var found = /[?&#]ttclid=(?!(null|undefined|nan|none|__\w*__)([&#]|$))([\w.~-]{1,500})([&#]|$)/i.exec(page.search + page.hash)
    return page.origin == location.origin && found && found[3]
  }
  var id = yes ? idIn(location.href) || idIn(document.referrer) : '-'
  if (!id || yes && ('; ' + document.cookie + ';').includes('; ttclid=' + id + ';')) return
  put('ttclid', id)
  put('ttclid_at', Math.floor(Date.now() / 1000))
}
