package purchase

import (
	"strconv"
	"strings"
)

// Stripe's table of decimals, which differs from ISO 4217: ISK, UGX, HUF and TWD have two (500 = 5 ISK).
// Source: Stripe's documentation of currencies, "zero-decimal" and "three-decimal".
const (
	noDecimals    = " bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf "
	threeDecimals = " bhd jod kwd omr tnd "
)

// Decimals returns the number of decimals of a currency (any case) at Stripe: 0, 2 or 3.
func Decimals(currency string) int {
	c := " " + strings.ToLower(currency) + " "
	switch {
	case strings.Contains(noDecimals, c):
		return 0
	case strings.Contains(threeDecimals, c):
		return 3
	default:
		return 2
	}
}

// Major formats an amount in minor units as a JSON number in major units, with the currency's decimals and
// without rounding: Major(2999, "usd") = "29.99", Major(800, "jpy") = "800".
func Major(minor int64, currency string) string {
	n := Decimals(currency)
	digits := strconv.FormatInt(minor, 10)
	if n == 0 {
		return digits
	}
	sign := ""
	if digits[0] == '-' {
		sign, digits = "-", digits[1:]
	}
	if pad := n + 1 - len(digits); pad > 0 {
		digits = strings.Repeat("0", pad) + digits
	}
	return sign + digits[:len(digits)-n] + "." + digits[len(digits)-n:]
}

// ValueBasis is the part of a payment that is a purchase's value. The zero value is ValueTotal.
type ValueBasis string

// The bases.
const (
	ValueTotal ValueBasis = "total"
	ValueNet   ValueBasis = "net" // total less tax and shipping, as far as known
)

// CheckoutAmount returns a checkout's value in the currency's smallest unit; nil: unknown.
func (b ValueBasis) CheckoutAmount(c *Checkout) *int64 {
	return b.amount(c.AmountTotal, c.Tax, c.Shipping)
}

// InvoiceAmount returns a paid invoice's value in the currency's smallest unit; nil: unknown.
func (b ValueBasis) InvoiceAmount(i *Invoice) *int64 {
	return b.amount(i.AmountPaid, i.Tax, i.Shipping)
}

func (b ValueBasis) amount(total *int64, parts ...*int64) *int64 {
	if total == nil || *total < 0 {
		return nil
	}
	if b != ValueNet {
		return total
	}
	net := *total
	for _, part := range parts {
		if part != nil && *part > 0 {
			net -= min(net, *part) // never below 0
		}
	}
	return &net
}

// Free reports whether a checkout costs nothing: a trial, a full discount or a free order.
func (c *Checkout) Free() bool { return c.AmountTotal != nil && *c.AmountTotal == 0 }

// ValidCurrency reports whether a code has the form of ISO 4217: three ASCII letters.
func ValidCurrency(code string) bool {
	if len(code) != 3 {
		return false
	}
	for _, c := range code {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}
