package purchase

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxURL bounds an address in bytes: what browsers and servers commonly take.
const maxURL = 2048

// webURL is an absolute http(s) address, split as browsers split it (WHATWG's URL Standard). Path and query
// are as they were written; the fragment is not part of what servers and TikTok get.
type webURL struct {
	origin string // scheme, host and port: "https://shop.example"
	path   string // begins with '/', or ""
	query  string // without '?'
}

// plainAddress undoes what shops do to an address on its way into the metadata: quotes around it, escapes of
// HTML, JSON or of the whole address, and the characters that browsers remove.
func plainAddress(raw string) string {
	s := raw
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r > unicode.MaxASCII && invisible(r) {
			return -1
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	for quoted(s) {
		s = strings.TrimSpace(s[1 : len(s)-1])
	}
	if strings.IndexByte(s, '%') > 0 && !strings.ContainsAny(s, "/:") { // https%3A%2F%2Fshop.example%2F
		s = unescape(s)
	}
	if strings.IndexByte(s, '\\') >= 0 {
		s = jsonEscapes.Replace(s)
	}
	for strings.Contains(s, "&#") || strings.Contains(s, "&amp;") || strings.Contains(s, "&AMP;") {
		plain := ampersands.Replace(s)
		if plain == s {
			break
		}
		s = plain // it may have been escaped twice
	}
	return s
}

// quoted reports whether a text has a pair of quotes or angle brackets around it.
func quoted(s string) bool {
	if len(s) < 2 {
		return false
	}
	first, last := s[0], s[len(s)-1]
	return first == '<' && last == '>' || strings.IndexByte("\"'`", first) >= 0 && first == last
}

var (
	jsonEscapes = strings.NewReplacer(`\/`, "/", `\u0026`, "&", `\u003d`, "=", `\u003D`, "=")
	ampersands  = strings.NewReplacer("&amp;", "&", "&AMP;", "&", "&#38;", "&", "&#038;", "&", "&#x26;", "&")
)

// parseWeb splits what plainAddress returned. Without a scheme it is https, where a host with a dot comes
// first.
func parseWeb(s string) (u webURL, ok bool) {
	scheme, rest, bare := "https", s, false
	colon := strings.IndexByte(s, ':')
	switch {
	case colon >= 0 && (strings.EqualFold(s[:colon], "https") || strings.EqualFold(s[:colon], "http")):
		scheme, rest = strings.ToLower(s[:colon]), s[colon+1:]
	case strings.HasPrefix(s, "//"), strings.HasPrefix(s, `\\`), strings.HasPrefix(s, "://"):
		rest = strings.TrimPrefix(s, ":")
	default:
		bare = true
	}
	if !bare {
		rest = strings.TrimLeft(rest, `/\`)
	}
	end := strings.IndexAny(rest, `/\?#`)
	if end < 0 {
		end = len(rest)
	}
	authority := rest[:end]
	if bare && strings.HasSuffix(authority, ":") {
		return u, false // an app's scheme
	}
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		if bare {
			return u, false // an e-mail address
		}
		authority = authority[at+1:]
	}
	host, ok := cleanHost(authority, scheme)
	if !ok || bare && !dotted(host) {
		return u, false
	}
	u.origin = scheme + "://" + host
	rest, _, _ = strings.Cut(rest[end:], "#")
	u.path, u.query, _ = strings.Cut(rest, "?")
	return u, true
}

// hosts maps names of all alphabets as browsers do: not limited to letters, digits and hyphens.
var hosts = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false))

// cleanHost returns a host with its port as browsers write it: in lower case, in Punycode, without the
// scheme's own port.
func cleanHost(authority, scheme string) (host string, ok bool) {
	host, port := authority, ""
	if at := strings.LastIndexByte(authority, ':'); at > strings.LastIndexByte(authority, ']') {
		host, port = authority[:at], authority[at+1:]
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return "", false
		}
		port = ":" + strconv.FormatUint(n, 10)
		if scheme == "https" && n == 443 || scheme == "http" && n == 80 {
			port = ""
		}
	}
	if inner, v6 := strings.CutPrefix(host, "["); v6 {
		addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		ok = err == nil && addr.Is6() && addr.Zone() == "" && strings.HasSuffix(inner, "]")
		return "[" + addr.String() + "]" + port, ok
	}
	host = strings.ToLower(unescape(host))
	if !isASCII(host) {
		ascii, err := hosts.ToASCII(host)
		if err != nil {
			return "", false
		}
		host = ascii
	}
	name := strings.TrimSuffix(host, ".")
	switch {
	case !consists(host, 253, ".-_"), name == "", name[0] == '.', strings.Contains(name, ".."), missing(name):
		return "", false
	}
	return host + port, true
}

// dotted reports whether a host looks like one in a text without a scheme: "shop.example", not "checkout" or
// "1.5".
func dotted(host string) bool {
	host, _, _ = strings.Cut(host, ":")
	dot := strings.LastIndexByte(strings.TrimSuffix(host, "."), '.')
	return dot > 0 && dot+1 < len(host) && host[dot+1] >= 'a' && host[dot+1] <= 'z'
}

// cleanURL returns an address without user, fragment, and whatever of its path and query is personal; all
// that remains is escaped, so that every parser takes it. personal reports whether the buyer was found in it.
// It is "" where no browser would open the address. The host is never searched: a shop may be called like its
// buyer.
func (b *buyer) cleanURL(raw string) (clean string, personal bool) {
	u, ok := parseWeb(plainAddress(raw))
	if !ok {
		return "", false
	}
	path, inPath := b.cleanPath(u.path)
	query, inQuery := b.cleanQuery(u.query)
	clean = u.origin + path
	if query != "" {
		clean += "?" + query
	}
	if len(clean) > maxURL { // escaped by now
		if clean = u.origin + path; len(clean) > maxURL {
			clean = u.origin + "/"
		}
	}
	return clean, inPath || inQuery
}

// cleanPath drops the segments that name the buyer, and resolves "." and "..". A name that is spread over
// segments costs the path.
func (b *buyer) cleanPath(path string) (clean string, personal bool) {
	if path == "" {
		return "", false
	}
	plain := !strings.ContainsAny(path, `\`) && !strings.Contains(path, "/.") && !strings.Contains(path, "%2")
	if personal = b.in(path); plain && !personal {
		return escape(path, &pathCharacter), false
	}
	var kept []string
	segments := strings.Split(strings.ReplaceAll(path, `\`, "/"), "/")[1:]
	for i, segment := range segments {
		dots := unescape(segment)
		switch {
		case dots == "..":
			kept = kept[:max(0, len(kept)-1)]
		case dots == ".", personal && b.in(segment):
		default:
			kept = append(kept, segment)
		}
		if i == len(segments)-1 && (dots == "." || dots == "..") {
			kept = append(kept, "")
		}
	}
	clean = "/" + strings.Join(kept, "/")
	if personal && b.in(clean) {
		clean = "/"
	}
	return escape(clean, &pathCharacter), personal
}

// cleanQuery drops the parameters that shops put personal data into, those that name the buyer, and click ids
// that are none. The others stay as they were written, in their order.
func (b *buyer) cleanQuery(query string) (clean string, personal bool) {
	if query == "" {
		return "", false
	}
	named := b.in(query)
	spread := b.inValues(query)
	kept := make([]byte, 0, len(query)+16)
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		key, value = unescape(key), unescape(value)
		switch {
		case pair == "", !printable(key), !printable(value), personalParam(key):
			continue
		case strings.EqualFold(key, metaTTCLID) && (value == "" || placeholder(value)):
			continue
		case named && b.in(pair), spread && b.partOfName(value):
			personal = true
			continue
		}
		if len(kept) > 0 {
			kept = append(kept, '&')
		}
		kept = appendEscaped(kept, pair, &queryCharacter)
	}
	if named && b.in(string(kept)) {
		return "", true
	}
	return string(kept), personal
}

// personalParam reports whether a query parameter is one that shops put personal data into; no plain address,
// phone or name may enter the queue, whatever page the buyer came from.
func personalParam(key string) bool {
	key = strings.ToLower(key)
	if !isASCII(key) {
		key = strings.ToLower(strings.ToUpper(key)) // ſ is an s, too
	}
	switch key {
	case "tel", "telefon", "telefono", "mail", "first", "last", "given", "family", "nom", "prenom", "nombre",
		"apellido", "apellidos":
		return true
	}
	for _, word := range personalWords {
		if strings.Contains(key, word) {
			return true
		}
	}
	return false
}

var personalWords = []string{
	"email", "e-mail", "phone", "mobile", "name", "address", "street", "token", "password", "secret",
}

// pathCharacter and queryCharacter are what a path and a query may hold unescaped (RFC 3986).
var pathCharacter, queryCharacter = characters("-._~!$&'()*+,;=:@/"), characters("-._~!$&'()*+,;=:@/?")

func characters(signs string) (set [256]bool) {
	for c := range set {
		set[c] = c < utf8.RuneSelf && consists(string(rune(c)), 1, signs)
	}
	return set
}

// escape escapes what is not allowed. Escapes stay; a '%' that begins none is escaped.
func escape(s string, allowed *[256]bool) string {
	for i := range len(s) {
		if !allowed[s[i]] {
			return string(appendEscaped(make([]byte, 0, len(s)+16), s, allowed))
		}
	}
	return s
}

func appendEscaped(to []byte, s string, allowed *[256]bool) []byte {
	const upper = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; allowed[c] || escapeAt(s, i) {
			to = append(to, c)
		} else {
			to = append(to, '%', upper[c>>4], upper[c&15])
		}
	}
	return to
}

// clickIDIn finds the click id in an address: in its query, then behind its '#', in any case. The rest of the
// address need not be usable. What cannot be a click id is passed over; the reason of the last one is
// returned where none is left. An address that is escaped within another's query is read at last.
func (b *buyer) clickIDIn(raw string) (id string, reason DropReason) {
	const rounds = 3
	text := plainAddress(raw)
	for range rounds {
		for at := 0; ; {
			sign := strings.IndexByte(text[at:], '=')
			if sign < 0 {
				break
			}
			at += sign + 1
			key := at - 1 - len(metaTTCLID)
			if key < 0 || !strings.EqualFold(text[key:at-1], metaTTCLID) {
				continue
			}
			if key > 0 && strings.IndexByte("?&#;/!", text[key-1]) < 0 {
				continue // of a longer name
			}
			value := text[at:]
			if end := strings.IndexAny(value, "&#;? \"'<>\\"); end >= 0 {
				value = value[:end]
			}
			switch value = unescape(value); {
			case value == "":
			case placeholder(value):
				reason = DropPlaceholder
			case cleanClickID(value) == "":
				reason = DropInvalid
			case b.in(value):
				reason = DropPersonal
			default:
				return cleanClickID(value), ""
			}
		}
		plain := unescape(text)
		if plain == text {
			break
		}
		text = plain
	}
	return "", reason
}
