//go:build ignore

// Creates a Checkout Session with the match keys of its purchase. Go 1.22 or newer, no packages.
//
//	STRIPE_SECRET_KEY=sk_… STRIPE_PRICE=price_… PORT=4242 go run checkout.go
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// clientIP returns the buyer's address. Each proxy appends its client's address to X-Forwarded-For. Anything to
// the left of your proxies' entries may be forged. PROXIES is the number of your own proxies.
func clientIP(r *http.Request) string {
	ip, _, _ := net.SplitHostPort(r.RemoteAddr)
	seen := append(strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ","), ip)
	proxies, _ := strconv.Atoi(os.Getenv("PROXIES"))
	if at := len(seen) - 1 - proxies; at >= 0 {
		return strings.TrimSpace(seen[at])
	}
	return ""
}

// metadata returns what purchase-relay reads. Without consent it holds the refusal only.
func metadata(r *http.Request) map[string]string {
	kept := func(name string) string {
		if c, err := r.Cookie(name); err == nil {
			return c.Value
		}
		return ""
	}
	if kept("consent") != "yes" {
		return map[string]string{"consent": "no"}
	}
	return map[string]string{
		"consent": "yes",
		"ttclid":  kept("ttclid"), "ttclid_at": kept("ttclid_at"), // docs/snippets/keep-click.js
		"ttp":       kept("_ttp"), // TikTok's own cookie
		"client_ip": clientIP(r), "user_agent": r.UserAgent(), "page_url": r.Referer(),
	}
}

func createSession(r *http.Request) (string, error) {
	shop := cmp.Or(os.Getenv("SHOP_URL"), "https://shop.example")
	form := url.Values{
		"mode":                    {"subscription"},
		"line_items[0][price]":    {os.Getenv("STRIPE_PRICE")},
		"line_items[0][quantity]": {"1"},

		"success_url": {shop + "/thanks"}, "cancel_url": {shop + "/"},
		"phone_number_collection[enabled]": {"true"}, "billing_address_collection": {"required"}, // more match keys
	}
	for key, value := range metadata(r) {
		if value != "" && len(value) <= 500 { // Stripe rejects the whole session for a longer one
			form.Set("metadata["+key+"]", value)
		}
	}
	api := cmp.Or(os.Getenv("STRIPE_API_URL"), "https://api.stripe.com")
	body := strings.NewReader(form.Encode())
	call, err := http.NewRequestWithContext(r.Context(), http.MethodPost, api+"/v1/checkout/sessions", body)
	if err != nil {
		return "", err
	}
	call.Header.Set("Authorization", "Bearer "+os.Getenv("STRIPE_SECRET_KEY"))
	call.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	answer, err := http.DefaultClient.Do(call)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var session struct {
		URL   string
		Error struct{ Message string }
	}
	if err := json.NewDecoder(answer.Body).Decode(&session); err != nil {
		return "", err
	}
	if session.URL == "" {
		return "", fmt.Errorf("Stripe: %s %s", answer.Status, session.Error.Message)
	}
	return session.URL, nil
}

func main() {
	http.HandleFunc("POST /checkout", func(w http.ResponseWriter, r *http.Request) {
		url, err := createSession(r)
		if err != nil {
			log.Print(err)
			http.Error(w, "The checkout cannot be opened; try again.", http.StatusBadGateway)
			return
		}
		http.Redirect(w, r, url, http.StatusSeeOther)
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "4242"), nil))
}
