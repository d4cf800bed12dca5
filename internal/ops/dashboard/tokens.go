package dashboard

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"

	"purchase-relay/internal/secret"
)

// adminName is the name of the token that ADMIN_TOKEN holds.
const adminName = "admin"

// minTokenLength is what a named token has at least, in bytes.
const minTokenLength = 16

// Token lets its holder use the dashboard and the API. What is done with it is logged under its name.
type Token struct {
	Name   string
	Secret secret.String
}

// ParseTokens reads ADMIN_TOKEN and ADMIN_TOKENS: name:token, one after the other, apart by commas or lines.
// Its errors hold names and no tokens.
func ParseTokens(admin, named secret.String) (list []Token, err error) {
	if admin != "" {
		list = append(list, Token{adminName, admin})
	}
	entries := 0
	for entry := range strings.FieldsFuncSeq(named.Reveal(), func(r rune) bool { return r == ',' || r == '\n' || r == '\r' }) {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		entries++
		name, token, ok := strings.Cut(entry, ":")
		name, token = strings.TrimSpace(name), strings.TrimSpace(token)
		if !ok || !validTokenName(name) { // what stands there may be a token
			return nil, fmt.Errorf("entry %d is not name:token, the name of at most 40 letters, digits, '_', '-' and '.'", entries)
		}
		if err := checkToken(name, token, list); err != nil {
			return nil, err
		}
		list = append(list, Token{name, secret.String(token)})
	}
	return list, nil
}

func checkToken(name, token string, list []Token) error {
	switch {
	case len(token) < minTokenLength:
		return fmt.Errorf("the token of %s has fewer than %d characters", name, minTokenLength)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("the token of %s holds characters that a header cannot carry", name)
	}
	for _, other := range list {
		switch {
		case other.Name == name && name == adminName:
			return errors.New("the name admin is that of ADMIN_TOKEN")
		case other.Name == name:
			return fmt.Errorf("the name %s is there twice", name)
		case other.Secret.Reveal() == token:
			return fmt.Errorf("%s and %s have the same token", other.Name, name)
		}
	}
	return nil
}

func validTokenName(name string) bool {
	return name != "" && len(name) <= 40 &&
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") == ""
}

// keyring compares tokens in constant time.
type keyring []struct {
	name string
	sum  [sha256.Size]byte
}

func newKeyring(tokens []Token) keyring {
	ring := make(keyring, len(tokens))
	for i, t := range tokens {
		ring[i].name, ring[i].sum = t.Name, sha256.Sum256([]byte(t.Secret.Reveal()))
	}
	return ring
}

// name returns the name of a token, "" where it is none. It compares with all of them, and sums of equal
// length: the time it takes depends on neither.
func (k keyring) name(given string) (found string) {
	sum := sha256.Sum256([]byte(given))
	for i := range k {
		if subtle.ConstantTimeCompare(sum[:], k[i].sum[:]) == 1 {
			found = k[i].name
		}
	}
	return found
}
