package tiktok

import (
	"errors"
	"regexp"
	"strings"
	"unicode"

	"purchase-relay/internal/secret"
)

// The usable forms. They take whatever TikTok might issue, and nothing that a request cannot carry: a test's
// or a simulator's settings are short. The stricter forms that Events Manager shows are checked by ops/doctor.
var (
	headerValue    = regexp.MustCompile(`^[\x21-\x7e]+$`)
	usableToken    = regexp.MustCompile(`^[\x21\x23-\x26\x28-\x7e]{1,1000}$`) // no quotes
	usablePixel    = regexp.MustCompile(`^[A-Za-z0-9]{1,64}$`)
	usableTestCode = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

// Trim removes what copying adds around a setting: blanks, line ends, byte order marks and other invisible
// characters.
func Trim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
	})
}

// CheckToken returns why no request could carry a token, without the token; nil if one could.
func CheckToken(token secret.Text) error {
	if !usableToken.MatchString(token.Reveal()) {
		return errors.New("must be printable ASCII without blanks and quotes")
	}
	return nil
}

// CheckPixel returns why a text is no pixel id; nil if it may be one.
func CheckPixel(id string) error {
	if !usablePixel.MatchString(id) {
		return errors.New("must be letters and digits")
	}
	return nil
}

// CheckTestCode returns why a text is no test event code; nil if it may be one.
func CheckTestCode(code string) error {
	if !usableTestCode.MatchString(code) {
		return errors.New("must be letters, digits, _ and -")
	}
	return nil
}
