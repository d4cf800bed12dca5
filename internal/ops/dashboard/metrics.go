package dashboard

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

// Outbox returns the number of pending purchases and since when the oldest one waits (zero: none).
type Outbox interface {
	OutboxState(ctx context.Context) (pending int, oldest time.Time, err error)
}

// scrapeTimeout bounds the query of each scrape.
const scrapeTimeout = 2 * time.Second

// outboxMetrics queries the ledger at each scrape: all replicas report the same values.
type outboxMetrics struct {
	outbox          Outbox
	now             func() time.Time
	pending, oldest *prometheus.Desc
}

// NewOutboxMetrics returns a collector of the outbox's gauges. They are missing while the ledger is
// unavailable.
func NewOutboxMetrics(o Outbox, now func() time.Time) prometheus.Collector {
	return &outboxMetrics{
		outbox: o, now: now,
		pending: prometheus.NewDesc("purchase_relay_outbox_pending",
			"Purchases that wait for the relay.", nil, nil),
		oldest: prometheus.NewDesc("purchase_relay_outbox_oldest_age_seconds",
			"Age of the oldest purchase that waits for the relay.", nil, nil),
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

// purchasesMetrics queries the rollup at each scrape: the cost does not grow with the ledger.
type purchasesMetrics struct {
	groups    Groups
	purchases *prometheus.Desc
}

// NewPurchasesMetrics returns a collector of purchases by status. It is missing while the ledger is
// unavailable.
func NewPurchasesMetrics(g Groups) prometheus.Collector {
	purchases := prometheus.NewDesc("purchase_relay_purchases", "Purchases by status.", []string{"status"}, nil)
	return &purchasesMetrics{groups: g, purchases: purchases}
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
		count := float64(counts[status])
		ch <- prometheus.MustNewConstMetric(m.purchases, prometheus.GaugeValue, count, string(status))
	}
}

// SkippedRows counts and logs unreadable rows of the ledger.
type SkippedRows struct {
	log   *zap.Logger
	now   func() time.Time
	count *prometheus.CounterVec

	mu     sync.Mutex
	logged map[string]time.Time // by operation and row
}

// Each row is logged once per interval: the relay reads the same one every half minute.
const (
	skippedInterval = time.Hour
	skippedMax      = 1000 // rows kept in memory
)

// SkippedWhere returns the operations that skip rows: the values of the metric's label.
func SkippedWhere() []string {
	return []string{
		"entries", "history", "outcomes", "problems", "reconcile", "relay", "replay", "rollup", "sweeper", "trials",
	}
}

// NewSkippedRows returns a SkippedRows and registers its metric.
func NewSkippedRows(log *zap.Logger, now func() time.Time, reg prometheus.Registerer) *SkippedRows {
	s := &SkippedRows{
		log: log, now: now, logged: make(map[string]time.Time),
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_skipped_rows_total",
			Help: "Unreadable rows of the ledger, by operation.",
		}, []string{"where"}),
	}
	for _, where := range SkippedWhere() {
		s.count.WithLabelValues(where)
	}
	reg.MustRegister(s.count)
	return s
}

// Report counts a row and logs it once per hour.
func (s *SkippedRows) Report(where, id string, err error) {
	s.count.WithLabelValues(where).Inc()
	if s.loggedLately(where + " " + id) {
		return
	}
	s.log.Error("Unreadable row skipped", zap.String("where", where), zap.String("id", purchase.LogSafe(id)),
		zap.Error(err), zap.String("remedy",
			"a newer ingest wrote it: update this one; else restore it from a backup (docs/operations.md)"))
}

func (s *SkippedRows) loggedLately(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if at, known := s.logged[key]; known && now.Sub(at) < skippedInterval {
		return true
	}
	if len(s.logged) >= skippedMax {
		clear(s.logged)
	}
	s.logged[key] = now
	return false
}
