package tiktok

import (
	"fmt"

	"purchase-relay/internal/purchase"
)

// Explain says in words what an answer means and what an operator can do about it.
func Explain(a purchase.Answer) string {
	code := "no answer"
	if a.Code != nil {
		code = fmt.Sprintf("code %d", *a.Code)
	}
	said := code
	if a.Message != "" {
		said += fmt.Sprintf(", %q", a.Message)
	}
	if a.RequestID != "" {
		said += ", request_id " + a.RequestID
	}
	switch a.Class {
	case purchase.ClassDelivered:
		return "TikTok accepted the event (" + said + "). Accepted is not attributed: see it in Events Manager, under Test events."
	case purchase.ClassAccess:
		return "TikTok refuses access (" + said + "). Check the access token, its permission for this pixel (event:write) and TIKTOK_API_URL. " +
			"A running worker stops and waits in this case, and loses nothing."
	case purchase.ClassBlocked:
		return "A page in place of TikTok's answer refuses the request (" + said + "). Check TIKTOK_API_URL, the access token, and the proxy or firewall on the way. " +
			"A running worker finds out whether one event or every event is refused, and stops and waits if it is every event."
	case purchase.ClassRate:
		return "TikTok wants fewer requests (" + said + "). Wait some minutes, or lower TIKTOK_MAX_RPS; a running worker slows down by itself."
	case purchase.ClassRefused:
		return "TikTok refuses the event for its content (" + said + "). Check TIKTOK_EVENT_NAME, the pixel's id and TIKTOK_PAYLOAD: real purchases would end as dead letters."
	default:
		return "TikTok gives no usable answer (" + said + "). Check the way out of this host (DNS, proxy, firewall) and TIKTOK_API_URL; a running worker tries again."
	}
}
