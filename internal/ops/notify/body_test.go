package notify

import (
	"strings"
	"testing"

	"purchase-relay/internal/secret"
)

// Slack and Google Chat get the text alone; in Slack's a foreign text mentions nobody.
func TestBodies(t *testing.T) {
	t.Parallel()
	m := Message{Reason: "paused", State: StateFiring, Count: 1, What: "(<!channel> & co)", Remedy: "Mend it."}
	for url, want := range map[secret.String]string{
		"https://hooks.slack.com/services/T/B/x":  `{"text":"purchase-relay: (\u0026lt;!channel\u0026gt; \u0026amp; co)\nMend it."}`,
		"https://chat.googleapis.com/v1/spaces/x": `{"text":"purchase-relay: (\u003c!channel\u003e \u0026 co)\nMend it."}`,
	} {
		if got, err := NewWebhook(url).body(m); err != nil || string(got) != want {
			t.Errorf("%s: %s, %v", url.Reveal(), got, err)
		}
	}
	if got, err := NewWebhook("https://mattermost.example/hooks/x").body(m); err != nil || !strings.Contains(string(got), `"ids":[],`) {
		t.Errorf("%s, %v", got, err)
	}
}
