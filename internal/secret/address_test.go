package secret_test

import (
	"testing"

	"purchase-relay/internal/secret"
)

func TestInClear(t *testing.T) {
	t.Parallel()
	for rawURL, want := range map[string]bool{
		"https://business-api.tiktok.com/x": false,
		"HTTPS://stripe.example":            false,
		"http://127.0.0.1:8083/x":           false,
		"http://127.8.8.8/x":                false,
		"http://localhost:8083/x":           false,
		"http://[::1]:8083/x":               false,
		"http://[::ffff:127.0.0.1]/x":       false,
		"http://tiktok-simulator:8083/x":    true,
		"HTTP://hooks.example/x":            true,
		"http://10.0.0.1/x":                 true,
		"http://127.0.0.1.evil.example/x":   true,
		"http://localhost.evil.example/x":   true,
		"http://localhost@evil.example/x":   true,
		"http://0.0.0.0/x":                  true,
		"http://2130706433/x":               true,
	} {
		if got := secret.InClear(rawURL); got != want {
			t.Errorf("InClear(%q) = %t, want %t", rawURL, got, want)
		}
	}
}
