package purchase

import (
	"strconv"
	"strings"
)

// Stripe's own table of decimals, which is no ISO table: ISK, UGX, HUF and TWD have two decimals here
// (500 = 5 ISK). Source: Stripe's documentation of currencies, "zero-decimal" and "three-decimal".
const (
	noDecimals    = " bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf "
	threeDecimals = " bhd jod kwd omr tnd "
)

// Decimals returns how many decimals Stripe counts for a currency (any case): 0, 2 or 3.
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

// Major writes an amount of minor units as a decimal number in major units, with the currency's own
// number of decimals and without rounding: Major(2999, "usd") = "29.99", Major(800, "jpy") = "800". The
// text is a JSON number.
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

// The parts.
const (
	ValueTotal ValueBasis = "total" // what the buyer paid
	ValueNet   ValueBasis = "net"   // less tax and shipping, as far as Stripe names them
)

// OfCheckout returns a checkout's value in the currency's smallest unit, nil where Stripe named no usable
// total.
func (b ValueBasis) OfCheckout(c *Checkout) *int64 { return b.of(c.AmountTotal, c.Tax, c.Shipping) }

// OfInvoice returns a paid invoice's value in the currency's smallest unit, nil where Stripe named no usable
// amount.
func (b ValueBasis) OfInvoice(i *Invoice) *int64 { return b.of(i.AmountPaid, i.Tax, i.Shipping) }

func (b ValueBasis) of(total *int64, parts ...*int64) *int64 {
	if total == nil || *total < 0 {
		return nil
	}
	if b != ValueNet {
		return total
	}
	net := *total
	for _, part := range parts {
		if part != nil && *part > 0 {
			net -= min(net, *part) // money moved: a sale is never worth less than nothing
		}
	}
	return &net
}

// Free reports whether a checkout moved no money: a trial, a full discount or a free order. Stripe calls some
// of them paid.
func (c *Checkout) Free() bool { return c.AmountTotal != nil && *c.AmountTotal == 0 }

// ValidCurrency says whether a code has ISO 4217's form (three ASCII letters).
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
