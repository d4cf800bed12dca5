package notify

import (
	"slices"
	"strings"
	"time"

	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
)

// problem is all of one kind in the list of problems.
type problem struct {
	kind     string
	since    time.Time // zero: unknown
	latest   time.Time // when it last got worse; zero: it has not
	count    int       // purchases or workers
	waiting  *int      // purchases; nil: unknown
	ids      []string  // some, the newest first
	what     []string
	remedies []string
	past     bool // its purchases have ended: only a replay ends it
}

const maxIDs = 5

// byKind merges the problems of each kind, such as the codes of refused purchases.
func byKind(list []report.Problem) map[string]*problem {
	kinds := make(map[string]*problem)
	for _, r := range list {
		p := kinds[r.Kind]
		if p == nil {
			p = &problem{kind: r.Kind, past: r.Group != nil}
			kinds[r.Kind] = p
		}
		if r.Since != nil && (p.since.IsZero() || r.Since.Before(p.since)) {
			p.since = *r.Since
		}
		if r.Latest.After(p.latest) {
			p.latest = r.Latest
		}
		if r.Purchases != nil {
			if p.waiting == nil {
				p.waiting = new(0)
			}
			*p.waiting += *r.Purchases
		}
		if r.Group != nil {
			p.count += r.Group.Count
		} else {
			p.count += max(1, len(r.IDs))
		}
		p.ids = append(p.ids, r.IDs...)
		p.ids = p.ids[:min(len(p.ids), maxIDs)]
		p.what = append(p.what, r.What+".")
		if !slices.Contains(p.remedies, r.Remedy) {
			p.remedies = append(p.remedies, r.Remedy)
		}
	}
	return kinds
}

// Message is one notification.
type Message struct {
	Reason    string // the problem's kind
	State     string // firing or resolved
	Since     time.Time
	Count     int
	Purchases *int // that wait for it or need the operator; nil: unknown
	IDs       []string
	What      string
	Remedy    string // "" when resolved
	latest    time.Time
}

// The states of a message.
const (
	StateFiring   = "firing"
	StateResolved = "resolved"
)

func (p *problem) message(state string) Message {
	m := Message{
		Reason: p.kind, State: state, Since: p.since, Count: p.count, Purchases: p.waiting, IDs: p.ids,
		What: strings.Join(p.what, "\n"), Remedy: strings.Join(p.remedies, "\n"), latest: p.latest,
	}
	if state == StateResolved {
		m.What, m.Remedy = guide.Problem(p.kind).Resolved, ""
	}
	return m
}
