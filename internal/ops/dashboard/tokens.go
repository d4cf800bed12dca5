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

// minTokenLength is the minimum length of a named token, in bytes.
const minTokenLength = 16

// Token grants access to the dashboard and the API. Changes and exports are logged with its name.
type Token struct {
	Name   string
	Secret secret.String
}

// ParseTokens parses ADMIN_TOKEN and ADMIN_TOKENS: name:token, separated by commas or newlines. Its errors
// contain names, but no tokens.
func ParseTokens(admin, named secret.String) (list []Token, err error) {
	if admin != "" {
		list = append(list, Token{adminName, admin})
	}
	entries := 0
	separator := func(r rune) bool { return r == ',' || r == '\n' || r == '\r' }
	for entry := range strings.FieldsFuncSeq(named.Reveal(), separator) {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		entries++
		name, token, ok := strings.Cut(entry, ":")
		name, token = strings.TrimSpace(name), strings.TrimSpace(token)
		if !ok || !validTokenName(name) { // not repeated: the entry may be a token
			return nil, fmt.Errorf("entry %d is not name:token, "+
				"with a name of up to 40 letters, digits, '_', '-' and '.'", entries)
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
		return fmt.Errorf("the token of %s has characters that a header cannot carry", name)
	}
	for _, other := range list {
		switch {
		case other.Name == name && name == adminName:
			return errors.New("the name admin is reserved for ADMIN_TOKEN")
		case other.Name == name:
			return fmt.Errorf("duplicate name %s", name)
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

// name returns the name of a token; "": unknown. It compares sums of equal length with all tokens, so that
// its time depends on neither.
func (k keyring) name(token string) (found string) {
	sum := sha256.Sum256([]byte(token))
	for i := range k {
		if subtle.ConstantTimeCompare(sum[:], k[i].sum[:]) == 1 {
			found = k[i].name
		}
	}
	return found
}
