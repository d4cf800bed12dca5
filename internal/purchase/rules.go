package purchase

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Rules are the operator's settings for events.
type Rules struct {
	Modes        map[string]bool // the checkout modes that count
	Accounts     Accounts        // the connected accounts that count beside the endpoint's own
	Consent      Consent         // required before anything is sent
	Staff        Domains         // the merchant's own: their purchases are no sales
	TrialEvent   string          // name of the event sent for a trial; "": trials are skipped
	FirstPayment bool            // the first invoice with money after a trial is a purchase
	Value        ValueBasis      // the part of a payment that is its value
	ClickWindow  time.Duration   // age at the purchase after which a click id is late; 0: none is
}

// Types lists the types of events that count under these rules. The list must not be changed.
func (r Rules) Types() []string {
	if r.FirstPayment {
		return eventTypes[:]
	}
	return eventTypes[:len(eventTypes)-1]
}

const (
	modeSubscription = "subscription"
	modePayment      = "payment"
)

// ParseModes reads CHECKOUT_MODES: subscription, payment or both.
func ParseModes(list []string) (map[string]bool, error) {
	modes := make(map[string]bool, len(list))
	for _, mode := range list {
		if mode != modeSubscription && mode != modePayment {
			return nil, fmt.Errorf("checkout mode %q is neither subscription nor payment", mode)
		}
		modes[mode] = true
	}
	if len(modes) == 0 {
		return nil, errors.New("no checkout mode: name subscription, payment or both")
	}
	return modes, nil
}

// Accounts are the connected accounts whose sales count.
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
			return Accounts{}, fmt.Errorf("%.100q is neither an account acct_… nor all", id)
		default:
			a.ids[id] = true
		}
	}
	if a.all && len(a.ids) > 0 {
		return Accounts{}, errors.New("all must be the only entry")
	}
	return a, nil
}

// Contain reports whether an account's sales count.
func (a Accounts) Contain(id string) bool { return a.all || a.ids[id] }

// Domains are the e-mail domains of a merchant's own staff.
type Domains []string

// ParseDomains reads SKIP_EMAIL_DOMAINS: domains with or without a leading '@'.
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

// Contain reports whether a normalised e-mail address belongs to one of the domains or to a subdomain.
func (d Domains) Contain(email string) bool {
	domain := email[strings.LastIndexByte(email, '@')+1:]
	return slices.ContainsFunc(d, func(own string) bool {
		return domain == own || strings.HasSuffix(domain, "."+own)
	})
}

// Consent is the setting for the buyer's consent, which a shop writes into the checkout's metadata.
type Consent struct {
	Key      string // of the metadata; "": consent is not required
	Required bool   // a missing answer is no consent
}

// Given reports whether the buyer consented. It fails closed: any answer other than yes is no.
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
	return isOneOf(answer, "true", "yes", "y", "1", "on", "granted", "given", "accept", "accepted", "allow",
		"allowed", "opt_in", "opt-in")
}

// Limited reports whether TikTok may use the buyer's data only in part. It fails closed: any answer other
// than no is yes.
func Limited(c *Checkout) bool {
	if c.NotText[metaLimited] {
		return true
	}
	answer := strings.TrimSpace(c.Metadata[metaLimited])
	return answer != "" && !isOneOf(answer, "false", "no", "n", "0", "off")
}

// isOneOf ignores case. strings.EqualFold would take U+017F for an s: an odd answer must not become a yes.
func isOneOf(answer string, words ...string) bool {
	return slices.Contains(words, strings.ToLower(answer))
}
