package purchase

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MatchKeys identify the buyer to TikTok. Personal data is SHA-256 in lower-case hex; the rest is public or a
// technical identifier. An empty field is unknown and is not sent.
type MatchKeys struct {
	Email      string `json:"email,omitempty"`       // SHA-256 of the normalised address
	Phone      string `json:"phone,omitempty"`       // SHA-256 of the number in E.164
	ExternalID string `json:"external_id,omitempty"` // SHA-256 of the profile id
	TTCLID     string `json:"ttclid,omitempty"`      // TikTok's click id
	TTP        string `json:"ttp,omitempty"`         // TikTok's first-party cookie
	IP         string `json:"ip,omitempty"`          // the buyer's, v4 or v6
	UserAgent  string `json:"user_agent,omitempty"`  // the buyer's
	PageURL    string `json:"page_url,omitempty"`    // page of the checkout
	Referrer   string `json:"referrer,omitempty"`    // page before it
	FirstName  string `json:"first_name,omitempty"`  // SHA-256 of the name's first word
	LastName   string `json:"last_name,omitempty"`   // SHA-256 of the other words
	Zip        string `json:"zip_code,omitempty"`    // SHA-256 of the postal code
	City       string `json:"city,omitempty"`        // plain text, as TikTok requires: lower-case letters only
	State      string `json:"state,omitempty"`       // like City
	Country    string `json:"country,omitempty"`     // plain text: two lower-case letters
	Locale     string `json:"locale,omitempty"`      // the checkout's language, for example pt-BR
}

// The metadata keys of a checkout session. The webhook's own IP address and user agent are Stripe's.
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

// Dropped is an unusable match key or content field.
type Dropped struct {
	Key    string // TikTok's name
	Reason DropReason
}

// DropReason is why a value was dropped; also a metric's label.
type DropReason string

// The reasons.
const (
	DropInvalid     DropReason = "invalid"     // malformed
	DropTooLong     DropReason = "too_long"    // over the key's limit
	DropWrongType   DropReason = "wrong_type"  // a metadata value that is not a string
	DropPersonal    DropReason = "personal"    // contains the buyer's personal data
	DropPlaceholder DropReason = "placeholder" // not a value: "undefined", "__CLICKID__"
	DropNotPublic   DropReason = "not_public"  // a private, loopback or shared IP address
)

// DropReasons returns every reason.
func DropReasons() []DropReason {
	return []DropReason{DropInvalid, DropTooLong, DropWrongType, DropPersonal, DropPlaceholder, DropNotPublic}
}

// DropKeys returns every key that may be dropped.
func DropKeys() []string {
	return []string{
		"phone", "ttclid", "ttp", "ip", "user_agent", "page_url", "referrer",
		"zip_code", "city", "state", "country", "name", "locale",
		"content_id", "content_ids", "content_name", "content_category", "brand", "price", "quantity",
	}
}

// collector reads the keys of one checkout and records the dropped ones.
type collector struct {
	buyer
	checkout *Checkout
	dropped  []Dropped
}

// read returns clean(raw), or "". It drops a value of more than max characters, a placeholder, and one that
// clean rejects with "".
func (k *collector) read(
	key, raw string, max int, placeholder func(string) bool, clean func(string) string,
) string {
	switch raw = strings.TrimSpace(raw); {
	case raw == "":
		return ""
	case len(raw) > max && utf8.RuneCountInString(raw) > max:
		return k.drop(key, DropTooLong)
	}
	raw = normalise(raw)
	if placeholder(raw) {
		return k.drop(key, DropPlaceholder)
	}
	if value := clean(raw); value != "" {
		return value
	}
	return k.drop(key, DropInvalid)
}

// readPlain is read for a value that is sent unhashed: it also drops personal data.
func (k *collector) readPlain(key, raw string, max int, clean func(string) string) string {
	return k.rejectPersonal(key, k.read(key, raw, max, isPlaceholder, clean))
}

func (k *collector) rejectPersonal(key, value string) string {
	if value != "" && k.foundIn(value) {
		return k.drop(key, DropPersonal)
	}
	return value
}

// metadata returns a value of the checkout's metadata without surrounding quotes.
func (k *collector) metadata(key, name string) string {
	if k.checkout.NonStrings[name] {
		k.drop(key, DropWrongType)
	}
	value := k.checkout.Metadata[name]
	if len(value) > 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
		value = value[1 : len(value)-1]
	}
	return value
}

func (k *collector) drop(key string, reason DropReason) string {
	k.dropped = append(k.dropped, Dropped{key, reason})
	return ""
}

// readURL reads a URL and removes personal data from it.
func (k *collector) readURL(key, name string) string {
	// An unexpanded variable in the path or the query, such as {{campaign.name}}, leaves the URL usable.
	placeholder := func(raw string) bool {
		if !isPlaceholder(raw) {
			return false
		}
		u, ok := parseURL(unwrapURL(raw))
		return !ok || u.path+u.query == ""
	}
	personal := false
	value := k.read(key, k.metadata(key, name), maxURL, placeholder, func(raw string) (clean string) {
		clean, personal = k.cleanURL(raw)
		return clean
	})
	if personal {
		k.drop(key, DropPersonal)
	}
	return value
}

// readClickID returns the first usable click id, from the metadata, the page, the referrer (of the same
// site), or a Payment Link's reference.
func (k *collector) readClickID(page, referrer string) string {
	if id := k.readPlain("ttclid", k.metadata("ttclid", metaTTCLID), maxValue, cleanClickID); id != "" {
		return id
	}
	sources := []string{metaPageURL}
	if sameSite(page, referrer) {
		sources = append(sources, metaReferrer)
	}
	for _, source := range sources {
		id, reason := k.clickIDInURL(k.checkout.Metadata[source])
		if id != "" {
			return id
		}
		if reason != "" {
			k.drop("ttclid", reason)
		}
	}
	id := ClickIDFromReference(k.checkout.Reference)
	if id != "" && isPlaceholder(id) {
		return k.drop("ttclid", DropPlaceholder)
	}
	return k.rejectPersonal("ttclid", id)
}

// sameSite reports whether two clean URLs have the same host, or one host is a subdomain of the other.
func sameSite(page, referrer string) bool {
	a, okA := parseURL(page)
	b, okB := parseURL(referrer)
	if !okA || !okB {
		return false
	}
	_, hostA, _ := strings.Cut(a.origin, "://")
	_, hostB, _ := strings.Cut(b.origin, "://")
	return hostA == hostB || strings.HasSuffix(hostA, "."+hostB) || strings.HasSuffix(hostB, "."+hostA)
}

// NewMatchKeys reads the match keys of a checkout. An unusable one is dropped without the others. email is
// the normalised address; "": none. ExternalID remains empty: the ledger sets it with the profile.
func NewMatchKeys(email string, c *Checkout) (keys MatchKeys, dropped []Dropped) {
	k := &collector{buyer: newBuyer(email, c), checkout: c}
	keys = MatchKeys{
		Email:     HashEmail(email),
		Phone:     k.read("phone", c.Phone, maxName, isPlaceholder, HashPhone),
		TTP:       k.readPlain("ttp", k.metadata("ttp", metaTTP), maxValue, cleanClickID),
		IP:        k.readIP(),
		UserAgent: k.readPlain("user_agent", k.metadata("user_agent", metaUserAgent), maxUserAgent, cleanText),
		PageURL:   k.readURL("page_url", metaPageURL),
		Referrer:  k.readURL("referrer", metaReferrer),
		Zip:       k.read("zip_code", c.Address.PostalCode, maxZip, isPlaceholder, HashZip),
		City:      k.readPlace("city", c.Address.City),
		State:     k.readPlace("state", c.Address.State),
		Country:   k.read("country", c.Address.Country, maxName, isPlaceholder, cleanCountry),
		Locale:    k.readLocale(),
	}
	keys.TTCLID = k.readClickID(keys.PageURL, keys.Referrer)
	keys.FirstName, keys.LastName = k.readNames()
	return keys, k.dropped
}

// readIP reads the buyer's IP address.
func (k *collector) readIP() string {
	raw := k.read("ip", k.metadata("ip", metaIP), maxValue, isPlaceholder, cleanText)
	if raw == "" {
		return ""
	}
	ip, reason := cleanIP(raw)
	if ip == "" {
		return k.drop("ip", reason)
	}
	return ip
}

// readPlace reads a city or a state.
func (k *collector) readPlace(key, raw string) string {
	placeholder := func(place string) bool { return isPlaceholderPlace(place, k.checkout.Address.Country) }
	return k.rejectPersonal(key, k.read(key, raw, maxName, placeholder, cleanPlace))
}

// readLocale reads the checkout's language; "": the browser's.
func (k *collector) readLocale() string {
	if strings.EqualFold(k.checkout.Locale, "auto") {
		return ""
	}
	return k.read("locale", k.checkout.Locale, maxName, isPlaceholder, cleanLocale)
}

// cleanLocale returns a language tag of RFC 5646 with an optional script and region in canonical case:
// "pt-BR", "zh-Hant-TW", "es-419".
func cleanLocale(raw string) string {
	parts := strings.Split(strings.ReplaceAll(raw, "_", "-"), "-")
	if len(parts) > 3 {
		return ""
	}
	for i, part := range parts {
		lower := strings.ToLower(part)
		alphabetic := isASCII(part) && onlyLetters(part) == lower
		numeric := strings.Trim(part, asciiDigits) == ""
		switch n := len(part); {
		case i == 0 && alphabetic && (n == 2 || n == 3):
			parts[i] = lower
		case i == 1 && alphabetic && n == 4:
			parts[i] = strings.ToUpper(lower[:1]) + lower[1:]
		case i > 0 && i == len(parts)-1 && (alphabetic && n == 2 || numeric && n == 3):
			parts[i] = strings.ToUpper(part)
		default:
			return ""
		}
	}
	return strings.Join(parts, "-")
}

// readNames returns the hashes of the name's first word and of its other words.
func (k *collector) readNames() (first, last string) {
	name := k.read("name", k.checkout.Name, maxName, isPlaceholderName, cleanName)
	first, last, _ = strings.Cut(name, " ")
	return hash(first), hash(last)
}

// cleanName returns a name in lower case with single blanks.
func cleanName(raw string) string {
	if !printable(raw) || strings.ContainsRune(raw, '@') || strings.IndexFunc(raw, unicode.IsLetter) < 0 {
		return ""
	}
	return strings.Join(strings.Fields(strings.ToLower(raw)), " ")
}

// cleanPlace returns the lower-case letters of a city or a state.
func cleanPlace(raw string) string {
	if !printable(raw) || strings.ContainsRune(raw, '@') {
		return ""
	}
	return onlyLetters(raw)
}

// cleanCountry returns a two-letter country code in lower case.
func cleanCountry(raw string) string {
	if len(raw) != 2 || onlyLetters(raw) != strings.ToLower(raw) {
		return ""
	}
	return strings.ToLower(raw)
}

// HashZip returns the SHA-256 hex of a lower-case postal code without blanks and dashes, or "" if it is
// invalid. A hash is returned in lower case.
func HashZip(raw string) string {
	s := strings.ToLower(strings.TrimSpace(raw))
	if isHexHash(s) {
		return s
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.Is(unicode.Pd, r) {
			return -1
		}
		return halfWidth(r)
	}, s)
	if !alphanumeric(s, 12, "") {
		return ""
	}
	return hash(s)
}

// referencePrefix distinguishes a click id from the merchant's own references.
const referencePrefix = "ttclid-"

// ClickIDFromReference decodes the click id in a Payment Link's client_reference_id; "": none. Stripe accepts
// at most 200 letters, digits, '-' and '_', so '_' is encoded as "__" and '.' as "_d".
func ClickIDFromReference(reference string) string {
	escaped, found := strings.CutPrefix(reference, referencePrefix)
	if !found || len(reference) > 200 {
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

// isHexHash reports whether s is a SHA-256 hash in hex.
func isHexHash(s string) bool {
	if len(s) != hex.EncodedLen(sha256.Size) {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// IsHash reports whether s is a SHA-256 hash in lower-case hex.
func IsHash(s string) bool { return isHexHash(s) && s == strings.ToLower(s) }

// HashExternalID returns the SHA-256 hex of a trimmed id. A hash is returned unchanged; "" returns "".
func HashExternalID(raw string) string { return hash(strings.TrimSpace(raw)) }

// hash returns "" for "": the hash of the empty string would match every buyer without the key.
func hash(s string) string {
	switch {
	case s == "":
		return ""
	case isHexHash(s):
		return strings.ToLower(s)
	}
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// cleanClickID returns one of TikTok's click ids or cookies: letters, digits and the characters that URLs
// leave unescaped.
func cleanClickID(raw string) string {
	if s := strings.TrimSpace(unescape(raw)); alphanumeric(s, maxValue, "._~-") {
		return s
	}
	return ""
}

// cleanText rejects control characters.
func cleanText(raw string) string {
	if !printable(raw) {
		return ""
	}
	return raw
}

// MatchKeyKinds is the number of counted kinds of match keys.
const MatchKeyKinds = 9

// MatchKeyNames returns the names of the kinds, in the order of Mask's bits.
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

// LateClickMask is the bit after Mask's: the click is older than CLICK_WINDOW.
const LateClickMask int16 = 1 << MatchKeyKinds

// Mask returns the present kinds of keys: bit 0 is the e-mail address, then phone, ttclid, ttp, IP, user
// agent, page, name, and address (a postal code or a city).
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
