package purchase

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/mail"
	"net/netip"
	"net/url"
	"regexp"
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
	metaContentName = "content_name"
	metaQuantity    = "quantity"
	metaLimited     = "limited_data_use"
)

// What is longer is none of its kind. Stripe keeps 500 characters of a metadata value; a hash has 64.
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
	DropInvalid   DropReason = "invalid"    // not of the key's form
	DropTooLong   DropReason = "too_long"   // longer than anything of the kind
	DropWrongType DropReason = "wrong_type" // a value of the metadata that is no text
	DropPersonal  DropReason = "personal"   // it names the buyer in plain text
)

// DropReasons lists them.
func DropReasons() []DropReason {
	return []DropReason{DropInvalid, DropTooLong, DropWrongType, DropPersonal}
}

// DropKeys lists what may be dropped.
func DropKeys() []string {
	return []string{
		"phone", "ttclid", "ttp", "ip", "user_agent", "page_url", "referrer", "zip_code", "city", "state", "country", "name",
		"content_id", "content_name", "quantity",
	}
}

// gatherer collects the keys of one checkout and notes what it drops.
type gatherer struct {
	buyer
	c       *Checkout
	dropped []Dropped
}

// take returns a value that clean made usable; what was there and is gone, or longer than most bytes, is noted.
func (g *gatherer) take(key, raw string, most int, clean func(string) string) string {
	switch raw = strings.TrimSpace(raw); {
	case raw == "":
		return ""
	case len(raw) > most:
		return g.drop(key, DropTooLong)
	}
	if value := clean(raw); value != "" {
		return value
	}
	return g.drop(key, DropInvalid)
}

// text is take for what stays plain and therefore must not name the buyer.
func (g *gatherer) text(key, raw string, most int, clean func(string) string) string {
	value := g.take(key, raw, most, clean)
	if value != "" && g.outOf(value) == "" {
		return g.drop(key, DropPersonal)
	}
	return value
}

// meta is a value of the checkout's metadata.
func (g *gatherer) meta(key, name string) string {
	if g.c.NotText[name] {
		g.drop(key, DropWrongType)
	}
	return g.c.Metadata[name]
}

func (g *gatherer) drop(key string, reason DropReason) string {
	g.dropped = append(g.dropped, Dropped{key, reason})
	return ""
}

// page is an address without what names the buyer.
func (g *gatherer) page(key, name string) string {
	value := g.take(key, g.meta(key, name), maxURL, cleanURL)
	if safe := g.outOfURL(value); safe != value {
		g.drop(key, DropPersonal)
		return safe
	}
	return value
}

// NewMatchKeys collects the match keys of a checkout. Each is checked on its own, and an unusable one is dropped alone, with its
// reason. email is the normalised address, "" for none. ExternalID stays empty: the ledger knows the profile.
func NewMatchKeys(email string, c *Checkout) (keys MatchKeys, dropped []Dropped) {
	// A shop may have put the buyer's own data anywhere, in any spelling.
	g := &gatherer{buyer: newBuyer(email, c), c: c}
	keys = MatchKeys{
		Email:     HashEmail(email),
		Phone:     g.take("phone", c.Phone, maxName, HashPhone),
		TTCLID:    g.text("ttclid", g.meta("ttclid", metaTTCLID), maxValue, cleanClickID),
		TTP:       g.text("ttp", g.meta("ttp", metaTTP), maxValue, cleanClickID),
		IP:        g.take("ip", g.meta("ip", metaIP), maxName, cleanIP),
		UserAgent: g.text("user_agent", g.meta("user_agent", metaUserAgent), maxUserAgent, cleanUserAgent),
		PageURL:   g.page("page_url", metaPageURL),
		Referrer:  g.page("referrer", metaReferrer),
		Zip:       g.take("zip_code", c.Address.PostalCode, maxZip, HashZip),
		City:      g.text("city", c.Address.City, maxName, cleanPlace),
		State:     g.text("state", c.Address.State, maxName, cleanPlace),
		Country:   g.take("country", c.Address.Country, maxName, cleanCountry),
	}
	keys.FirstName, keys.LastName = g.names()
	if keys.TTCLID == "" {
		keys.TTCLID = g.outOf(clickIDOf(c.Metadata[metaPageURL]))
	}
	if keys.TTCLID == "" {
		keys.TTCLID = g.outOf(ClickIDOfReference(c.Reference))
	}
	return keys, g.dropped
}

// names hashes the buyer's name: its first word, and the others.
func (g *gatherer) names() (first, last string) {
	name := g.take("name", g.c.Name, maxName, cleanName)
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

// HashZip returns the SHA-256 hex of a postal code without blanks and dashes, in lower case, or "" when it is unusable. A hash is
// passed on in lower case.
func HashZip(raw string) string {
	s := strings.ToLower(strings.TrimSpace(raw))
	if hexHash(s) {
		return s
	}
	s = strings.NewReplacer(" ", "", "-", "", "\u00a0", "").Replace(s)
	if !consists(s, 12, "") {
		return ""
	}
	return hash(s)
}

// referencePrefix marks a client_reference_id that carries a click id: a merchant's own references have another form.
const referencePrefix = "ttclid-"

// ClickIDOfReference reads the click id that a Payment Link carries in its client_reference_id, "" where it carries none. Stripe
// takes letters, digits, '-' and '_' there, at most 200, so that '_' is written as "__" and '.' as "_d".
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

// NormaliseEmail returns an e-mail address trimmed and in lower case, or "" when it is no usable address:
// RFC 5322's addr-spec without quoting or display name, a dot in the domain, at most 254 bytes (RFC 5321),
// valid UTF-8 without control characters.
func NormaliseEmail(raw string) string {
	s := strings.TrimSpace(raw)
	if s == "" || len(s) > 254 || !printable(s) {
		return ""
	}
	s = strings.ToLower(s)
	addr, err := mail.ParseAddress(s)
	if err != nil || addr.Address != s || addr.Name != "" {
		return ""
	}
	if _, domain, ok := strings.Cut(s, "@"); !ok || !strings.Contains(strings.Trim(domain, "."), ".") {
		return ""
	}
	return s
}

// hexHash says whether a value is a SHA-256 hash in hex already.
func hexHash(s string) bool {
	if len(s) != hex.EncodedLen(sha256.Size) {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// IsHash says whether a value is a SHA-256 hash in lower-case hex already.
func IsHash(s string) bool { return hexHash(s) && s == strings.ToLower(s) }

// HashEmail returns the SHA-256 hex of an e-mail address, trimmed and in lower case; a value that is a hash
// already is passed on in lower case; "" stays "". Source: TikTok's Events API, advanced matching.
func HashEmail(raw string) string { return hash(strings.ToLower(strings.TrimSpace(raw))) }

// HashExternalID returns the SHA-256 hex of an id of ours, trimmed. A hash is passed on; "" stays "".
func HashExternalID(raw string) string { return hash(strings.TrimSpace(raw)) }

// HashPhone returns the SHA-256 hex of a phone number in E.164, or "" when the number is unusable. A hash is
// passed on in lower case.
func HashPhone(raw string) string {
	if s := strings.TrimSpace(raw); hexHash(s) {
		return strings.ToLower(s)
	}
	return hash(NormalisePhone(raw))
}

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

// NormalisePhone returns a phone number as E.164 with '+', or "": 8 to 15 digits, the first not 0. Blanks,
// dots, dashes, slashes and brackets between the digits are dropped; anything else makes it unusable.
func NormalisePhone(raw string) string {
	var digits strings.Builder
	for _, c := range strings.TrimSpace(raw) {
		switch {
		case c >= '0' && c <= '9':
			digits.WriteRune(c)
		case c == '+' && digits.Len() == 0:
		case strings.ContainsRune(" .-/()\u00a0", c):
		default:
			return ""
		}
	}
	d := digits.String()
	if len(d) < 8 || len(d) > 15 || d[0] == '0' {
		return ""
	}
	return "+" + d
}

func cleanClickID(raw string) string {
	// A click id from a page URL is bounded by the same as one from the metadata.
	if s := strings.TrimSpace(raw); consists(s, maxValue, "._~-") {
		return s
	}
	return ""
}

// clickIDOf takes the click id from a landing page's own query, where TikTok puts it.
func clickIDOf(page string) string {
	u, err := url.Parse(strings.TrimSpace(page))
	if err != nil {
		return ""
	}
	return cleanClickID(u.Query().Get("ttclid"))
}

// cleanIP accepts an address that parses as one (a country code does not), without a zone.
func cleanIP(raw string) string {
	addr, err := netip.ParseAddr(strings.TrimSpace(raw))
	if err != nil || addr.Zone() != "" {
		return ""
	}
	return addr.Unmap().String()
}

// looksLikeEmail finds an address in running text, plain or with its '@' escaped.
var looksLikeEmail = regexp.MustCompile(`(?i)[^\s@/?&=:;,]+(@|%40)[^\s@/?&=:;,]+\.[a-z]{2,}`)

// namesEmail looks for the cheap part first.
func namesEmail(text string) bool {
	return (strings.Contains(text, "@") || strings.Contains(text, "%40")) && looksLikeEmail.MatchString(text)
}

func cleanUserAgent(raw string) string {
	s := strings.TrimSpace(raw)
	if len(s) > maxUserAgent || !printable(s) || namesEmail(s) {
		return ""
	}
	return s
}

// personalParam says whether a query parameter is one that shops put personal data into; no plain address, phone or name
// may enter the queue, whatever page the buyer came from.
func personalParam(key string) bool {
	key = strings.ToLower(strings.ToUpper(key)) // ſ is an s, too
	for _, word := range []string{"email", "e-mail", "phone", "mobile", "name", "address", "street", "token", "password", "secret"} {
		if strings.Contains(key, word) {
			return true
		}
	}
	return key == "tel"
}

// maxURL bounds a URL, in bytes: what browsers and servers commonly take.
const maxURL = 2048

// cleanURL returns an absolute http(s) URL without user, fragment and the query parameters that hold
// personal data, or "". A path that spells an e-mail address is cut off.
func cleanURL(raw string) string {
	s := strings.TrimSpace(raw)
	if s == "" || len(s) > maxURL || !printable(s) {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || namesEmail(u.Host) {
		return ""
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	if namesEmail(u.Path) {
		u.Path, u.RawPath = "/", ""
	}
	u.RawQuery = cleanQuery(u.RawQuery)
	u.ForceQuery = false
	if s = u.String(); len(s) > maxURL { // escaped by now
		return ""
	}
	return s
}

// cleanQuery drops the personal parameters and leaves the rest as it was written, in its order.
func cleanQuery(query string) string {
	kept := make([]string, 0, strings.Count(query, "&")+1)
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		plainKey, keyErr := url.QueryUnescape(key)
		plainValue, valueErr := url.QueryUnescape(value)
		if keyErr != nil || valueErr != nil || !printable(plainKey) || !printable(plainValue) ||
			personalParam(plainKey) || namesEmail(plainKey) || namesEmail(plainValue) {
			continue
		}
		if pair != "" {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}

// printable says whether a text is valid UTF-8 without control characters (NUL and line ends included).
func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
}

func printableBytes(s []byte) bool {
	return utf8.Valid(s) && bytes.IndexFunc(s, unicode.IsControl) < 0
}

// MatchKeyKinds is how many kinds of match keys are counted.
const MatchKeyKinds = 9

// MatchKeyNames names them, in the order of Mask's bits.
func MatchKeyNames() [MatchKeyKinds]string {
	return [MatchKeyKinds]string{"E-mail", "Phone", "ttclid", "ttp", "IP", "User agent", "Page", "Name", "Address"}
}

// LateClick is the bit beside Mask's that marks a click id older than a week at the purchase.
const LateClick int16 = 1 << MatchKeyKinds

// Mask tells which of the counted keys are there: bit 0 the e-mail, then phone, ttclid, ttp, IP, user agent, page, name, and an
// address finer than a country.
func (k *MatchKeys) Mask() int16 {
	mask := int16(0)
	for bit, value := range [MatchKeyKinds]string{k.Email, k.Phone, k.TTCLID, k.TTP, k.IP, k.UserAgent, k.PageURL, k.FirstName, k.Zip + k.City} {
		if value != "" {
			mask |= 1 << bit
		}
	}
	return mask
}
