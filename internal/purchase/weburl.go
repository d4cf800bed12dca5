package purchase

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxURL is the limit of a URL in bytes, as in most browsers and servers.
const maxURL = 2048

// webURL is an absolute http(s) URL without its fragment, parsed like in browsers (WHATWG URL Standard).
// Path and query are unchanged.
type webURL struct {
	origin string // scheme, host and port: "https://shop.example"
	path   string // with the first '/', or ""
	query  string // without '?'
}

// unwrapURL removes quotes, HTML and JSON escapes, escapes of the whole URL, and the characters that browsers
// ignore. Shops add all of them on the way into the metadata.
func unwrapURL(raw string) string {
	s := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r > unicode.MaxASCII && invisible(r) {
			return -1
		}
		return r
	}, raw)
	s = strings.TrimSpace(s)
	for isQuoted(s) {
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
		s = plain // possibly escaped twice
	}
	return s
}

// isQuoted reports whether s is between quotes or angle brackets.
func isQuoted(s string) bool {
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

// parseURL parses a result of unwrapURL. A URL without a scheme is https if it begins with a domain.
func parseURL(s string) (u webURL, ok bool) {
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
		return u, false // another scheme
	}
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		if bare {
			return u, false // an e-mail address
		}
		authority = authority[at+1:]
	}
	host, ok := cleanHost(authority, scheme)
	if !ok || bare && !hasTopLevelDomain(host) {
		return u, false
	}
	u.origin = scheme + "://" + host
	rest, _, _ = strings.Cut(rest[end:], "#")
	u.path, u.query, _ = strings.Cut(rest, "?")
	return u, true
}

// idnaProfile converts hosts like browsers, which accept more than letters, digits and hyphens.
var idnaProfile = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false))

// cleanHost returns a host and port like browsers: in lower case, in Punycode, without the default port.
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
		ascii, err := idnaProfile.ToASCII(host)
		if err != nil {
			return "", false
		}
		host = ascii
	}
	name := strings.TrimSuffix(host, ".")
	switch {
	case !alphanumeric(host, 253, ".-_"), name == "", name[0] == '.', strings.Contains(name, ".."),
		isMissing(name):
		return "", false
	}
	return host + port, true
}

// hasTopLevelDomain reports whether a host without a scheme is a domain: "shop.example", not "checkout" or
// "1.5".
func hasTopLevelDomain(host string) bool {
	host, _, _ = strings.Cut(host, ":")
	dot := strings.LastIndexByte(strings.TrimSuffix(host, "."), '.')
	return dot > 0 && dot+1 < len(host) && host[dot+1] >= 'a' && host[dot+1] <= 'z'
}

// cleanURL returns a URL without user, fragment and personal data, escaped so that every parser accepts it;
// "": invalid. personal reports whether personal data was found. The host is not searched: a shop may have
// its buyer's name.
func (b *buyer) cleanURL(raw string) (clean string, personal bool) {
	u, ok := parseURL(unwrapURL(raw))
	if !ok {
		return "", false
	}
	path, personalPath := b.cleanPath(u.path)
	query, personalQuery := b.cleanQuery(u.query)
	clean = u.origin + path
	if query != "" {
		clean += "?" + query
	}
	if len(clean) > maxURL {
		if clean = u.origin + path; len(clean) > maxURL {
			clean = u.origin + "/"
		}
	}
	return clean, personalPath || personalQuery
}

// cleanPath removes segments with personal data and resolves "." and "..". A name spread over several
// segments removes the path.
func (b *buyer) cleanPath(path string) (clean string, personal bool) {
	if path == "" {
		return "", false
	}
	plain := !strings.ContainsAny(path, `\`) && !strings.Contains(path, "/.") && !strings.Contains(path, "%2")
	if personal = b.foundIn(path); plain && !personal {
		return escape(path, &pathCharacter), false
	}
	var kept []string
	segments := strings.Split(strings.ReplaceAll(path, `\`, "/"), "/")[1:]
	for i, segment := range segments {
		dots := unescape(segment)
		switch {
		case dots == "..":
			kept = kept[:max(0, len(kept)-1)]
		case dots == ".", personal && b.foundIn(segment):
		default:
			kept = append(kept, segment)
		}
		if i == len(segments)-1 && (dots == "." || dots == "..") {
			kept = append(kept, "")
		}
	}
	clean = "/" + strings.Join(kept, "/")
	if personal && b.foundIn(clean) {
		clean = "/"
	}
	return escape(clean, &pathCharacter), personal
}

// cleanQuery removes parameters with personal data and placeholder click ids. The others remain in order.
func (b *buyer) cleanQuery(query string) (clean string, personal bool) {
	if query == "" {
		return "", false
	}
	found, nameSpread := b.foundIn(query), b.nameInValues(query)
	kept := make([]byte, 0, len(query)+16)
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		key, value = unescape(key), unescape(value)
		switch {
		case pair == "", !printable(key), !printable(value), isPersonalParam(key):
			continue
		case strings.EqualFold(key, metaTTCLID) && (value == "" || isPlaceholder(value)):
			continue
		case found && b.foundIn(pair), nameSpread && b.isNameWord(value):
			personal = true
			continue
		}
		if len(kept) > 0 {
			kept = append(kept, '&')
		}
		kept = appendEscaped(kept, pair, &queryCharacter)
	}
	if found && b.foundIn(string(kept)) {
		return "", true
	}
	return string(kept), personal
}

// isPersonalParam reports whether shops use a query parameter for personal data.
func isPersonalParam(key string) bool {
	key = strings.ToLower(key)
	if !isASCII(key) {
		key = strings.ToLower(strings.ToUpper(key)) // U+017F is an s
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

// pathCharacter and queryCharacter are the unescaped characters of a path and a query (RFC 3986).
var pathCharacter, queryCharacter = characters("-._~!$&'()*+,;=:@/"), characters("-._~!$&'()*+,;=:@/?")

func characters(signs string) (set [256]bool) {
	for c := range set {
		set[c] = c < utf8.RuneSelf && alphanumeric(string(rune(c)), 1, signs)
	}
	return set
}

// escape escapes characters that are not allowed, except existing escapes.
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

// clickIDInURL returns the first valid click id in the query or the fragment of a URL, or of a URL escaped
// within them, with the parameter's name in any case. The rest of the URL may be invalid. Without a click
// id it returns the reason of the last invalid one.
func (b *buyer) clickIDInURL(raw string) (id string, reason DropReason) {
	text := unwrapURL(raw)
	for range maxUnescapes {
		for at := 0; ; {
			equals := strings.IndexByte(text[at:], '=')
			if equals < 0 {
				break
			}
			at += equals + 1
			key := at - 1 - len(metaTTCLID)
			if key < 0 || !strings.EqualFold(text[key:at-1], metaTTCLID) {
				continue
			}
			if key > 0 && strings.IndexByte("?&#;/!", text[key-1]) < 0 {
				continue // end of a longer name
			}
			value := text[at:]
			if end := strings.IndexAny(value, "&#;? \"'<>\\"); end >= 0 {
				value = value[:end]
			}
			switch value = unescape(value); {
			case value == "":
			case isPlaceholder(value):
				reason = DropPlaceholder
			case cleanClickID(value) == "":
				reason = DropInvalid
			case b.foundIn(value):
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
