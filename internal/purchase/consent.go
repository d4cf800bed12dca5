package purchase

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Consent is the gate in front of everything that is sent. A shop writes the buyer's answer into the checkout's metadata.
type Consent struct {
	Key      string // of the metadata; "": nobody is asked
	Required bool   // without an answer there is no consent
}

// Given says whether a purchase may be sent. It fails closed: whatever is there and does not say yes, says no.
func (g Consent) Given(c *Checkout) bool {
	if g.Key == "" {
		return true
	}
	if c.NotText[g.Key] {
		return false
	}
	answer := strings.TrimSpace(c.Metadata[g.Key])
	if answer == "" {
		return !g.Required
	}
	return says(answer, "true", "yes", "y", "1", "on", "granted", "given", "accept", "accepted", "allow", "allowed", "opt_in", "opt-in")
}

// Limited says whether TikTok may use the buyer's data in part only. It fails closed as well: whatever is there and does not say no.
func Limited(c *Checkout) bool {
	if c.NotText[metaLimited] {
		return true
	}
	answer := strings.TrimSpace(c.Metadata[metaLimited])
	return answer != "" && !says(answer, "false", "no", "n", "0", "off")
}

func says(answer string, words ...string) bool {
	return slices.Contains(words, strings.ToLower(answer))
}

// Domains are those of a merchant's own staff: what they buy is no sale.
type Domains []string

// ParseDomains reads a list of domains, each with or without a leading '@'.
func ParseDomains(list []string) (domains Domains, err error) {
	var wrong []error
	for _, raw := range list {
		d := strings.ToLower(strings.TrimPrefix(strings.TrimSpace(raw), "@"))
		switch {
		case d == "":
		case !consists(d, 253, ".-") || !strings.Contains(strings.Trim(d, "."), "."):
			wrong = append(wrong, fmt.Errorf("%.100q is no domain such as example.com", raw))
		default:
			domains = append(domains, d)
		}
	}
	return domains, errors.Join(wrong...)
}

// Hold says whether a normalised e-mail address belongs to one of the domains or to a domain below one.
func (d Domains) Hold(email string) bool {
	domain := email[strings.LastIndexByte(email, '@')+1:]
	return slices.ContainsFunc(d, func(own string) bool { return domain == own || strings.HasSuffix(domain, "."+own) })
}
