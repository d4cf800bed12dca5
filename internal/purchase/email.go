package purchase

import (
	"strings"
	"unicode"
)

// maxEmail is the limit of an address in bytes (the path of RFC 5321 without angle brackets).
const maxEmail = 254

// NormaliseEmail returns the canonical form of an e-mail address, or "" if it is invalid. The ledger stores
// this form, and TikTok gets its hash. docs/decisions/0008 has the rules.
func NormaliseEmail(raw string) string {
	s := foldEmail(raw)
	local, domain, _ := strings.Cut(s, "@")
	if len(s) > maxEmail || !validLocalPart(local) || !validDomain(domain) {
		return ""
	}
	return s
}

// foldEmail returns an address in normal form C and lower case, without invisible characters, blanks and a
// final dot. Full-width digits and signs become ASCII; no letter does: U+212A as 'k' or U+0130 as 'i' would
// be another person's address.
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
	// A lower-case letter may compose with the next rune although its upper case does not.
	return strings.TrimSuffix(nfc(strings.Map(lowerRune, s)), ".")
}

func lowerRune(r rune) rune {
	if l := unicode.ToLower(r); r <= unicode.MaxASCII || l > unicode.MaxASCII {
		return l
	}
	return r
}

// validLocalPart accepts consecutive dots and a dot at either end, which mobile carriers allow, but no quoted
// form.
func validLocalPart(local string) bool {
	return local != "" && !strings.ContainsFunc(local, func(r rune) bool {
		return unicode.IsControl(r) || strings.ContainsRune(`"(),:;<>[\]`, r)
	})
}

// validDomain accepts a domain with a dot and letters of every alphabet.
func validDomain(domain string) bool {
	if !strings.Contains(domain, ".") {
		return false
	}
	label := 0 // characters since the last dot
	for _, r := range domain {
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

// HashEmail returns the SHA-256 hex of an address's canonical form. A hash is returned in lower case; ""
// returns "". Source: TikTok's Events API, advanced matching.
func HashEmail(raw string) string { return hash(foldEmail(raw)) }
