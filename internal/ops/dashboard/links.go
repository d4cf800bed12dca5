package dashboard

import (
	"net/url"
	"strings"

	"purchase-relay/internal/purchase"
)

// stripeSections are the pages of Stripe's dashboard by the prefix of their objects' ids.
func stripeSections() map[string]string {
	return map[string]string{
		"cus": "customers", "sub": "subscriptions", "pi": "payments", "in": "invoices", "evt": "events",
	}
}

// stripeLink returns the page of an object in Stripe's dashboard; "": there is none. An object of a connected
// account (account, "": the endpoint's own) is found below the account.
func stripeLink(id string, livemode bool, account string) string {
	prefix, _, _ := strings.Cut(id, "_")
	section := stripeSections()[prefix]
	if section == "" || !purchase.ValidID(id) {
		return ""
	}
	link := "https://dashboard.stripe.com/"
	switch {
	case account == "":
	case strings.HasPrefix(account, "acct_") && purchase.ValidID(account):
		link += account + "/"
	default: // unknown
		return ""
	}
	if !livemode {
		link += "test/"
	}
	return link + section + "/" + id
}

// pixelLink returns a pixel's page in TikTok's Events Manager. TikTok does not document the address.
func pixelLink(pixel string) string {
	return "https://ads.tiktok.com/i18n/events_manager/datasource/pixel/detail/" + url.PathEscape(pixel)
}
