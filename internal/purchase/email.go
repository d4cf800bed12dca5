package purchase

import (
	"strings"
	"unicode"
)

// maxEmail bounds an address in bytes (RFC 5321's path, without its angle brackets).
const maxEmail = 254

// NormaliseEmail returns the identity of an e-mail address, or "" where it is not one. All spellings of one
// address have one identity: it is what the ledger stores, looks up and forgets, and what TikTok gets the
// hash of. docs/decisions/0008 has the rules.
func NormaliseEmail(raw string) string {
	s := foldEmail(raw)
	local, host, _ := strings.Cut(s, "@")
	if len(s) > maxEmail || !usableLocal(local) || !usableHost(host) {
		return ""
	}
	return s
}

// foldEmail returns an address in normal form C and lower case, without invisible characters, blanks and the
// root's dot, with the digits and signs of full-width forms as ASCII. No letter outside ASCII becomes one
// inside it: U+212A would be a 'k' and U+0130 an 'i', another person's address.
func foldEmail(raw string) string {
	if isASCII(raw) {
		if strings.ContainsAny(raw, " \t\n\v\f\r") {
			raw = strings.Join(strings.Fields(raw), "")
		}
		return strings.TrimSuffix(strings.ToLower(raw), ".")
	}
	s := nfc(strings.Map(func(r rune) rune {
		if invisible(r) || unicode.IsSpace(r) {
			return -1
		}
		return halfWidth(r)
	}, raw))
	// A letter in lower case may compose with what follows it although the one in upper case does not.
	return strings.TrimSuffix(nfc(strings.Map(lower, s)), ".")
}

func lower(r rune) rune {
	if l := unicode.ToLower(r); r <= unicode.MaxASCII || l > unicode.MaxASCII {
		return l
	}
	return r
}

// usableLocal accepts what mail systems accept before the '@', two dots in a row and a dot at either end
// included: carriers gave out such addresses. Quoted forms are not accepted.
func usableLocal(local string) bool {
	return local != "" && !strings.ContainsFunc(local, func(r rune) bool {
		return unicode.IsControl(r) || strings.ContainsRune(`"(),:;<>[\]`, r)
	})
}

// usableHost accepts a host with a dot, letters of all alphabets included.
func usableHost(host string) bool {
	if !strings.Contains(host, ".") {
		return false
	}
	label := 0 // characters since the last dot
	for _, r := range host {
		switch {
		case r == '.' && label == 0:
			return false
		case r == '.':
			label = 0
		case r == '-', r == '_', unicode.In(r, unicode.L, unicode.M, unicode.N):
			label++
		default:
			return false
		}
	}
	return label > 0
}

// HashEmail returns the SHA-256 hex of an e-mail address's identity; a value that is a hash already is passed
// on in lower case; "" stays "". Source: TikTok's Events API, advanced matching.
func HashEmail(raw string) string { return hash(foldEmail(raw)) }
