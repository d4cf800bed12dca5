package purchase

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Rules are the settings for events.
type Rules struct {
	Modes        map[string]bool // counted checkout modes
	Accounts     Accounts        // counted connected accounts
	Consent      Consent         // setting for the buyer's consent
	Staff        Domains         // e-mail domains of the merchant's staff
	TrialEvent   string          // event name for trials; "": trials are skipped
	FirstPayment bool            // count the first paid invoice after a trial
	Value        ValueBasis      // part of a payment that is its value
	ClickWindow  time.Duration   // age at which a click is late; 0: never
}

// Types returns the counted event types. The caller must not modify the elements.
func (r Rules) Types() []string {
	if r.FirstPayment {
		return allEventTypes[:]
	}
	return slices.Clip(allEventTypes[:len(allEventTypes)-1]) // without TypeInvoicePaid
}

const (
	modeSubscription = "subscription"
	modePayment      = "payment"
)

// ParseModes reads CHECKOUT_MODES: subscription, payment or both.
func ParseModes(list []string) (map[string]bool, error) {
	modes := make(map[string]bool, len(list))
	for _, mode := range list {
		mode = strings.TrimSpace(mode)
		if mode != modeSubscription && mode != modePayment {
			return nil, fmt.Errorf("checkout mode %q is not subscription or payment", mode)
		}
		modes[mode] = true
	}
	if len(modes) == 0 {
		return nil, errors.New("at least one checkout mode is required")
	}
	return modes, nil
}

// Accounts is a set of connected accounts.
type Accounts struct {
	all bool
	ids map[string]bool
}

// ParseAccounts reads CONNECT_ACCOUNTS: ids of the form acct_…, or all.
func ParseAccounts(list []string) (Accounts, error) {
	a := Accounts{ids: make(map[string]bool, len(list))}
	for _, id := range list {
		id = strings.TrimSpace(id)
		switch rest, ok := strings.CutPrefix(id, "acct_"); {
		case id == "":
		case id == "all":
			a.all = true
		case !ok || !ValidID(rest):
			return Accounts{}, fmt.Errorf("account %.100q is not acct_… or all", id)
		default:
			a.ids[id] = true
		}
	}
	if a.all && len(a.ids) > 0 {
		return Accounts{}, errors.New("all must be the only entry")
	}
	return a, nil
}

// Contains reports whether an account is in the set.
func (a Accounts) Contains(id string) bool { return a.all || a.ids[id] }

// Domains is a list of e-mail domains.
type Domains []string

// ParseDomains reads SKIP_EMAIL_DOMAINS: domains with or without a leading '@' or dot.
func ParseDomains(list []string) (domains Domains, err error) {
	var errs []error
	for _, raw := range list {
		raw = strings.TrimSpace(raw)
		d := strings.Trim(nfc(strings.ToLower(strings.TrimPrefix(raw, "@"))), ".")
		switch {
		case raw == "":
		case len(d) > maxEmail || !validDomain(d):
			errs = append(errs, fmt.Errorf("%.100q is not a domain", raw))
		default:
			domains = append(domains, d)
		}
	}
	return domains, errors.Join(errs...)
}

// Contains reports whether a normalised e-mail address belongs to one of the domains or a subdomain.
func (d Domains) Contains(email string) bool {
	domain := email[strings.LastIndexByte(email, '@')+1:]
	return slices.ContainsFunc(d, func(own string) bool {
		return domain == own || strings.HasSuffix(domain, "."+own)
	})
}

// Consent is the setting for the buyer's consent in the checkout's metadata.
type Consent struct {
	Key      string // metadata key; "": consent is not checked
	Required bool   // a missing value means no
}

// Given reports whether the buyer consented. It fails closed: any value other than yes means no.
func (k Consent) Given(c *Checkout) bool {
	if k.Key == "" {
		return true
	}
	if c.NonStrings[k.Key] {
		return false
	}
	answer := strings.TrimSpace(c.Metadata[k.Key])
	if answer == "" {
		return !k.Required
	}
	return isOneOf(answer, "true", "yes", "y", "1", "on", "granted", "given", "accept", "accepted", "allow",
		"allowed", "opt_in", "opt-in")
}

// LimitsDataUse reports whether a checkout restricts TikTok's use of the buyer's data. It fails closed: any
// value other than no means yes.
func LimitsDataUse(c *Checkout) bool {
	if c.NonStrings[metaLimited] {
		return true
	}
	answer := strings.TrimSpace(c.Metadata[metaLimited])
	return answer != "" && !isOneOf(answer, "false", "no", "n", "0", "off")
}

// isOneOf reports whether value is one of words in any case. It accepts ASCII only: Unicode's cases equate
// U+0130 with i and U+017F with s, and an unusual value must not mean yes.
func isOneOf(value string, words ...string) bool {
	return isASCII(value) && slices.Contains(words, strings.ToLower(value))
}
