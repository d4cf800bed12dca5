package notify

import (
	"context"
	"strings"
	"time"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
)

const (
	causeTimeout = 5 * time.Second // less than pollTimeout
	maxCause     = 300             // characters
)

// silence is what Stripe reported last about missing webhooks.
type silence struct {
	asked        time.Time // zero: never
	since        time.Time
	what, remedy string
}

// explain adds to a problem of missing webhooks what ask reports. It asks once per silence, and again after
// repeatInterval at the earliest. A failure is only named in the text.
func (s *silence) explain(
	ctx context.Context, ask func(context.Context, time.Time) (string, string, error), list []report.Problem,
	now time.Time,
) {
	for i := range list {
		p := &list[i]
		if p.Kind != guide.ProblemSilence || ask == nil {
			continue
		}
		since := p.Latest // the last webhook
		if s.asked.IsZero() || now.Sub(s.asked) >= repeatInterval {
			ctx, cancel := context.WithTimeout(ctx, causeTimeout)
			what, remedy, err := ask(ctx, since)
			cancel()
			if err != nil {
				what, remedy = "Stripe did not report the endpoint: "+err.Error()+".", ""
			}
			s.asked, s.since, s.what, s.remedy = now, since, logsafe.Text(what, maxCause), remedy
		}
		if !s.since.Equal(since) { // an earlier silence's
			continue
		}
		p.What += ". " + strings.TrimSuffix(s.what, ".")
		if s.remedy != "" {
			p.Remedy = s.remedy
		}
	}
}
