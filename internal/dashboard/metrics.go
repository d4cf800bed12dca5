package dashboard

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"purchase-relay/internal/purchase"
)

// Outbox is what the metrics read of the ledger; pending counts the purchases that wait for the relay, oldest is
// since when the first does (zero: none does).
type Outbox interface {
	OutboxState(ctx context.Context) (pending int, oldest time.Time, err error)
}

// scrapeTimeout bounds the question at each scrape.
const scrapeTimeout = 2 * time.Second

// outboxMetrics asks the ledger at each scrape: the figure is the ledger's, whichever replica answers.
type outboxMetrics struct {
	outbox          Outbox
	now             func() time.Time
	pending, oldest *prometheus.Desc
}

// NewOutboxMetrics returns the collector of the outbox's two gauges; while the ledger is away they are missing.
func NewOutboxMetrics(o Outbox, now func() time.Time) prometheus.Collector {
	return &outboxMetrics{
		outbox: o, now: now,
		pending: prometheus.NewDesc("purchase_relay_outbox_pending", "Purchases that wait for the relay.", nil, nil),
		oldest:  prometheus.NewDesc("purchase_relay_outbox_oldest_age_seconds", "Age of the oldest purchase that waits for the relay.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *outboxMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.pending
	ch <- m.oldest
}

// Collect implements prometheus.Collector.
func (m *outboxMetrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	pending, oldest, err := m.outbox.OutboxState(ctx)
	if err != nil {
		return
	}
	age := 0.0
	if !oldest.IsZero() {
		age = max(0, m.now().Sub(oldest).Seconds())
	}
	ch <- prometheus.MustNewConstMetric(m.pending, prometheus.GaugeValue, float64(pending))
	ch <- prometheus.MustNewConstMetric(m.oldest, prometheus.GaugeValue, age)
}

// purchasesMetrics asks the rollup at each scrape: the figure is the ledger's, and costs the same whatever the ledger's size.
type purchasesMetrics struct {
	figures   Figures
	purchases *prometheus.Desc
}

// NewPurchasesMetrics returns the collector of the gauge of purchases by status; while the ledger is away it is missing.
func NewPurchasesMetrics(f Figures) prometheus.Collector {
	return &purchasesMetrics{figures: f, purchases: prometheus.NewDesc("purchase_relay_purchases", "Purchases on the ledger, by where they stand.", []string{"status"}, nil)}
}

// Describe implements prometheus.Collector.
func (m *purchasesMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.purchases }

// Collect implements prometheus.Collector.
func (m *purchasesMetrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	groups, err := m.figures.Groups(ctx, nil)
	if err != nil {
		return
	}
	counts := make(map[purchase.Status]int)
	for _, g := range groups {
		counts[g.Status] += g.Count
	}
	for _, status := range purchase.Statuses() {
		ch <- prometheus.MustNewConstMetric(m.purchases, prometheus.GaugeValue, float64(counts[status]), string(status))
	}
}
