package tiktok

import "purchase-relay/internal/purchase"

// Meaning says in words what a code of the ledger (TikTok's own, else an HTTP status) means, and what an operator can do
// about it.
func Meaning(code int) (meaning, remedy string) {
	switch code {
	case 0:
		return "Accepted by TikTok", ""
	case 20001:
		return "Partly accepted: TikTok did not say which event it refused", "Replay it; a second acceptance under the same event_id counts once."
	case 40002:
		return "A field of the event is not valid; the message names it", "Compare the message with the body that was sent. Often: TIKTOK_EVENT_NAME, a currency, the page's address. Then replay."
	case 40050:
		return "TikTok had this event already", ""
	case 40100, 40132, 40016, 61000, 429:
		return "Too many requests", "The worker slows down by itself. If it lasts, lower TIKTOK_MAX_RPS."
	}
	class, known := Classify(200, &code, "")
	if code >= 100 && code < 600 { // an HTTP status: no code of TikTok's is so small, but for 0
		class, known = Classify(code, nil, "")
	}
	switch {
	case !known:
		return "A code that TikTok's documentation does not list", "It is tried again. If it lasts, ask TikTok's support with the request_id."
	case class == purchase.ClassRefused:
		return "TikTok refuses the event for its content", "Compare the message with the body that was sent, mend the setting it names, then replay."
	case class == purchase.ClassAccess:
		return "TikTok refuses access: token, permission, account or address", "Check TIKTOK_ACCESS_TOKEN, its permission for the pixel and TIKTOK_API_URL. Workers go on by themselves."
	case class == purchase.ClassBlocked:
		return "A page in place of TikTok's answer: a firewall or proxy refuses the event, or every event",
			"Compare the event's page address and user agent with the firewall's rules, then replay. If every event is refused, check TIKTOK_API_URL, the proxy and the token."
	case class == purchase.ClassDelivered:
		return "Accepted by TikTok", ""
	default:
		return "TikTok, or a gateway before it, is not well", "The worker tries again by itself. If it lasts, look at TikTok's status page and at this host's way out."
	}
}
