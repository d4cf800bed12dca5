package dashboard

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

// Outbox is what the metrics read of the ledger; pending counts the purchases that wait for the relay, oldest
// is since when the first does (zero: none does).
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

// NewOutboxMetrics returns the collector of the outbox's two gauges; while the ledger is away they are
// missing.
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

// purchasesMetrics asks the rollup at each scrape: the figure is the ledger's, and costs the same whatever
// the ledger's size.
type purchasesMetrics struct {
	groups    Groups
	purchases *prometheus.Desc
}

// NewPurchasesMetrics returns the collector of the gauge of purchases by status; while the ledger is away it
// is missing.
func NewPurchasesMetrics(g Groups) prometheus.Collector {
	return &purchasesMetrics{groups: g, purchases: prometheus.NewDesc("purchase_relay_purchases", "Purchases on the ledger, by where they stand.", []string{"status"}, nil)}
}

// Describe implements prometheus.Collector.
func (m *purchasesMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.purchases }

// Collect implements prometheus.Collector.
func (m *purchasesMetrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	groups, err := m.groups.Groups(ctx, nil)
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

// SkippedRows reports the ledger's rows that could not be used. The others of their batch were.
type SkippedRows struct {
	log   *zap.Logger
	now   func() time.Time
	count *prometheus.CounterVec

	mu     sync.Mutex
	logged map[string]time.Time // by operation and row
}

// Each row is logged once per period: the relay meets the same one every half minute.
const (
	skippedEvery = time.Hour
	skippedMax   = 1000 // rows that are remembered
)

// SkippedWhere lists the operations that may leave rows out: the values of the metric's label.
func SkippedWhere() []string {
	return []string{
		"alarm", "entries", "history", "outcomes", "reconcile", "relay", "replay", "rollup",
		"sweeper", "trials",
	}
}

// NewSkippedRows returns the report of rows that could not be used.
func NewSkippedRows(log *zap.Logger, now func() time.Time, reg prometheus.Registerer) *SkippedRows {
	s := &SkippedRows{
		log: log, now: now, logged: make(map[string]time.Time),
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_skipped_rows_total",
			Help: "Rows of the ledger that could not be used and were left out, by operation.",
		}, []string{"where"}),
	}
	for _, where := range SkippedWhere() {
		s.count.WithLabelValues(where)
	}
	reg.MustRegister(s.count)
	return s
}

// Report counts a row, and logs it once in an hour.
func (s *SkippedRows) Report(where, id string, err error) {
	s.count.WithLabelValues(where).Inc()
	if s.again(where + " " + id) {
		return
	}
	s.log.Error("Unreadable row skipped", zap.String("where", where), zap.String("id", purchase.LogSafe(id)),
		zap.Error(err), zap.String("remedy",
			"a newer ingest wrote it: update this one; else restore it from a backup (docs/operations.md)"))
}

// again reports whether a row was logged lately.
func (s *SkippedRows) again(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if at, known := s.logged[key]; known && now.Sub(at) < skippedEvery {
		return true
	}
	if len(s.logged) >= skippedMax {
		clear(s.logged)
	}
	s.logged[key] = now
	return false
}
