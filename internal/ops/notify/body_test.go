package notify

import (
	"strings"
	"testing"

	"purchase-relay/internal/secret"
)

// Slack and Google Chat get text alone. In Slack's, foreign text cannot mention channels.
func TestWebhook_Body(t *testing.T) {
	t.Parallel()
	m := Message{Reason: "paused", State: StateFiring, Count: 1, What: "<!all> & co", Remedy: "Fix it."}
	for url, want := range map[secret.String]string{
		"https://hooks.slack.com/x":     `{"text":"purchase-relay: \u0026lt;!all\u0026gt; \u0026amp; co\nFix it."}`,
		"https://chat.googleapis.com/x": `{"text":"purchase-relay: \u003c!all\u003e \u0026 co\nFix it."}`,
		"https://mattermost.test/x":     `"ids":[],`,
	} {
		if got, err := NewWebhook(url).body(m); err != nil || !strings.Contains(string(got), want) {
			t.Errorf("body for %s = %s, %v, want %s", url.Reveal(), got, err, want)
		}
	}
}
