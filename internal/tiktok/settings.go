package tiktok

import (
	"errors"
	"regexp"
	"strings"
	"unicode"

	"purchase-relay/internal/secret"
)

// Valid forms of the settings. They accept whatever TikTok might issue and a request can contain, including
// the short values of tests. ops/doctor checks the stricter forms of Events Manager.
var (
	headerValue    = regexp.MustCompile(`^[\x21-\x7e]+$`)
	usableToken    = regexp.MustCompile(`^[\x21\x23-\x26\x28-\x7e]{1,1000}$`) // no quotes
	usablePixel    = regexp.MustCompile(`^[A-Za-z0-9]{1,64}$`)
	usableTestCode = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

// Trim removes the invisible characters that copying adds: blanks, line ends, byte order marks.
func Trim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
	})
}

// CheckToken returns an error, without the token, if no request can contain it.
func CheckToken(token secret.String) error {
	if !usableToken.MatchString(token.Reveal()) {
		return errors.New("must be printable ASCII without blanks and quotes")
	}
	return nil
}

// CheckPixel returns an error if id is no pixel id.
func CheckPixel(id string) error {
	if !usablePixel.MatchString(id) {
		return errors.New("must be letters and digits")
	}
	return nil
}

// CheckTestCode returns an error if code is no test event code.
func CheckTestCode(code string) error {
	if !usableTestCode.MatchString(code) {
		return errors.New("must be letters, digits, _ and -")
	}
	return nil
}
