package purchase

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MatchKeys is what TikTok may use to find the buyer. Personal data is SHA-256 hex, lower case; the rest
// is public or a technical identifier. An empty field is unknown and is never sent.
type MatchKeys struct {
	Email      string `json:"email,omitempty"`       // SHA-256 of the normalised address
	Phone      string `json:"phone,omitempty"`       // SHA-256 of the number in E.164
	ExternalID string `json:"external_id,omitempty"` // SHA-256 of our profile id
	TTCLID     string `json:"ttclid,omitempty"`      // TikTok's click id
	TTP        string `json:"ttp,omitempty"`         // TikTok's first-party cookie
	IP         string `json:"ip,omitempty"`          // the buyer's, v4 or v6
	UserAgent  string `json:"user_agent,omitempty"`  // the buyer's
	PageURL    string `json:"page_url,omitempty"`    // where the checkout began
	Referrer   string `json:"referrer,omitempty"`    // where the buyer came from
	FirstName  string `json:"first_name,omitempty"`  // SHA-256 of the name's first word
	LastName   string `json:"last_name,omitempty"`   // SHA-256 of its other words
	Zip        string `json:"zip_code,omitempty"`    // SHA-256 of the postal code
	City       string `json:"city,omitempty"`        // plain, as TikTok wants it: lower-case letters alone
	State      string `json:"state,omitempty"`       // the same
	Country    string `json:"country,omitempty"`     // the same: two letters
	Locale     string `json:"locale,omitempty"`      // the checkout's language, such as pt-BR
}

// The metadata keys of a checkout session that carry the buyer's side. The webhook's own address and
// user agent are Stripe's and never used.
const (
	metaTTCLID    = "ttclid"
	metaTTP       = "ttp"
	metaIP        = "client_ip"
	metaUserAgent = "user_agent"
	metaPageURL   = "page_url"
	metaReferrer  = "referrer"
	metaClicked   = "ttclid_at" // when the ad was clicked, Unix seconds

	metaContentID   = "content_id"
	metaContentIDs  = "content_ids"
	metaContentName = "content_name"
	metaCategory    = "content_category"
	metaBrand       = "brand"
	metaPrice       = "price"
	metaQuantity    = "quantity"
	metaLimited     = "limited_data_use"
)

// Limits in characters. Stripe keeps 500 of a metadata value; a hash has 64.
const (
	maxValue     = 500
	maxUserAgent = 1024
	maxName      = 200
	maxZip       = 64
)

// Dropped is a match key that was there and could not be used.
type Dropped struct {
	Key    string // as TikTok calls it
	Reason DropReason
}

// DropReason says why a match key was dropped; also a metric's label.
type DropReason string

// The reasons.
const (
	DropInvalid     DropReason = "invalid"     // not of the key's form
	DropTooLong     DropReason = "too_long"    // longer than anything of the kind
	DropWrongType   DropReason = "wrong_type"  // a value of the metadata that is no text
	DropPersonal    DropReason = "personal"    // it names the buyer in plain text
	DropPlaceholder DropReason = "placeholder" // it only looks like a value: "undefined", "__CLICKID__"
	DropNotPublic   DropReason = "not_public"  // an address that no buyer can have: private, loopback, shared
)

// DropReasons lists them.
func DropReasons() []DropReason {
	return []DropReason{DropInvalid, DropTooLong, DropWrongType, DropPersonal, DropPlaceholder, DropNotPublic}
}

// DropKeys lists what may be dropped.
func DropKeys() []string {
	return []string{
		"phone", "ttclid", "ttp", "ip", "user_agent", "page_url", "referrer",
		"zip_code", "city", "state", "country", "name", "locale",
		"content_id", "content_ids", "content_name", "content_category", "brand", "price", "quantity",
	}
}

// gatherer collects the keys of one checkout and notes what it drops.
type gatherer struct {
	buyer
	c       *Checkout
	dropped []Dropped
}

// take returns the value that clean makes of raw, or "". A value that is longer than limit characters, a
// placeholder or unusable is noted as dropped.
func (g *gatherer) take(
	key, raw string, limit int, empty func(string) bool, clean func(string) string,
) string {
	switch raw = strings.TrimSpace(raw); {
	case raw == "":
		return ""
	case len(raw) > limit && utf8.RuneCountInString(raw) > limit:
		return g.drop(key, DropTooLong)
	}
	raw = tidy(raw)
	if empty(raw) {
		return g.drop(key, DropPlaceholder)
	}
	if value := clean(raw); value != "" {
		return value
	}
	return g.drop(key, DropInvalid)
}

// plain is take for what is sent as it is and therefore must not name the buyer.
func (g *gatherer) plain(key, raw string, limit int, clean func(string) string) string {
	return g.impersonal(key, g.take(key, raw, limit, placeholder, clean))
}

func (g *gatherer) impersonal(key, value string) string {
	if value != "" && g.in(value) {
		return g.drop(key, DropPersonal)
	}
	return value
}

// meta is a value of the checkout's metadata, without quotes around it.
func (g *gatherer) meta(key, name string) string {
	if g.c.NotText[name] {
		g.drop(key, DropWrongType)
	}
	value := g.c.Metadata[name]
	if len(value) > 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
		value = value[1 : len(value)-1]
	}
	return value
}

func (g *gatherer) drop(key string, reason DropReason) string {
	g.dropped = append(g.dropped, Dropped{key, reason})
	return ""
}

// page is a web address without what names the buyer.
func (g *gatherer) page(key, name string) string {
	personal := false
	value := g.take(key, g.meta(key, name), maxURL, placeholder, func(raw string) (clean string) {
		clean, personal = g.cleanURL(raw)
		return clean
	})
	if personal {
		g.drop(key, DropPersonal)
	}
	return value
}

// clickID returns the first usable click id: of the metadata, of the page's address, of the referrer's where
// both have one host or one is below the other, of a Payment Link's reference.
func (g *gatherer) clickID(page, referrer string) string {
	if id := g.plain("ttclid", g.meta("ttclid", metaTTCLID), maxValue, cleanClickID); id != "" {
		return id
	}
	sources := []string{metaPageURL}
	if related(page, referrer) {
		sources = append(sources, metaReferrer)
	}
	for _, source := range sources {
		id, reason := g.clickIDIn(g.c.Metadata[source])
		if id != "" {
			return id
		}
		if reason != "" {
			g.drop("ttclid", reason)
		}
	}
	id := ClickIDOfReference(g.c.Reference)
	if id != "" && placeholder(id) {
		return g.drop("ttclid", DropPlaceholder)
	}
	return g.impersonal("ttclid", id)
}

// related reports whether two clean addresses belong to one site.
func related(page, referrer string) bool {
	a, okA := parseWeb(page)
	b, okB := parseWeb(referrer)
	if !okA || !okB {
		return false
	}
	_, hostA, _ := strings.Cut(a.origin, "://")
	_, hostB, _ := strings.Cut(b.origin, "://")
	return hostA == hostB || strings.HasSuffix(hostA, "."+hostB) || strings.HasSuffix(hostB, "."+hostA)
}

// NewMatchKeys collects the match keys of a checkout. Each is checked on its own, and an unusable one is
// dropped alone, with its reason. email is the normalised address, "" for none. ExternalID stays empty: the
// ledger knows the profile.
func NewMatchKeys(email string, c *Checkout) (keys MatchKeys, dropped []Dropped) {
	// A shop may have put the buyer's own data anywhere.
	g := &gatherer{buyer: newBuyer(email, c), c: c}
	keys = MatchKeys{
		Email:     HashEmail(email),
		Phone:     g.take("phone", c.Phone, maxName, placeholder, HashPhone),
		TTP:       g.plain("ttp", g.meta("ttp", metaTTP), maxValue, cleanClickID),
		IP:        g.ip(),
		UserAgent: g.plain("user_agent", g.meta("user_agent", metaUserAgent), maxUserAgent, cleanText),
		PageURL:   g.page("page_url", metaPageURL),
		Referrer:  g.page("referrer", metaReferrer),
		Zip:       g.take("zip_code", c.Address.PostalCode, maxZip, placeholder, HashZip),
		City:      g.place("city", c.Address.City),
		State:     g.place("state", c.Address.State),
		Country:   g.take("country", c.Address.Country, maxName, placeholder, cleanCountry),
		Locale:    g.locale(),
	}
	keys.TTCLID = g.clickID(keys.PageURL, keys.Referrer)
	keys.FirstName, keys.LastName = g.names()
	return keys, g.dropped
}

// ip is the buyer's address.
func (g *gatherer) ip() string {
	raw := g.take("ip", g.meta("ip", metaIP), maxValue, placeholder, cleanText)
	if raw == "" {
		return ""
	}
	ip, reason := cleanIP(raw)
	if ip == "" {
		return g.drop("ip", reason)
	}
	return ip
}

// place is a city or a state.
func (g *gatherer) place(key, raw string) string {
	empty := func(place string) bool { return placeholderPlace(place, g.c.Address.Country) }
	return g.impersonal(key, g.take(key, raw, maxName, empty, cleanPlace))
}

// locale is the checkout's language, "" where the browser chose it.
func (g *gatherer) locale() string {
	if strings.EqualFold(g.c.Locale, "auto") {
		return ""
	}
	return g.take("locale", g.c.Locale, maxName, placeholder, cleanLocale)
}

// cleanLocale is a language with an optional script and region (RFC 5646), in the usual case: "pt-BR",
// "zh-Hant-TW", "es-419".
func cleanLocale(raw string) string {
	parts := strings.Split(strings.ReplaceAll(raw, "_", "-"), "-")
	if len(parts) > 3 {
		return ""
	}
	for i, part := range parts {
		letters := strings.ToLower(part)
		alphabetic := isASCII(part) && only(unicode.IsLetter, part) == letters
		switch n := len(part); {
		case i == 0 && alphabetic && (n == 2 || n == 3):
			parts[i] = letters
		case i == 1 && alphabetic && n == 4:
			parts[i] = strings.ToUpper(letters[:1]) + letters[1:]
		case i > 0 && i == len(parts)-1 && (alphabetic && n == 2 || n == 3 && strings.Trim(part,
			"0123456789") == ""):
			parts[i] = strings.ToUpper(part)
		default:
			return ""
		}
	}
	return strings.Join(parts, "-")
}

// names hashes the buyer's name: its first word, and the others.
func (g *gatherer) names() (first, last string) {
	name := g.take("name", g.c.Name, maxName, placeholderName, cleanName)
	first, last, _ = strings.Cut(name, " ")
	return hash(first), hash(last)
}

// cleanName is a name in lower case, one blank between its words; "" for what is none.
func cleanName(raw string) string {
	if !printable(raw) || strings.ContainsRune(raw, '@') || strings.IndexFunc(raw, unicode.IsLetter) < 0 {
		return ""
	}
	return strings.Join(strings.Fields(strings.ToLower(raw)), " ")
}

// cleanPlace is a city or a state as TikTok takes it: lower-case letters alone.
func cleanPlace(raw string) string {
	if !printable(raw) || strings.ContainsRune(raw, '@') {
		return ""
	}
	return only(unicode.IsLetter, raw)
}

// cleanCountry is a country's code of two letters, in lower case.
func cleanCountry(raw string) string {
	if len(raw) != 2 || only(unicode.IsLetter, raw) != strings.ToLower(raw) {
		return ""
	}
	return strings.ToLower(raw)
}

// HashZip returns the SHA-256 hex of a postal code without blanks and dashes, in lower case, or "" when it is
// unusable. A hash is passed on in lower case.
func HashZip(raw string) string {
	s := strings.ToLower(strings.TrimSpace(raw))
	if hexHash(s) {
		return s
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.Is(unicode.Pd, r) {
			return -1
		}
		return halfWidth(r)
	}, s)
	if !consists(s, 12, "") {
		return ""
	}
	return hash(s)
}

// referencePrefix marks a client_reference_id that carries a click id: a merchant's own references have
// another form.
const referencePrefix = "ttclid-"

// ClickIDOfReference reads the click id that a Payment Link carries in its client_reference_id, "" where it
// carries none. Stripe takes letters, digits, '-' and '_' there, at most 200, so that '_' is written as "__"
// and '.' as "_d".
func ClickIDOfReference(reference string) string {
	escaped, ours := strings.CutPrefix(reference, referencePrefix)
	if !ours || len(reference) > 200 {
		return ""
	}
	var id strings.Builder
	for i := 0; i < len(escaped); i++ {
		switch {
		case escaped[i] != '_':
			id.WriteByte(escaped[i])
		case strings.HasPrefix(escaped[i:], "__"):
			id.WriteByte('_')
			i++
		case strings.HasPrefix(escaped[i:], "_d"):
			id.WriteByte('.')
			i++
		default:
			return ""
		}
	}
	return cleanClickID(id.String())
}

// hexHash reports whether a value is a SHA-256 hash in hex already.
func hexHash(s string) bool {
	if len(s) != hex.EncodedLen(sha256.Size) {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// IsHash reports whether a value is a SHA-256 hash in lower-case hex already.
func IsHash(s string) bool { return hexHash(s) && s == strings.ToLower(s) }

// HashExternalID returns the SHA-256 hex of an id of ours, trimmed. A hash is passed on; "" stays "".
func HashExternalID(raw string) string { return hash(strings.TrimSpace(raw)) }

// hash never makes the hash of the empty string: it would match every buyer without the key.
func hash(s string) string {
	switch {
	case s == "":
		return ""
	case hexHash(s):
		return strings.ToLower(s)
	}
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// cleanClickID is a click id or a cookie of TikTok's: letters, digits and the signs that an address leaves
// unescaped.
func cleanClickID(raw string) string {
	if s := strings.TrimSpace(unescape(raw)); consists(s, maxValue, "._~-") {
		return s
	}
	return ""
}

// cleanText is a text without control characters.
func cleanText(raw string) string {
	if !printable(raw) {
		return ""
	}
	return raw
}

// MatchKeyKinds is how many kinds of match keys are counted.
const MatchKeyKinds = 9

// MatchKeyNames names them, in the order of Mask's bits.
func MatchKeyNames() [MatchKeyKinds]string {
	return [MatchKeyKinds]string{
		"E-mail", "Phone", "ttclid", "ttp", "IP", "User agent", "Page", "Name", "Address",
	}
}

// KeyNames returns the names of the match keys in a mask.
func KeyNames(mask int16) (names []string) {
	for bit, name := range MatchKeyNames() {
		if mask>>bit&1 != 0 {
			names = append(names, name)
		}
	}
	return names
}

// LateClick is the bit beside Mask's that marks a click id older than CLICK_WINDOW at the purchase.
const LateClick int16 = 1 << MatchKeyKinds

// Mask returns which of the counted keys are there: bit 0 the e-mail, then phone, ttclid, ttp, IP, user agent,
// page, name, and an address finer than a country.
func (k *MatchKeys) Mask() int16 {
	mask := int16(0)
	for bit, value := range [MatchKeyKinds]string{
		k.Email, k.Phone, k.TTCLID, k.TTP, k.IP, k.UserAgent, k.PageURL, k.FirstName, k.Zip + k.City,
	} {
		if value != "" {
			mask |= 1 << bit
		}
	}
	return mask
}
