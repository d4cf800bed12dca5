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
)

// NewMatchKeys collects the match keys of a checkout. Each is checked on its own, and an unusable one is
// dropped alone. email is the normalised address, "" for none. ExternalID stays empty: the ledger knows
// the profile.
func NewMatchKeys(email string, c *Checkout) MatchKeys {
	// A shop may have put the buyer's own data anywhere, in any spelling.
	b := newBuyer(email, c)
	keys := MatchKeys{
		Email:     HashEmail(email),
		Phone:     HashPhone(c.Phone),
		TTCLID:    b.outOf(cleanClickID(c.Metadata[metaTTCLID])),
		TTP:       b.outOf(cleanClickID(c.Metadata[metaTTP])),
		IP:        cleanIP(c.Metadata[metaIP]),
		UserAgent: b.outOf(cleanUserAgent(c.Metadata[metaUserAgent])),
		PageURL:   b.outOfURL(cleanURL(c.Metadata[metaPageURL])),
		Referrer:  b.outOfURL(cleanURL(c.Metadata[metaReferrer])),
	}
	if keys.TTCLID == "" {
		keys.TTCLID = b.outOf(clickIDOf(c.Metadata[metaPageURL]))
	}
	return keys
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
	// Stripe keeps 500 characters of a metadata value; a click id from a page URL is bounded by the same.
	if s := strings.TrimSpace(raw); consists(s, 500, "._~-") {
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
	if len(s) > 1024 || !printable(s) || namesEmail(s) {
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
const MatchKeyKinds = 7

// MatchKeyNames names them, in the order of Mask's bits.
func MatchKeyNames() [MatchKeyKinds]string {
	return [MatchKeyKinds]string{"E-mail", "Phone", "ttclid", "ttp", "IP", "User agent", "Page"}
}

// Mask tells which of the counted keys are there: bit 0 the e-mail, then phone, ttclid, ttp, IP, user agent and page.
func (k *MatchKeys) Mask() int16 {
	mask := int16(0)
	for bit, value := range [MatchKeyKinds]string{k.Email, k.Phone, k.TTCLID, k.TTP, k.IP, k.UserAgent, k.PageURL} {
		if value != "" {
			mask |= 1 << bit
		}
	}
	return mask
}
